// kernels.cu and its parts for the host, and their kernels by name.

#include "shim.h"

#include "../kernels.cu"

#include "emulator.h"

#include <cstring>
#include <type_traits>
#include <utility>

// The bounds of the section, from the linker.
extern "C" __attribute__((visibility("hidden"))) char __start_device_shared[], __stop_device_shared[];

namespace emulator {
namespace {

// Unpacks parameters by the kernel's own signature.
template <auto F> struct Unpack;

template <typename... A, void (*F)(A...)> struct Unpack<F> {
    static constexpr std::size_t count = sizeof...(A), sizes[] = {sizeof(A)...};

    static void call(void **parameters) { call(parameters, std::index_sequence_for<A...>()); }

    static int check(void **parameters, int (*check_one)(const void *, std::size_t))
    {
        return check(parameters, check_one, std::index_sequence_for<A...>());
    }

private:
    template <std::size_t... I> static void call(void **parameters, std::index_sequence<I...>)
    {
        F(*static_cast<A *>(parameters[I])...);
    }

    template <std::size_t... I>
    static int check(void **parameters, int (*check_one)(const void *, std::size_t), std::index_sequence<I...>)
    {
        int status = 0;
        ((status = status ? status : one<A>(parameters[I], check_one)), ...);
        return status;
    }

    template <typename T> static int one(void *parameter, int (*check_one)(const void *, std::size_t))
    {
        if constexpr (std::is_pointer_v<T>)
            return check_one(*static_cast<T *>(parameter), alignof(std::remove_pointer_t<T>));
        return 0;
    }
};

#define KERNEL(name)                                                                                                   \
    {#name, &Unpack<&::name>::call, &Unpack<&::name>::check, Unpack<&::name>::sizes, Unpack<&::name>::count},
const Kernel kernels[] = {
#include "kernel_names.inc" // made from their source by scripts/emulate_cuda.sh
};

} // namespace

const Kernel *find_kernel(const char *name)
{
    for (const Kernel &kernel : kernels)
        if (!std::strcmp(kernel.name, name)) return &kernel;
    return nullptr;
}

void clear_shared_memory()
{
    std::memset(__start_device_shared, 0xFF, __stop_device_shared - __start_device_shared);
}

} // namespace emulator
