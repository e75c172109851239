// Batches of images.
#pragma once

#include "storage.cuh"

template <typename T>
static __device__ __forceinline__ void assemble_images(
    const unsigned char *__restrict__ images, const int *__restrict__ choices, const float *__restrict__ table, int n,
    int h, int w, T *__restrict__ out)
{
    const long long size = (long long)h * w * 3;
#pragma unroll 1
    for (ChannelWalk<1> at(3); at.i < n * size; at.next()) {
        const long long image = quotient(at.i, size);
        const int *choice = choices + image * 4;
        const int pixel = (int)(at.i - image * size) / 3, x = pixel % w;
        const int row = pixel / w + choice[1], column = (choice[3] ? w - 1 - x : x) + choice[2];
        const bool inside = row >= 0 && row < h && column >= 0 && column < w;
        const int byte =
            inside ? images[choice[0] * size + ((long long)row * w + column) * 3 + at.channel] : 0;
        store_one(out + at.i, table[at.channel * 256 + byte]);
    }
}

// out [n, h, w, 3]: normalised, shifted and flipped images. images [..][h][w][3] are the bytes of a whole split,
// choices [n][4] the image's index, row shift, column shift and flip, table [3][256] the value of each byte. A pixel is
// that of row y + row shift and column x' + column shift, where x' is x, or w - 1 - x if flipped; pixels outside the
// image are byte 0. Elementwise over n * h * w * 3, by single elements.
extern "C" __global__ void assemble(
    const unsigned char *__restrict__ images, const int *__restrict__ choices, const float *__restrict__ table, int n,
    int h, int w, float *__restrict__ out)
{
    assemble_images(images, choices, table, n, h, w, out);
}

extern "C" __global__ void assemble_bf16(
    const unsigned char *__restrict__ images, const int *__restrict__ choices, const float *__restrict__ table, int n,
    int h, int w, bf16 *__restrict__ out)
{
    assemble_images(images, choices, table, n, h, w, out);
}
