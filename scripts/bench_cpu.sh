#!/usr/bin/env bash
# Speed of the engine beside PyTorch on this machine, interleaved in one run; writes docs/benchmarks/cpu.md.
#   scripts/bench_cpu.sh PYTHON [ROUNDS]
# PYTHON is an interpreter that can `import torch`, from an environment outside the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: scripts/bench_cpu.sh PYTHON [ROUNDS]}
rounds=${2:-5}
threads=${THREADS:-2}
cargo build --release -q -p bb-nn --example bench
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
rate() { sed -n 's/.*"img_per_s_median": *\([0-9.]*\).*/\1/p'; }
for round in $(seq "$rounds"); do
  for case in "train 64 4" "train 16 12" "eval 64 6" "eval 16 24"; do
    read -r mode width steps <<<"$case"
    args=(--mode "$mode" --width "$width" --batch 128 --steps "$steps" --repeats 1 --threads "$threads")
    ours=$(target/release/examples/bench "${args[@]}" | rate)
    plain=$("$python" scripts/torch_bench.py "${args[@]}" | rate)
    last=$("$python" scripts/torch_bench.py "${args[@]}" --channels-last | rate)
    echo "$mode $width $ours $plain $last" | tee -a "$lines" >&2
  done
done
version=$("$python" -c 'import torch; print(torch.__version__)')
"$python" - "$lines" "$rounds" "$threads" "$version" "$(git rev-parse --short HEAD)" >docs/benchmarks/cpu.md <<'P'
import datetime, statistics, sys
path, rounds, threads, version, commit = sys.argv[1:]
cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
flags = next((l for l in open("/proc/cpuinfo") if l.startswith("flags")), "")
cases = {}
for line in open(path):
    mode, width, *rates = line.split()
    cases.setdefault((mode, int(width)), []).append([float(r) for r in rates])
print(f"""# Speed on the CPU

`scripts/bench_cpu.sh PYTHON {rounds}`, {datetime.date.today()}, commit `{commit}`.
{cpu}{", AVX-512" if "avx512f" in flags else ""}, {threads} threads, PyTorch {version}.
PreActResNet18, batch 128, `f32`, random images in memory, images per second: median of {rounds} interleaved rounds, lowest and highest in brackets.
The ratio is the median over the rounds of ours / the faster of PyTorch's two layouts.

| | ours | PyTorch, contiguous | PyTorch, channels_last | ratio |
|---|---|---|---|---|""")
for (mode, width), rows in cases.items():
    columns = list(zip(*rows))
    cell = lambda v: f"{statistics.median(v):.0f} [{min(v):.0f}, {max(v):.0f}]"
    ratios = [r[0] / max(r[1:]) for r in rows]
    print(f"| {mode}, width {width} | " + " | ".join(cell(c) for c in columns)
          + f" | {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |")
P
cat docs/benchmarks/cpu.md
