// What the checks share: calls of the two libraries, arrays in device memory, comparisons.
#pragma once

#include "../emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

typedef unsigned long long Address;
typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;
typedef std::vector<int> Ints;

inline int failures = 0;

inline void check(bool good, const std::string &what)
{
    if (good) return;
    failures++;
    std::printf("FAILED: %s\n", what.c_str());
}

// ---- The libraries

inline void *open_library(const char *name)
{
    void *library = dlopen(name, RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        std::exit(1);
    }
    return library;
}

inline void *function(void *library, const char *name)
{
    void *f = dlsym(library, name);
    if (!f) {
        std::printf("missing function %s\n", name);
        std::exit(1);
    }
    return f;
}

// A call of an exported function by name; the argument types are those given.
template <typename... A> int driver(const char *name, A... arguments)
{
    static void *const library = open_library("libcuda.so.1");
    return ((int (*)(A...))function(library, name))(arguments...);
}

template <typename... A> int dnn(const char *name, A... arguments)
{
    static void *const library = open_library("libcudnn.so.9");
    return ((int (*)(A...))function(library, name))(arguments...);
}

template <typename... A> void must(const char *name, A... arguments)
{
    check(driver(name, arguments...) == 0, name);
}

inline void *const STREAM = nullptr;

// An array in device memory. With an offset it begins that many elements after a multiple of 16 bytes, as a view of a
// larger array may.
template <typename T> struct Buffer {
    Address address = 0;
    std::size_t length, offset;

    explicit Buffer(std::size_t length, std::size_t offset = 0) : length(length), offset(offset)
    {
        must("cuMemAllocAsync", &address, (offset + length) * sizeof(T), STREAM);
        address += offset * sizeof(T);
    }
    explicit Buffer(const std::vector<T> &values, std::size_t offset = 0) : Buffer(values.size(), offset)
    {
        must("cuMemcpyHtoDAsync_v2", address, (const void *)values.data(), length * sizeof(T), STREAM);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer()
    {
        const std::vector<unsigned char> before = bytes(base(), offset * sizeof(T));
        for (const unsigned char b : before) check(b == 0xFF, "memory before a view was written"); // it was fresh
        must("cuMemFreeAsync", base(), STREAM);
    }

    std::vector<T> values() const
    {
        std::vector<T> out(length);
        const std::vector<unsigned char> in = bytes(address, length * sizeof(T));
        if (length) std::memcpy(static_cast<void *>(out.data()), in.data(), in.size());
        return out;
    }

private:
    Address base() const { return address - offset * sizeof(T); }

    static std::vector<unsigned char> bytes(Address from, std::size_t size)
    {
        std::vector<unsigned char> out(size);
        if (size) must("cuMemcpyDtoHAsync_v2", (void *)out.data(), from, size, STREAM);
        return out;
    }
};

struct Grid {
    unsigned x, y;
};
struct Block {
    unsigned x, y;
};

inline void *module;
inline std::set<std::string> launched;

template <typename T> T parameter(T value)
{
    return value;
}

template <typename T> Address parameter(const Buffer<T> *buffer)
{
    return buffer->address;
}

template <typename... A> int try_launch(const std::string &name, Grid grid, Block block, A... arguments)
{
    void *kernel = nullptr;
    if (const int status = driver("cuModuleGetFunction", &kernel, module, name.c_str())) return status;
    launched.insert(name);
    void *parameters[] = {&arguments...};
    return driver("cuLaunchKernel", kernel, grid.x, grid.y, 1u, block.x, block.y, 1u, 0u, STREAM, (void **)parameters,
                  (void **)nullptr);
}

// Buffers are given by address; the other arguments must have exactly the kernel's types.
template <typename... A> void launch(const std::string &name, Grid grid, Block block, const A &...arguments)
{
    check(try_launch(name, grid, block, parameter(arguments)...) == 0, "launch of " + name);
}

inline const Block LINE = {256, 1}, COLUMN = {32, 8}, TILE = {16, 16};

// Grids for n elements: too small for one element per thread where n > 512, and enough for that.
inline std::vector<Grid> grids(long long n)
{
    return {{n > 256 ? 2u : 1u, 1}, {unsigned((n + 255) / 256), 1}};
}

inline Grid some_blocks(long long n)
{
    return grids(n)[0];
}

inline unsigned quotient(int a, int b)
{
    return (a + b - 1) / b;
}

// ---- Values and comparisons

inline unsigned long long random_state;

inline float random_float()
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return float(int(random_state >> 40) - (1 << 23)) / float(1 << 22); // -2..2
}

inline Floats random_floats(std::size_t n)
{
    Floats v(n);
    for (float &x : v) x = random_float();
    return v;
}

inline Floats positive_floats(std::size_t n)
{
    Floats v = random_floats(n);
    for (float &x : v) x = std::fabs(x) + 0.1f;
    return v;
}

// The bytes of all results of the first run, for the second one.
inline std::vector<std::vector<unsigned char>> results;
inline bool reversed = false;
inline std::size_t result_number = 0;

template <typename T> void same_as_first_run(const std::string &what, const std::vector<T> &got)
{
    std::vector<unsigned char> bytes(got.size() * sizeof(T));
    std::memcpy(bytes.data(), got.data(), bytes.size());
    if (!reversed)
        results.push_back(bytes);
    else
        check(result_number < results.size() && results[result_number] == bytes, what + ": depends on the order");
    result_number++;
}

// ---- Storage

struct Bf16 {
    std::uint16_t bits;
    operator float() const { return emulator::from_bf16(bits); }
};

// As it is stored in device memory.
template <typename T> std::vector<T> stored(const Floats &values);

template <> inline Floats stored(const Floats &values)
{
    return values;
}

template <> inline std::vector<Bf16> stored(const Floats &values)
{
    std::vector<Bf16> out;
    for (const float v : values) out.push_back({emulator::to_bf16(v)});
    return out;
}

// What is left of the values when they are stored.
template <typename T> Floats rounded(const Floats &values)
{
    const std::vector<T> in = stored<T>(values);
    return Floats(in.begin(), in.end());
}

template <typename T> constexpr bool IS_BF16 = std::is_same_v<T, Bf16>;

// The relative error of one rounding to T.
template <typename T> constexpr double ROUNDING = IS_BF16<T> ? 1.0 / 256 : 0.0;

// The kernel of that name for activations in T.
template <typename T> std::string kernel(const char *name)
{
    return std::string(name) + (IS_BF16<T> ? "_bf16" : "");
}

// ---- Comparisons

// Every value within `tolerance` of the wanted one, relative to its size plus `size`, and within one rounding to T. NaN
// must meet NaN.
template <typename T>
void near(
    const std::string &what, const std::vector<T> &got, const Doubles &want, double size = 1, double tolerance = 3e-6)
{
    same_as_first_run(what, got);
    check(got.size() == want.size(), what + ": length");
    for (std::size_t i = 0; i < want.size(); i++) {
        const double g = got[i];
        const bool close =
            std::fabs(g - want[i]) <= tolerance * (std::fabs(want[i]) + size) + ROUNDING<T> * std::fabs(want[i]);
        if (std::isnan(want[i]) ? std::isnan(g) : close) continue;
        char line[200];
        std::snprintf(line, sizeof line, "%s: value %zu is %.9g, must be %.9g", what.c_str(), i, g, want[i]);
        check(false, line);
        return;
    }
}

template <typename T>
void near(
    const std::string &what, const Buffer<T> &buffer, const Doubles &want, double size = 1, double tolerance = 3e-6)
{
    near(what, buffer.values(), want, size, tolerance);
}

// Every value exactly the wanted one, bit by bit; NaN must meet NaN.
template <typename T> void equal(const std::string &what, const std::vector<T> &got, const std::vector<T> &want)
{
    same_as_first_run(what, got);
    check(got.size() == want.size(), what + ": length");
    for (std::size_t i = 0; i < want.size(); i++) {
        if (!std::memcmp(&got[i], &want[i], sizeof(T)) || (std::isnan(double(got[i])) && std::isnan(double(want[i]))))
            continue;
        char line[200];
        std::snprintf(line, sizeof line, "%s: value %zu is %.9g, must be %.9g", what.c_str(), i, double(got[i]),
                      double(want[i]));
        check(false, line);
        return;
    }
}

template <typename T> void equal(const std::string &what, const Buffer<T> &buffer, const std::vector<T> &want)
{
    equal(what, buffer.values(), want);
}

inline Doubles doubles(const Floats &v)
{
    return Doubles(v.begin(), v.end());
}

// ---- The parts

void test_activations();  // normalisation, pooling, batches
void test_dense();        // the linear layer and the loss
void test_vectors();      // storage, sums, optimisers, norms
void test_neurons();      // rows of weights
void test_convolutions(); // cuDNN
void test_refusals();     // and what it refuses
