#!/usr/bin/env bash
# Runs a command with an emulated CUDA device: the driver and cuDNN on host memory, our kernels on the CPU.
#   scripts/emulate_cuda.sh COMMAND...      for example: scripts/emulate_cuda.sh cargo test -p bb-nn --features cuda
#   scripts/emulate_cuda.sh --selftest      checks every kernel and the convolutions against plain loops
# Builds the two libraries into target/emulator where a source is newer. Needs g++.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
cuda=$root/crates/bb-nn/cuda
source=$cuda/emulator
out=$root/target/emulator
mkdir -p "$out"

# Whether a file of target/emulator is missing or older than one of the sources.
stale() {
  [ ! -e "$out/$1" ] || [ -n "$(find "$cuda" "$root/scripts/emulate_cuda.sh" -type f -newer "$out/$1" -print -quit)" ]
}

# compile NAME ARGUMENTS...: g++ into a new file that then takes the old one's place.
compile() {
  nice -n 19 "${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -U_FORTIFY_SOURCE \
    -I"$build" "${@:2}" -o "$build/$1"
  mv "$build/$1" "$out/$1"
}

if stale libcuda.so.1 || stale libcudnn.so.9 || stale selftest; then
  build=$(mktemp -d "$out/build.XXXXXX")
  trap 'rm -rf "$build"' EXIT
  sed -n -E 's/^extern "C" __global__ void (__launch_bounds__\([^)]*\) )?([a-z0-9_]+)\(.*/KERNEL(\2)/p' \
    "$cuda"/kernels.cu "$cuda"/kernels/*.cuh >"$build/kernel_names.inc"
  library=(-shared -fPIC -fvisibility=hidden -Wl,-z,defs)
  # A misaligned access ends in SIGILL.
  compile libcuda.so.1 "${library[@]}" -fsanitize=alignment -fsanitize-undefined-trap-on-error \
    -Wl,-soname,libcuda.so.1 "$source"/{kernels,blocks,driver}.cpp
  # A program may also look for the names without a version, and must not find those of a real driver.
  ln -sf libcuda.so.1 "$out/libcuda.so"
  compile libcudnn.so.9 "${library[@]}" -Wl,-soname,libcudnn.so.9 "$source/cudnn.cpp" -L"$out" -l:libcuda.so.1
  ln -sf libcudnn.so.9 "$out/libcudnn.so"
  compile selftest "$source"/selftest/*.cpp -ldl
  rm -rf "$build"
  trap - EXIT
fi

[ "$1" != --selftest ] || set -- "$out/selftest"
exec env LD_LIBRARY_PATH="$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
