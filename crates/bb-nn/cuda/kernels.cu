// The engine's CUDA kernels. The parts lie in kernels/, one subject each.
//
// Arithmetic is f32 unless said otherwise. Activations and their gradients are stored as f32 or, by the kernels named
// `..._bf16`, as bf16, rounded once when they are written. Images are NHWC, so an activation is a row-major matrix
// [rows, c] with rows = n * h * w. Compiled with -fmad=false: only what is written `fma` is fused, as in the CPU
// kernels. Sums run in a fixed order (shared memory and barriers), so every run gives the same bits; atomics add
// integers only.
//
// Launch shapes, unless a kernel says otherwise:
//   elementwise    one-dimensional, 256 threads, any grid (the loops stride by the grid)
//   per channel    one-dimensional, at least c threads
//   column sums    block (32, 8), grid (parts, ceil(c / 32))
//   joined sums    block (32, 32), grid ceil(c / 32)
//   products       block (16, 16), grid (ceil(columns / 16), ceil(rows / 16)) of the result
//   block sums     256 threads
//   rows           block sums, one block per row
//   tensors        block sums, grid (parts, tensors)
// Elementwise kernels move 16 bytes per access where all their pointers are multiples of 16 bytes and, if they know
// channels, c is a multiple of the group (4 f32 or 8 bf16); elsewhere single elements. A grid of n / 4 or n / 8 threads
// is then enough.
//
// The same files are compiled for the host by the emulator, see emulator/README.md.

#include "kernels/norm.cuh"
#include "kernels/pool.cuh"
#include "kernels/linear.cuh"
#include "kernels/loss.cuh"
#include "kernels/batch.cuh"
#include "kernels/vector.cuh"
#include "kernels/neuron.cuh"
