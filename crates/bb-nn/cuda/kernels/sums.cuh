// Sums over the threads of a block. All threads must take part.
#pragma once

#include "index.cuh"

// Sum over the LANES threads with one threadIdx.x of a (COLUMNS, LANES) block, given to each of them.
static __device__ float column_sum(float value)
{
    __shared__ float values[LANES][COLUMNS];
    values[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane][threadIdx.x];
    __syncthreads(); // the array may be used again
    return sum;
}

// Sum over the JOINERS threads with one threadIdx.x of a (COLUMNS, JOINERS) block, given to each of them.
static __device__ double joined_sum(double value)
{
    __shared__ double values[JOINERS][COLUMNS];
    values[threadIdx.y][threadIdx.x] = value;
    for (unsigned half = JOINERS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) values[threadIdx.y][threadIdx.x] += values[threadIdx.y + half][threadIdx.x];
    }
    __syncthreads();
    const double sum = values[0][threadIdx.x];
    __syncthreads(); // the array may be used again
    return sum;
}

constexpr int WIDE = 4; // neighbouring channels that a thread of a column sum can read at a time

// As `column_sum`, where each thread has the sums of the WIDE channels from `first` on, and LANES * WIDE threads, one
// for each `lane`, have those of one channel. The result is that of channel threadIdx.x.
static __device__ float wide_column_sum(int first, int lane, const float (&sums)[WIDE])
{
    __shared__ float values[LANES * WIDE][COLUMNS];
    for (int j = 0; j < WIDE; j++) values[lane][first + j] = sums[j];
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < WIDE; i++) sum += values[threadIdx.y + i * LANES][threadIdx.x];
    return column_sum(sum); // its barriers come before the array is used again
}

// Takes the value of channel threadIdx.x, gives those of the WIDE channels from `first` on.
static __device__ void share_columns(float value, int first, float (&out)[WIDE])
{
    __shared__ float values[COLUMNS];
    if (threadIdx.y == 0) values[threadIdx.x] = value;
    __syncthreads();
    for (int j = 0; j < WIDE; j++) out[j] = values[first + j];
    __syncthreads(); // the array may be used again
}

// How the threads of a (COLUMNS, LANES) block divide COLUMNS channels: V neighbours each, of every STEP-th row.
template <int V> struct Columns {
    static_assert(V == 1 || V == WIDE, "channels per thread");
    static constexpr int STEP = LANES * V;
    int first, lane; // this thread's first channel within the block's, and its first row

    __device__ __forceinline__ Columns()
    {
        constexpr int ACROSS = COLUMNS / V;
        const int thread = threadIdx.y * COLUMNS + threadIdx.x;
        first = thread % ACROSS * V;
        lane = thread / ACROSS;
    }
    // From each thread's own channels to the sum of channel threadIdx.x.
    __device__ __forceinline__ float sum(const float (&sums)[V]) const
    {
        if constexpr (V == 1)
            return column_sum(sums[0]);
        else
            return wide_column_sum(first, lane, sums);
    }
    // And back.
    __device__ __forceinline__ void share(float value, float (&out)[V]) const
    {
        if constexpr (V == 1)
            out[0] = value;
        else
            share_columns(value, first, out);
    }
};

// Sum over the THREADS threads of a one-dimensional block; the result is valid in thread 0.
static __device__ double block_sum(double value)
{
    constexpr int GROUPS = 16;
    __shared__ double values[THREADS];
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < GROUPS)
        for (int i = threadIdx.x + GROUPS; i < THREADS; i += GROUPS) values[threadIdx.x] += values[i];
    __syncthreads();
    double sum = 0.0;
    if (threadIdx.x == 0)
        for (int i = 0; i < GROUPS; i++) sum += values[i];
    __syncthreads(); // the array may be used again
    return sum;
}

// Sum of `count` values in an order that depends on nothing else, given to all THREADS threads of the block.
static __device__ double sum_of(const double *values, int count)
{
    __shared__ double total;
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += values[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total = sum;
    __syncthreads();
    sum = total;
    __syncthreads(); // it may be used again
    return sum;
}
