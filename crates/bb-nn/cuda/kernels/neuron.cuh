// Neurons of a convolution. Its weight is [rows = output channels][taps = kh * kw][channels = inputs]; a neuron is one
// row of length = taps * channels.
#pragma once

#include "product.cuh"
#include "sums.cuh"

// out [rows]: sum of |a - b| over each row, or of |a| if b is null; differences in f32, sums in f64. Rows.
extern "C" __global__ void row_l1(
    const float *__restrict__ a, const float *__restrict__ b, int length, float *__restrict__ out)
{
    const long long row = (long long)blockIdx.x * length;
    double sum = 0.0;
#pragma unroll 4
    for (int i = threadIdx.x; i < length; i += THREADS) sum += fabsf(b ? a[row + i] - b[row + i] : a[row + i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = (float)sum;
}

// out [rows_a, rows_b]: Euclidean distances of the rows of a and b; differences in f32, squares and sums in f64.
// Product.
extern "C" __global__ void row_distances(
    const float *__restrict__ a, const float *__restrict__ b, int rows_a, int rows_b, int length,
    float *__restrict__ out)
{
    __shared__ float left[TILE][TILE + 1], right[TILE][TILE + 1]; // one more column: no bank conflicts
    const Operand left_rows = {a, rows_a, length, 1}, right_rows = {b, rows_b, length, 1};
    double sum = 0.0;
    for (int first = 0; first < length; first += TILE) {
        load_tile(left_rows, blockIdx.y * TILE, first, length, left);
        load_tile(right_rows, blockIdx.x * TILE, first, length, right);
        __syncthreads();
        for (int d = 0; d < TILE; d++) {
            const double difference = left[d][threadIdx.y] - right[d][threadIdx.x];
            sum = fma(difference, difference, sum); // the square of an f32 is exact
        }
        __syncthreads();
    }
    const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    if (row < rows_a && column < rows_b) out[(long long)row * rows_b + column] = (float)sqrt(sum);
}

constexpr int MAX_TAPS = 49;

// out [rows][taps][taps] = W W^T in f64, where W [taps][channels] is a row of w; at most MAX_TAPS taps. Rows.
extern "C" __global__ void row_gram(const float *__restrict__ w, int taps, int channels, double *__restrict__ out)
{
    constexpr int WIDTH = 32;                   // channels of a tile
    __shared__ float tile[MAX_TAPS][WIDTH + 1]; // one more column: no bank conflicts
    w += (long long)blockIdx.x * taps * channels;
    out += (long long)blockIdx.x * taps * taps;
    // A round for every THREADS elements of the result. Mirrored elements add the same products in the same order.
    for (int first = 0; first < taps * taps; first += THREADS) {
        const int element = first + threadIdx.x;
        const int i = element / taps, j = element % taps;
        double sum = 0.0;
        for (int from = 0; from < channels; from += WIDTH) {
            const int width = channels - from < WIDTH ? channels - from : WIDTH;
            for (int e = threadIdx.x; e < taps * WIDTH; e += THREADS) {
                const int tap = e / WIDTH, channel = e % WIDTH;
                if (channel < width) tile[tap][channel] = w[tap * channels + from + channel];
            }
            __syncthreads();
            if (i < taps)
                for (int c = 0; c < width; c++)
                    sum = fma((double)tile[i][c], (double)tile[j][c], sum); // the product of two f32 is exact
            __syncthreads();
        }
        if (i < taps) out[element] = sum;
    }
}

// One of the four passes of a selection by digits: over the elements of the chosen rows, with v the bits of |a - b|,
// counts[(v >> shift) & 255] += 1 where (v & mask) == prefix. counts [256]. Rows.
extern "C" __global__ void change_histogram(
    const float *__restrict__ a, const float *__restrict__ b, const unsigned char *__restrict__ chosen, int length,
    unsigned prefix, unsigned mask, int shift, unsigned *__restrict__ counts)
{
    __shared__ unsigned bins[THREADS];
    if (!chosen[blockIdx.x]) return; // for the whole block
    bins[threadIdx.x] = 0;
    __syncthreads();
    const long long row = (long long)blockIdx.x * length;
#pragma unroll 4
    for (int i = threadIdx.x; i < length; i += THREADS) {
        const unsigned v = __float_as_uint(fabsf(a[row + i] - b[row + i]));
        if ((v & mask) == prefix) atomicAdd(&bins[(v >> shift) & 255], 1u);
    }
    __syncthreads();
    if (bins[threadIdx.x]) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// w = 0 where |w - b| >= threshold in the chosen rows; zeroed[0] grows by the number of these elements. Rows.
extern "C" __global__ void zero_changed(
    float *__restrict__ w, const float *__restrict__ b, const unsigned char *__restrict__ chosen, int length,
    float threshold, unsigned *__restrict__ zeroed)
{
    __shared__ unsigned total;
    if (!chosen[blockIdx.x]) return; // for the whole block
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const long long row = (long long)blockIdx.x * length;
    unsigned count = 0;
    for (int i = threadIdx.x; i < length; i += THREADS)
        if (fabsf(w[row + i] - b[row + i]) >= threshold) {
            w[row + i] = 0.0f;
            count++;
        }
    if (count) atomicAdd(&total, count);
    __syncthreads();
    if (threadIdx.x == 0 && total) atomicAdd(zeroed, total);
}
