#!/usr/bin/env bash
# cargo with nvcc on the PATH, fetched from PyPI where the machine has none (about 105 MB, once, into target/cuda-13.0):
#   scripts/build_cuda.sh build --release -p bb-eval -p bb-attack -p bb-defense --features bb-eval/cuda
# Needs cargo, g++ and python3 with pip. No GPU, driver or cuDNN is needed to build: they are looked for at run time.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v "${NVCC:-nvcc}" >/dev/null && [ ! -x "${CUDA_HOME:-${CUDA_PATH:-}}/bin/nvcc" ]; then
  toolkit=${CUDA_TOOLKIT_DIR:-$root/target/cuda-13.0}
  if [ ! -x "$toolkit/nvidia/cu13/bin/nvcc" ]; then
    # 13.0: PTX of a newer compiler would ask for a newer driver than 580.
    python3 -m pip install -q --no-deps --no-compile --upgrade --target "$toolkit" \
      nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  fi
  export CUDA_HOME=$toolkit/nvidia/cu13
fi
exec cargo "$@"
