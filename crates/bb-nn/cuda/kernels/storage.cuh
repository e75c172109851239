// How values lie in memory: f32 or bf16, read and written singly or in groups.
#pragma once

#include "index.cuh"

// The upper half of an f32.
struct bf16 {
    unsigned short bits;
};

// Elements of one access of 16 bytes.
template <typename T> constexpr int GROUP = 16 / (int)sizeof(T);

// The nearest bf16, the even one of two equally near. NaN stays NaN.
static __device__ __forceinline__ unsigned bf16_bits(float x)
{
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return bits >> 16 | 0x40; // a quiet NaN
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Two values in one word, the first one in its lower half.
static __device__ __forceinline__ unsigned bf16_pair(float low, float high)
{
#ifdef __CUDA_ARCH__
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low)); // every NaN becomes 0x7FFF
    return pair;
#else
    return bf16_bits(low) | bf16_bits(high) << 16;
#endif
}

static __device__ __forceinline__ float lower(unsigned pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float upper(unsigned pair)
{
    return __uint_as_float(pair & 0xFFFF0000);
}

// Whether all of these addresses are multiples of 16.
template <typename... T> static __device__ __forceinline__ bool aligned(const T *...p)
{
    return ((unsigned long long)p | ...) % 16 == 0;
}

// Reads N neighbouring elements. With N > 1, p is a multiple of the smaller of 16 bytes and N elements.
template <int N> static __device__ __forceinline__ void load(const float *p, float (&v)[N])
{
    if constexpr (N == 1) {
        v[0] = *p;
    } else {
        static_assert(N % 4 == 0, "size of a group");
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            const uint4 w = *(const uint4 *)(p + j);
            v[j] = __uint_as_float(w.x), v[j + 1] = __uint_as_float(w.y);
            v[j + 2] = __uint_as_float(w.z), v[j + 3] = __uint_as_float(w.w);
        }
    }
}

template <int N> static __device__ __forceinline__ void load(const bf16 *p, float (&v)[N])
{
    if constexpr (N == 1) {
        v[0] = lower(p->bits);
    } else if constexpr (N == 4) {
        const uint2 w = *(const uint2 *)p;
        v[0] = lower(w.x), v[1] = upper(w.x), v[2] = lower(w.y), v[3] = upper(w.y);
    } else {
        static_assert(N == 8, "size of a group");
        const uint4 w = *(const uint4 *)p;
        v[0] = lower(w.x), v[1] = upper(w.x), v[2] = lower(w.y), v[3] = upper(w.y);
        v[4] = lower(w.z), v[5] = upper(w.z), v[6] = lower(w.w), v[7] = upper(w.w);
    }
}

// Writes N neighbouring elements, as `load` reads them.
template <int N> static __device__ __forceinline__ void store(float *p, const float (&v)[N])
{
    if constexpr (N == 1) {
        *p = v[0];
    } else {
        static_assert(N % 4 == 0, "size of a group");
#pragma unroll
        for (int j = 0; j < N; j += 4)
            *(uint4 *)(p + j) = {__float_as_uint(v[j]), __float_as_uint(v[j + 1]), __float_as_uint(v[j + 2]),
                                 __float_as_uint(v[j + 3])};
    }
}

template <int N> static __device__ __forceinline__ void store(bf16 *p, const float (&v)[N])
{
    if constexpr (N == 1) {
        p->bits = (unsigned short)bf16_pair(v[0], 0.0f);
    } else if constexpr (N == 4) {
        *(uint2 *)p = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])};
    } else {
        static_assert(N == 8, "size of a group");
        *(uint4 *)p = {bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]), bf16_pair(v[6], v[7])};
    }
}

// One element.
template <typename T> static __device__ __forceinline__ float load_one(const T *p)
{
    float v[1];
    load(p, v);
    return v[0];
}

template <typename T> static __device__ __forceinline__ void store_one(T *p, float x)
{
    const float v[1] = {x};
    store(p, v);
}

// A number of elements as a type.
template <int N> struct Width {
    static constexpr int value = N;
};

// Calls f(i, Width<..>()) once for every element of 0..n, by the grid's threads: for groups of N from i on where
// `grouped` and as far as n allows, for single elements elsewhere.
template <int N, typename F> static __device__ __forceinline__ void for_groups(long long n, bool grouped, F f)
{
    const long long end = grouped ? n / N * N : 0;
#pragma unroll 1 // the grid gives enough accesses at a time
    for (long long i = first_element() * N; i < end; i += grid_threads() * N) f(i, Width<N>());
#pragma unroll 1
    for (long long i = end + first_element(); i < n; i += grid_threads()) f(i, Width<1>());
}
