// What the parts of the emulator know of each other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulator {

// bf16 by arithmetic, where the kernels work on bits, so that each checks the other.
inline float from_bf16(std::uint16_t bits)
{
    const std::uint32_t wide = std::uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// The nearest bf16, the even one of two equally near. NaN becomes 0x7FFF, as on a GPU.
inline std::uint16_t to_bf16(double value)
{
    if (std::isnan(value)) return 0x7FFF;
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    value = std::fabs(value);
    int exponent; // of a value with eight bits before the point
    std::frexp(value, &exponent);
    exponent = value < std::ldexp(1.0, -126) ? -133 : exponent - 8;
    if (value == 0 || std::isinf(value)) exponent = 0;
    // To an integer, to the nearest even one (the default rounding mode), and back: exact in f32 or beyond its range.
    const float rounded = float(std::ldexp(std::nearbyint(std::ldexp(value, -exponent)), exponent));
    std::uint32_t wide;
    std::memcpy(&wide, &rounded, sizeof wide);
    return sign | std::uint16_t(wide >> 16);
}

struct Dim3 {
    unsigned x, y, z;
};

// One of the engine's kernels.
struct Kernel {
    const char *name;
    // Calls it with the parameters of cuLaunchKernel, for the current thread.
    void (*call)(void **parameters);
    // Checks its pointers with `check(pointer, alignment)`; gives the first status that is not 0.
    int (*check_pointers)(void **parameters, int (*check)(const void *, std::size_t));
    // Sizes of its parameters, and how many there are.
    const std::size_t *sizes;
    std::size_t count;
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
// Whether calls are being recorded for a graph.
int emulator_recording(void);
// Adds `work` to the graph; its status is that of the launch.
void emulator_record(const std::function<int()> &work);
// Whether [pointer, pointer + bytes) lies in one live allocation.
int emulator_contains(const void *pointer, std::size_t bytes);
}
