// Who computes what: threads, channels, rows.
#pragma once

constexpr int COLUMNS = 32;  // channels of one block of a column sum
constexpr int LANES = 8;     // and its threads per channel
constexpr int JOINERS = 32;  // threads per channel where the parts of a column sum are joined
constexpr int TILE = 16;     // edge of a tile of a product
constexpr int THREADS = 256; // threads of a block that sums as a whole

// This thread's number in a one-dimensional grid.
static __device__ __forceinline__ long long first_element()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// Number of threads of a one-dimensional grid.
static __device__ __forceinline__ long long grid_threads()
{
    return (long long)gridDim.x * blockDim.x;
}

// a / b for a >= 0, b > 0: a division of 32 bits, which is several times faster, where that is enough.
static __device__ __forceinline__ long long quotient(long long a, long long b)
{
    return (a | b) >> 32 ? a / b : (unsigned)a / (unsigned)b;
}

// Walks over the elements of [rows, c] by the grid's threads, N neighbours at a time, and knows their first channel
// without a division per step. c is a multiple of N.
template <int N> struct ChannelWalk {
    long long i;
    int channel;

    __device__ __forceinline__ explicit ChannelWalk(int c)
        : i(first_element() * N), channel((int)(i - quotient(i, c) * c)), c(c), stride(grid_threads() * N),
          step((int)(stride - quotient(stride, c) * c))
    {
    }
    __device__ __forceinline__ void next()
    {
        i += stride;
        channel += step;
        if (channel >= c) channel -= c;
    }

private:
    int c;
    long long stride;
    int step;
};

// The rows of one part of a column sum: from begin to below end.
struct PartRows {
    int begin, end; // begin >= end for a part without rows

    __device__ __forceinline__ PartRows(int part, int rows, int rows_per_part)
    {
        const long long from = (long long)part * rows_per_part, to = from + rows_per_part;
        begin = (int)(from < rows ? from : rows);
        end = (int)(to < rows ? to : rows);
    }
    __device__ __forceinline__ int count() const { return end - begin; }
};
