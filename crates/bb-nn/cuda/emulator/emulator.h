// What the parts of the emulator know of each other.
#pragma once

#include <cstddef>

namespace emulator {

struct Dim3 {
    unsigned x, y, z;
};

// One kernel of kernels.cu.
struct Kernel {
    const char *name;
    // Calls it with the parameters of cuLaunchKernel, for the current thread.
    void (*call)(void **parameters);
    // Checks its pointers with `check(pointer, alignment)`; gives the first status that is not 0.
    int (*check_pointers)(void **parameters, int (*check)(const void *, std::size_t));
};

// The kernel of that name, or null.
const Kernel *find_kernel(const char *name);

// Runs a kernel over a grid. False if some threads of a block ended while others waited at a barrier.
bool run_grid(const Kernel &kernel, Dim3 grid, Dim3 block, void **parameters);

// Whether blocks, and threads between two barriers, run from the last to the first.
extern bool reverse_order;

// Fills the shared memory with 0xFF, as at the start of a block.
void clear_shared_memory();

} // namespace emulator

// Exported by libcuda for libcudnn and for tests.
extern "C" {
// Zeroes the counters.
void emulator_reset(void);
// Kernel launches, cuDNN convolutions, allocations, frees, copies to the device, from it and on it, memsets.
void emulator_counts(unsigned long long out[8]);
// Non-zero: blocks and threads run from the last to the first from now on.
void emulator_reverse(int reverse);
// Counts one convolution.
void emulator_count_convolution(void);
// Whether [pointer, pointer + bytes) lies in one live allocation.
int emulator_contains(const void *pointer, std::size_t bytes);
}
