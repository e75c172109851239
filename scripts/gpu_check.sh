#!/usr/bin/env bash
# Everything that must hold on a GPU, as a table of passes and failures, then speeds; writes docs/benchmarks/gpu-speed.md.
#   scripts/gpu_check.sh --build FOLDER   builds the programs it needs into FOLDER (needs cargo, no GPU)
#   scripts/gpu_check.sh [FOLDER]         runs them (needs a driver >= 580 and cuDNN 9; no cargo where FOLDER is given)
# The golden tests run where BB_SHARED names their folder. PyTorch is timed in the same run where
# `python3 -c 'import torch'` works.
set -euo pipefail
cd "$(dirname "$0")/.."
# Test programs (bb_nn holds the tests of single operations) and the benchmark.
names=(bb_nn cuda golden bench)
build() {
  mkdir -p "$1"
  local messages
  messages=$(scripts/build_cuda.sh build --release -p bb-nn --features cuda --message-format json \
    --example bench --tests)
  local name
  for name in "${names[@]}"; do
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
# check NAME FILTER: a line for each test. One that finds no device passes as skipped, which must not look like a pass.
check() {
  local status=0
  CARGO_MANIFEST_DIR=$PWD/crates/bb-nn BB_DEVICE=cuda:0 "$programs/$1" --nocapture --test-threads 1 ${2:+"$2"} \
    ${BB_SHARED:+--include-ignored} >"$results" 2>&1 || status=1
  if grep -q 'skipped: no CUDA device' "$results"; then
    echo "| a CUDA device | **FAIL**: none found |"
    exit 1
  fi
  sed -n 's/^test \([a-z0-9_:]*\) \.\.\..*/\1/p' "$results" | while read -r name; do
    if grep -q "^    $name\$" "$results"; then
      echo "| $name | **FAIL** |"
    elif grep -q "^test $name \.\.\. ignored" "$results"; then
      echo "| $name | ignored |"
    else
      echo "| $name | pass |"
    fi
  done
  if [ "$status" = 1 ]; then
    cat "$results" >&2
    failed=1
  fi
}
check bb_nn cuda::tests
check cuda
check golden
[ "$failed" = 0 ] || exit 1

field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p"; }
report=docs/benchmarks/gpu-speed.md
device=$("$programs/bench" --device cuda:0 --width 16 --batch 8 --steps 1 --warmup 1 --repeats 1 | field device)
driver=$(command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1 || echo unknown)
# Lines `WHO MODE PRECISION BATCH RATE` of one round, PyTorch in one process for all of a mode's rows.
batches=(128 512)
precisions=(f32 tf32 bf16)
round() {
  local mode precision batch
  for mode in train eval; do
    for precision in "${precisions[@]}"; do
      for batch in "${batches[@]}"; do
        "$programs/bench" --mode "$mode" --width "$width" --batch "$batch" --precision "$precision" --steps 30 \
          --repeats 1 --warmup 5 --device cuda:0 | rows ours
      done
    done
    [ -n "$torch" ] || continue
    "$python" scripts/torch_bench.py --mode "$mode" --width "$width" --batch "${batches[@]}" \
      --precision "${precisions[@]}" --steps 30 --repeats 1 --warmup 10 --device cuda --channels-last | rows torch
  done
}
rows() {
  sed -n "s/.*\"batch\": *\([0-9]*\).*/\1 &/p" | while read -r batch line; do
    echo "$1 $(field mode <<<"$line") $(field precision <<<"$line") $batch $(field img_per_s_median <<<"$line")"
  done
}
median() { sort -g | awk '{v[NR]=$1} END {print NR ? v[int((NR+1)/2)] : ""}'; }
of() { awk -v who="$1" -v m="$2" -v p="$3" -v b="$4" '$1==who && $2==m && $3==p && $4==b {print $5}' "$results" | median; }
{
  echo "# Speed on a GPU"
  echo
  echo "\`scripts/gpu_check.sh\`, $(date +%F), commit \`$(git rev-parse --short HEAD 2>/dev/null || echo unknown)\`."
  echo "$device, driver $driver. PreActResNet18, images per second."
  echo "Ours: the second epoch of a training, batches assembled from 8-bit images on the GPU (evaluation copies them there"
  echo "and chooses its own batch); PyTorch: channels_last, a random batch on the GPU from the start."
  echo "\`f32\` is without TF32 on both sides, \`tf32\` with it in convolutions, \`bf16\` is autocast in PyTorch."
  echo "Three interleaved rounds, medians."
  for width in 64 16; do
    : >"$results"
    for _ in 1 2 3; do round >>"$results"; done
    echo
    echo "| width $width | ours | PyTorch | ratio |"
    echo "|---|---|---|---|"
    for mode in train eval; do
      for precision in "${precisions[@]}"; do
        for batch in "${batches[@]}"; do
          ours=$(of ours "$mode" "$precision" "$batch")
          theirs=$(of torch "$mode" "$precision" "$batch")
          ratio=$(awk -v o="$ours" -v t="${theirs:-0}" 'BEGIN {if (t > 0) printf "%.2f", o / t; else print "-"}')
          echo "| $mode, batch $batch, $precision | $ours | ${theirs:--} | $ratio |"
        done
      done
    done
  done
} >"$table"
cp "$table" "$report"
echo
cat "$report"
