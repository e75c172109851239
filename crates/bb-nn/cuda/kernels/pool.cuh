// Global average pooling.
#pragma once

#include "storage.cuh"

template <typename T>
static __device__ __forceinline__ void average(
    const T *__restrict__ x, int n, int pixels, int c, float *__restrict__ y)
{
    const float inverse = 1.0f / (float)pixels;
    for (long long i = first_element(); i < (long long)n * c; i += grid_threads()) {
        const long long image = quotient(i, c);
        const T *column = x + image * pixels * c + (i - image * c);
        float sum = 0.0f;
#pragma unroll 8
        for (int p = 0; p < pixels; p++) sum += load_one(column + (long long)p * c);
        y[i] = sum * inverse;
    }
}

// y [n, c]: mean over the pixels of x [n, pixels, c]. A loop over the n * c results, launched as elementwise.
extern "C" __global__ void global_average(
    const float *__restrict__ x, int n, int pixels, int c, float *__restrict__ y)
{
    average(x, n, pixels, c, y);
}

extern "C" __global__ void global_average_bf16(
    const bf16 *__restrict__ x, int n, int pixels, int c, float *__restrict__ y)
{
    average(x, n, pixels, c, y);
}

template <int N, typename T>
static __device__ __forceinline__ void average_gradient(
    const float *__restrict__ dy, int n, int pixels, int c, T *__restrict__ dx)
{
    const float inverse = 1.0f / (float)pixels;
    const long long image = (long long)pixels * c;
#pragma unroll 1
    for (ChannelWalk<N> at(c); at.i < n * image; at.next()) {
        float v[N];
        load(dy + quotient(at.i, image) * c + at.channel, v);
        for (int j = 0; j < N; j++) v[j] *= inverse;
        store(dx + at.i, v);
    }
}

template <typename T>
static __device__ __forceinline__ void average_gradient(
    const float *__restrict__ dy, int n, int pixels, int c, T *__restrict__ dx)
{
    if (c % GROUP<T> == 0 && aligned(dy, dx))
        average_gradient<GROUP<T>>(dy, n, pixels, c, dx);
    else
        average_gradient<1>(dy, n, pixels, c, dx);
}

// dx [n, pixels, c] = dy [n, c] / pixels. Elementwise over n * pixels * c.
extern "C" __global__ void global_average_gradient(
    const float *__restrict__ dy, int n, int pixels, int c, float *__restrict__ dx)
{
    average_gradient(dy, n, pixels, c, dx);
}

extern "C" __global__ void global_average_gradient_bf16(
    const float *__restrict__ dy, int n, int pixels, int c, bf16 *__restrict__ dx)
{
    average_gradient(dy, n, pixels, c, dx);
}
