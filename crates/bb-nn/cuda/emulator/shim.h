// Enough of CUDA C++ to compile the kernels for the host.
#pragma once

#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared arrays lie in one section, so that they can be cleared. One block runs at a time. An array of a template
// would lie elsewhere.
#define __shared__ static __attribute__((section("device_shared")))

struct uint3 {
    unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

// Groups of words, through which memory of any type is read and written.
struct __attribute__((aligned(8), may_alias)) uint2 {
    unsigned x, y;
};
struct __attribute__((aligned(16), may_alias)) uint4 {
    unsigned x, y, z, w;
};

inline unsigned __float_as_uint(float x)
{
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits)
{
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// No other thread runs between two barriers. Gives the old value.
inline unsigned atomicAdd(unsigned *address, unsigned value)
{
    const unsigned old = *address;
    *address = old + value;
    return old;
}

// Returns once all threads of the block have called it.
void __syncthreads();
