// Checks every kernel and the three convolutions against plain loops, through the driver as a program uses it.
// Everything runs twice, with blocks and threads in order and in reverse; both must give the same bits.

#include "harness.h"

#include <csignal>
#include <functional>
#include <sys/wait.h>
#include <unistd.h>

namespace {

// Runs `f` in a child process without stderr; gives the signal that ended it, or 0.
int signal_of(const std::function<void()> &f)
{
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

void test_errors()
{
    std::fflush(stderr);
    const int shown = dup(STDERR_FILENO);
    if (!std::freopen("/dev/null", "w", stderr)) std::exit(1);

    const Buffer<float> v(Floats(10, 1.0f));
    void *context;
    must("cuCtxGetCurrent", &context);
    must("cuCtxSetCurrent", (void *)nullptr);
    check(driver("cuMemsetD8Async", v.address, (unsigned char)0, std::size_t(4), STREAM) == 201, "call out of context");
    must("cuCtxSetCurrent", context);
    void *kernel;
    check(driver("cuModuleGetFunction", &kernel, module, "no_such_kernel") == 500, "unknown kernel");
    void *other;
    must("cuModuleLoadData", &other, (const void *)"//\n.visible .entry scale(");
    check(driver("cuModuleGetFunction", &kernel, other, "scale") == 0, "kernel that the module has");
    check(driver("cuModuleGetFunction", &kernel, other, "mix") == 500, "kernel that the module lacks");
    must("cuModuleUnload", other);
    check(driver("cuModuleLoadData", &other, (const void *)"no PTX") == 200, "module that is no PTX");
    Floats host(10);
    check(try_launch("scale", {1, 1}, LINE, Address(host.data()), 2.0f, 10ll) == 700, "host memory in a kernel");
    check(try_launch("scale", {1, 1}, LINE, v.address + 2, 2.0f, 1ll) == 716, "misaligned pointer");
    check(try_launch("scale", {0, 1}, LINE, v.address, 2.0f, 10ll) == 1, "empty grid");
    check(try_launch("scale", {1, 1}, {2048, 1}, v.address, 2.0f, 10ll) == 1, "block too large");
    check(driver("cuMemcpyHtoDAsync_v2", v.address + 4, (const void *)host.data(), std::size_t(40), STREAM) == 1,
          "copy past the end");
    check(driver("cuMemsetD8Async", v.address, (unsigned char)0, std::size_t(41), STREAM) == 1, "memset past the end");
    check(driver("cuMemFreeAsync", v.address + 4, STREAM) == 1, "free of an inner address");

    const Buffer<float> fresh(3);
    for (const float f : fresh.values()) check(std::isnan(f), "fresh memory is NaN");
    check(signal_of([&] { try_launch("scale", {1, 1}, LINE, v.address, 2.0f, 1000ll); }) == SIGSEGV,
          "kernel far past the end");
    check(signal_of([&] {
              Address a;
              driver("cuMemAllocAsync", &a, std::size_t(20), STREAM);
              try_launch("scale", {1, 1}, LINE, a, 2.0f, 6ll);
              driver("cuMemFreeAsync", a, STREAM);
          }) == SIGABRT,
          "kernel one value past the end");

    test_refusals();

    std::size_t left = 0, total = 0, still_left = 0;
    setenv("EMULATED_CUDA_MEMORY_MIB", "3", 1);
    must("cuMemGetInfo_v2", &left, &total);
    check(total == std::size_t(3) << 20 && left < total && left > total / 2, "limited memory");
    {
        const Buffer<unsigned char> most(left - 1000);
        Address more;
        check(driver("cuMemAllocAsync", &more, std::size_t(1001), STREAM) == 2, "memory beyond the limit");
        check(driver("cuMemAllocAsync", &more, ~std::size_t(0), STREAM) == 2, "memory beyond any limit");
        must("cuMemAllocAsync", &more, std::size_t(1000), STREAM);
        must("cuMemGetInfo_v2", &still_left, &total);
        check(still_left == 0, "memory that is all in use");
        must("cuMemFreeAsync", more, STREAM);
    }
    must("cuMemGetInfo_v2", &still_left, &total);
    check(still_left == left, "memory that was given back");
    unsetenv("EMULATED_CUDA_MEMORY_MIB");

    std::fflush(stderr);
    dup2(shown, STDERR_FILENO);
    close(shown);
}

void test_counts()
{
    unsigned long long counts[8];
    driver("emulator_reset");
    {
        const Buffer<float> a(Floats(4, 1.0f)), b(4);
        launch("scale", {1, 1}, LINE, &a, 2.0f, 4ll);
        must("cuMemcpyDtoDAsync_v2", b.address, a.address, std::size_t(16), STREAM);
        check(b.values() == Floats(4, 2.0f), "copy on the device");
        must("cuMemsetD8Async", a.address, (unsigned char)0, std::size_t(16), STREAM);
    }
    driver("emulator_counts", &counts[0]);
    const unsigned long long want[8] = {1, 0, 2, 2, 1, 1, 1, 1};
    check(!std::memcmp(counts, want, sizeof want), "counts");
}

void run_all()
{
    random_state = 1;
    result_number = 0;
    test_activations();
    test_dense();
    test_vectors();
    test_neurons();
    test_convolutions();
}

} // namespace

int main()
{
    int device;
    void *context;
    must("cuInit", 0u);
    must("cuDeviceGet", &device, 0);
    must("cuDevicePrimaryCtxRetain", &context, device);
    must("cuCtxSetCurrent", context);
    must("cuModuleLoadData", &module, (const void *)"// no kernels named: all of them");
    run_all();
    driver("emulator_reverse", 1);
    reversed = true;
    run_all();
    driver("emulator_reverse", 0);
    test_errors();
    test_counts();
#define KERNEL(name) check(launched.count(#name), "no test of " #name);
#include "kernel_names.inc"
    std::printf("%zu results, %d failures\n", results.size(), failures);
    return failures != 0;
}
