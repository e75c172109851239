#!/usr/bin/env bash
# Speed of the engine beside PyTorch on this machine, interleaved in one run; writes docs/benchmarks/cpu.md.
#   scripts/bench_cpu.sh PYTHON [ROUNDS]
# PYTHON is an interpreter that can `import torch`, from an environment outside the repository.
# THREADS (default 2) is the number of threads of both sides.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: scripts/bench_cpu.sh PYTHON [ROUNDS]}
rounds=${2:-5}
threads=${THREADS:-2}
cargo build --release -q -p bb-nn --example bench
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p"; }
precisions="f32 bf16"
grep -q avx512_bf16 /proc/cpuinfo || precisions="f32"
for round in $(seq "$rounds"); do
  for precision in $precisions; do
    for case in "train 64 4" "train 16 12" "eval 64 6" "eval 16 24"; do
      read -r mode width steps <<<"$case"
      args=(--mode "$mode" --width "$width" --batch 128 --precision "$precision" --steps "$steps" --repeats 1
        --threads "$threads")
      result=$(target/release/examples/bench "${args[@]}")
      ours=$(field img_per_s_median <<<"$result")
      memory=$(field peak_memory_mib <<<"$result")
      plain=$("$python" scripts/torch_bench.py "${args[@]}")
      last=$("$python" scripts/torch_bench.py "${args[@]}" --channels-last)
      echo "compare $mode $width $precision $ours $(field img_per_s_median <<<"$plain")" \
        "$(field img_per_s_median <<<"$last") $memory $(field peak_memory_mib <<<"$last")" | tee -a "$lines" >&2
    done
    for case in "64 32 12" "64 128 3" "64 512 1" "16 32 48" "16 128 12" "16 512 3"; do
      read -r width batch steps <<<"$case"
      args=(--mode train --width "$width" --batch "$batch" --precision "$precision" --steps "$steps" --repeats 1
        --warmup 1 --threads "$threads")
      echo "batch $width $precision $batch $(target/release/examples/bench "${args[@]}" | field img_per_s_median)" |
        tee -a "$lines" >&2
    done
  done
done
version=$("$python" -c 'import torch; print(torch.__version__)')
"$python" - "$lines" "$rounds" "$threads" "$version" "$(git rev-parse --short HEAD)" >docs/benchmarks/cpu.md <<'P'
import datetime, statistics, sys
path, rounds, threads, version, commit = sys.argv[1:]
cpuinfo = open("/proc/cpuinfo").read().splitlines()
value = lambda key: next((l.split(":", 1)[1].strip() for l in cpuinfo if l.startswith(key)), "unknown")
flags = value("flags").split()
extensions = [name for flag, name in (("avx512f", "AVX-512"), ("avx512_bf16", "AVX512-BF16")) if flag in flags]
compare, batches = {}, {}
for line in open(path):
    kind, *rest = line.split()
    if kind == "compare":
        mode, width, precision, *numbers = rest
        compare.setdefault((precision, mode, int(width)), []).append([float(n) for n in numbers])
    else:
        width, precision, batch, rate = rest
        batches.setdefault((int(width), precision), {}).setdefault(int(batch), []).append(float(rate))
cell = lambda v: f"{statistics.median(v):.0f} [{min(v):.0f}, {max(v):.0f}]"
print(f"""# Speed on the CPU

`scripts/bench_cpu.sh PYTHON {rounds}`, {datetime.date.today()}, commit `{commit}`.
{value("model name")} (family {value("cpu family")}, model {value("model")}; {", ".join(extensions) or "no AVX-512"}), {threads} threads, PyTorch {version}.
PreActResNet18, random images in memory, images per second: median of {rounds} interleaved rounds, lowest and highest in brackets.

## Beside PyTorch, batch 128

The ratio is the median over the rounds of ours / the faster of PyTorch's two layouts at the same precision (`bf16`: CPU autocast).
Memory is the process's peak in MiB, PyTorch in channels_last.

| | ours | PyTorch, contiguous | PyTorch, channels_last | ratio | memory | PyTorch's |
|---|---|---|---|---|---|---|""")
for (precision, mode, width), rows in compare.items():
    columns = list(zip(*rows))
    ratios = [r[0] / max(r[1:3]) for r in rows]
    print(f"| {mode}, width {width}, {precision} | " + " | ".join(cell(c) for c in columns[:3])
          + f" | {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
          + f" | {max(columns[3]):.0f} | {max(columns[4]):.0f} |")
sizes = sorted(next(iter(batches.values())))
print("""
## Batch size

Training, images per second. The spread is the largest over the smallest of the medians.

| | """ + " | ".join(f"batch {b}" for b in sizes) + " | spread |\n" + "|---" * (len(sizes) + 2) + "|")
for (width, precision), rates in batches.items():
    medians = [statistics.median(rates[b]) for b in sizes]
    print(f"| width {width}, {precision} | " + " | ".join(cell(rates[b]) for b in sizes)
          + f" | {max(medians) / min(medians):.2f} |")
P
cat docs/benchmarks/cpu.md
