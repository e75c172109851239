// Matrix products by tiles in shared memory.
#pragma once

#include "index.cuh"

// A matrix as a product reads it.
struct Operand {
    const float *data;
    int length;            // rows of a left operand, columns of a right one
    long long line, depth; // distance of neighbours along `length` and along the summed axis
};

// Copies a tile of an operand into shared memory, tile[depth][line], with 0 outside; neighbouring threads read
// neighbouring elements.
static __device__ __forceinline__ void load_tile(
    const Operand &m, int first_line, int first_depth, int depths, float (*tile)[TILE + 1])
{
    const bool along_depth = m.depth == 1;
    const int l = along_depth ? threadIdx.y : threadIdx.x, d = along_depth ? threadIdx.x : threadIdx.y;
    const int line = first_line + l, depth = first_depth + d;
    tile[d][l] = line < m.length && depth < depths ? m.data[line * m.line + depth * m.depth] : 0.0f;
}

// Element (row, column) of the product of `left` and `right` for this thread, summed in order over `depths`.
// All threads of the block must take part.
static __device__ float product(const Operand &left, const Operand &right, int depths)
{
    __shared__ float a[TILE][TILE + 1], b[TILE][TILE + 1]; // one more column: no bank conflicts
    float sum = 0.0f;
    for (int first = 0; first < depths; first += TILE) {
        load_tile(left, blockIdx.y * TILE, first, depths, a);
        load_tile(right, blockIdx.x * TILE, first, depths, b);
        __syncthreads();
        for (int d = 0; d < TILE; d++) sum = fmaf(a[d][threadIdx.y], b[d][threadIdx.x], sum);
        __syncthreads();
    }
    return sum;
}
