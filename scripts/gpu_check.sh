#!/usr/bin/env bash
# Everything that must hold on a GPU, as a table of passes and failures, then speeds; writes docs/benchmarks/gpu.md.
#   scripts/gpu_check.sh --build FOLDER   builds the two programs it needs into FOLDER (needs cargo, no GPU)
#   scripts/gpu_check.sh [FOLDER]         runs them (needs a driver >= 580 and cuDNN 9; no cargo where FOLDER is given)
# PyTorch is timed in the same run where `python3 -c 'import torch'` works.
set -euo pipefail
cd "$(dirname "$0")/.."
build() {
  mkdir -p "$1"
  local messages
  messages=$(scripts/build_cuda.sh build --release -p bb-nn --features cuda --test cuda --example bench --message-format json)
  local name
  for name in cuda bench; do
    strip -o "$1/$name" "$(sed -n "s/.*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p" <<<"$messages" | tail -1)"
  done
}
if [ "${1:-}" = --build ]; then
  build "${2:?usage: scripts/gpu_check.sh --build FOLDER}"
  exit
fi
programs=${1:-target/gpu}
[ $# -gt 0 ] || build "$programs"
python=$(command -v python3 || true)
if [ -n "$python" ] && "$python" -c 'import nvidia' 2>/dev/null; then
  # The libraries that came with PyTorch.
  packages=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])')
  export LD_LIBRARY_PATH=$packages/cu13/lib:$packages/cudnn/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
torch=
[ -n "$python" ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && torch=yes
results=$(mktemp)
table=$(mktemp)
trap 'rm -f "$results" "$table"' EXIT

echo "## Correctness"
echo
echo "| check | result |"
echo "|---|---|"
failed=0
# A test that finds no device passes as skipped; that must not look like a pass here.
CARGO_MANIFEST_DIR=$PWD/crates/bb-nn "$programs/cuda" --nocapture --test-threads 1 >"$results" 2>&1 || failed=1
if grep -q 'skipped: no CUDA device' "$results"; then
  echo "| a CUDA device | **FAIL**: none found |"
  exit 1
fi
sed -n 's/^test \([a-z_]*\) \.\.\..*/\1/p' "$results" | while read -r name; do
  if grep -q "^    $name\$" "$results"; then
    echo "| $name | **FAIL** |"
  else
    echo "| $name | pass |"
  fi
done
if [ "$failed" = 1 ]; then
  cat "$results" >&2
  exit 1
fi

field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p"; }
report=docs/benchmarks/gpu.md
device=$("$programs/bench" --device cuda:0 --width 16 --batch 8 --steps 1 --warmup 1 --repeats 1 | field device)
driver=$(command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1 || echo unknown)
{
  echo "# Speed on a GPU"
  echo
  echo "\`scripts/gpu_check.sh\`, $(date +%F), commit \`$(git rev-parse --short HEAD 2>/dev/null || echo unknown)\`."
  echo "$device, driver $driver. PreActResNet18, width 64, random images in memory, images per second."
  echo "PyTorch in channels_last, eager and compiled; \`f32\` is without TF32 on both sides, \`tf32\` with it in convolutions. Three interleaved rounds, medians."
  echo
  echo "| | ours | PyTorch | PyTorch, compiled | ratio to its faster one |"
  echo "|---|---|---|---|---|"
} >"$table"
median() { sort -g | awk '{v[NR]=$1} END {print NR ? v[int((NR+1)/2)] : ""}'; }
for case in "train 128 f32" "train 512 f32" "train 128 tf32" "train 512 tf32" "eval 128 f32" "eval 512 f32"; do
  read -r mode batch precision <<<"$case"
  : >"$results"
  for _ in 1 2 3; do
    common=(--mode "$mode" --width 64 --batch "$batch" --precision "$precision" --steps 20 --repeats 1 --warmup 5)
    echo "ours $("$programs/bench" "${common[@]}" --device cuda:0 | field img_per_s_median)" >>"$results"
    if [ -n "$torch" ]; then
      echo "eager $("$python" scripts/torch_bench.py "${common[@]}" --device cuda --channels-last | field img_per_s_median)" >>"$results"
      compiled=$("$python" scripts/torch_bench.py "${common[@]}" --device cuda --channels-last --compile 2>/dev/null | field img_per_s_median || true)
      echo "compiled ${compiled:-0}" >>"$results"
    fi
  done
  ours=$(awk '$1=="ours"{print $2}' "$results" | median)
  eager=$(awk '$1=="eager"{print $2}' "$results" | median)
  compiled=$(awk '$1=="compiled"{print $2}' "$results" | median)
  ratio=$(awk -v o="$ours" -v e="${eager:-0}" -v c="${compiled:-0}" 'BEGIN {m = e > c ? e : c; if (m > 0) printf "%.2f", o / m; else print "-"}')
  echo "| $mode, batch $batch, $precision | $ours | ${eager:--} | ${compiled:--} | $ratio |" >>"$table"
done
cp "$table" "$report"
echo
cat "$report"
