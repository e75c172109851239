#!/usr/bin/env bash
# Fuzzing with coverage feedback, by libFuzzer: an input that reaches new code is kept and changed further.
#
#     scripts/fuzz.sh TARGET [SECONDS]      one target, for ten minutes where nothing is said
#     scripts/fuzz.sh all [SECONDS]         each of them, one after the other
#
# Works on the stable toolchain; needs a C++ compiler, which builds libFuzzer. The first call builds everything once more.
# An input that panics, takes over a second of the processor or 256 MiB ends the run and is kept in target/fuzz/TARGET;
# the error says how to feed it again. The corpus stays there, so that another call goes on with it.
# A line for each target has the inputs tried, and behind `cov:` the places in the code that they reached.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?the name of a target, or all}
seconds=${2:-600}
work=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$work"

# It makes the first inputs, and has no coverage.
cargo build --locked -p bb-fuzz --bin bb-fuzz
make=${CARGO_TARGET_DIR:-target}/debug/bb-fuzz

# What `cargo fuzz` passes as well.
flags="-Cpasses=sancov-module -Ccodegen-units=1"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
# With a target named, build scripts and macros are built without them.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${RUSTFLAGS:-} $flags" cargo build --profile fuzz --locked -p bb-fuzz --features guided \
  --bin bb-fuzz-guided --target "$host" --target-dir "$work/build"
guided=$work/build/$host/fuzz/bb-fuzz-guided

targets=$name
[ "$name" != all ] || targets=$("$make" --list)
for target in $targets; do
  place=$work/$target
  "$make" "$target" --write "$place/corpus" --inputs 200
  # The memory of one input is measured by the program; this is that of the process, whose corpus grows.
  BB_FUZZ_TARGET=$target "$guided" "$place/corpus" -artifact_prefix="$place/" -max_total_time="$seconds" \
    -max_len=1048576 -rss_limit_mb=4096 -timeout=60 -print_final_stats=1 >"$place/log" 2>&1 || {
    tail -n 40 "$place/log" >&2
    echo "$target: stopped by an input, see $place; BB_FUZZ_TARGET=$target $guided FILE feeds it again" >&2
    exit 1
  }
  printf '%s: %s; %s\n' "$target" "$(grep -m1 '^Done' "$place/log")" "$(grep -E 'cov: [0-9]+' "$place/log" | tail -n 1)"
done
