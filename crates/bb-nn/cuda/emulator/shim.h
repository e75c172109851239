// Enough of CUDA C++ to compile kernels.cu for the host.
#pragma once

#include <cmath>

#define __global__
#define __device__
#define __forceinline__ inline
// All shared arrays lie in one section, so that they can be cleared. One block runs at a time.
#define __shared__ static __attribute__((section("device_shared")))

struct uint3 {
    unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

// Returns once all threads of the block have called it.
void __syncthreads();
