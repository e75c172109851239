// libcuda.so.1: the calls of the CUDA driver that the engine makes, on host memory and without delay.
//
// A status that is not 0 is also explained on stderr. Function names are the exported ones of the real library.

#include "emulator.h"

#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>

namespace {

typedef unsigned long long Address; // CUdeviceptr

enum Status : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

struct {
    Status status;
    const char *name, *text;
} const NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "not a PTX text"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "no context is current"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "not an address of device memory"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "launch failed"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "not supported by the emulator"},
};

__attribute__((format(printf, 2, 3))) Status fail(Status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::fputs("emulator: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    return status;
}

// An allocation: an inaccessible page, guard bytes, the memory, fewer than ALIGNMENT guard bytes, an inaccessible page.
struct Allocation {
    std::size_t bytes;
    unsigned char *map;
    std::size_t map_bytes;
};

constexpr std::size_t ALIGNMENT = 16;
constexpr unsigned char GUARD = 0xA5, FRESH = 0xFF; // f32 and f64 made of FRESH are NaN

// What a graph does.
struct Graph {
    std::vector<std::function<int()>> work;
};

// A loaded module: the text of its PTX.
struct Module {
    std::string ptx;
};

enum Counter { LAUNCHES, CONVOLUTIONS, ALLOCATIONS, FREES, TO_DEVICE, FROM_DEVICE, ON_DEVICE, MEMSETS, COUNTERS };

struct State {
    std::recursive_mutex mutex; // held while anything below changes, and while a kernel runs
    bool initialised = false;
    std::map<std::uintptr_t, Allocation> memory; // by address
    std::size_t used = 0;                        // its bytes
    unsigned long long counts[COUNTERS] = {};
    int context = 0, stream = 0, event = 0, pool = 0; // their addresses serve as handles
};
State &state = *new State; // never destroyed: calls may come while the process ends
thread_local void *current_context = nullptr;
// What this thread's calls are added to instead of being done; those of other threads are done, as in a capture of mode
// "thread local".
thread_local Graph *recording = nullptr;

#define LOCK std::lock_guard<std::recursive_mutex> lock(state.mutex)
#define NEED(condition, status, ...)                                                                                   \
    if (!(condition)) return fail(status, __VA_ARGS__)
#define NEED_CONTEXT NEED(current_context, INVALID_CONTEXT, "%s: no context is current in this thread", __func__)

std::map<std::uintptr_t, Allocation>::iterator allocation_of(const void *pointer)
{
    auto next = state.memory.upper_bound((std::uintptr_t)pointer);
    return next == state.memory.begin() ? state.memory.end() : std::prev(next);
}

bool contains(const void *pointer, std::size_t bytes)
{
    LOCK;
    const auto a = allocation_of(pointer);
    if (a == state.memory.end()) return false;
    const std::size_t at = (std::uintptr_t)pointer - a->first;
    return at <= a->second.bytes && bytes <= a->second.bytes - at;
}

bool contains(Address address, std::size_t bytes)
{
    return contains((const void *)address, bytes);
}

// The size of the device's memory that EMULATED_CUDA_MEMORY_MIB sets. Without it, 1 GiB that may be exceeded.
std::size_t memory_bytes(bool *limited = nullptr)
{
    const char *text = std::getenv("EMULATED_CUDA_MEMORY_MIB");
    if (limited) *limited = text != nullptr;
    if (!text) return std::size_t(1) << 30;
    char *end;
    const unsigned long long mib = std::strtoull(text, &end, 10);
    if (end == text || *end || mib > 1ull << 30) {
        fail(INVALID_VALUE, "EMULATED_CUDA_MEMORY_MIB is `%s`, must be a number of MiB", text);
        std::abort();
    }
    return std::size_t(mib) << 20;
}

Status allocate(Address *out, std::size_t bytes)
{
    NEED(!recording, NOT_SUPPORTED, "allocation while a graph is recorded");
    NEED(out && bytes, INVALID_VALUE, "allocation of %zu bytes", bytes);
    LOCK;
    bool limited;
    const std::size_t size = memory_bytes(&limited);
    NEED(!limited || (bytes <= size && state.used <= size - bytes), OUT_OF_MEMORY,
         "allocation of %zu bytes, %zu of %zu are in use", bytes, state.used, size);
    const std::size_t page = sysconf(_SC_PAGESIZE), used = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const std::size_t inner = (used + page - 1) / page * page, total = inner + 2 * page;
    void *map = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(map != MAP_FAILED, OUT_OF_MEMORY, "allocation of %zu bytes", bytes);
    unsigned char *begin = (unsigned char *)map + page, *end = begin + inner;
    if (mprotect(begin, inner, PROT_READ | PROT_WRITE)) {
        munmap(map, total);
        return fail(OUT_OF_MEMORY, "allocation of %zu bytes", bytes);
    }
    unsigned char *memory = end - used;
    std::memset(begin, GUARD, memory - begin);
    std::memset(memory, FRESH, bytes);
    std::memset(memory + bytes, GUARD, used - bytes);
    state.used += bytes;
    state.memory[(std::uintptr_t)memory] = {bytes, (unsigned char *)map, total};
    state.counts[ALLOCATIONS]++;
    *out = (Address)memory;
    return SUCCESS;
}

Status release(Address address)
{
    LOCK;
    const auto a = state.memory.find((std::uintptr_t)address);
    NEED(a != state.memory.end(), INVALID_VALUE, "free of %#llx, which is not an allocation", address);
    const std::size_t page = sysconf(_SC_PAGESIZE);
    const unsigned char *memory = (unsigned char *)address;
    const unsigned char *begin = a->second.map + page, *end = a->second.map + a->second.map_bytes - page;
    for (const unsigned char *p = begin; p < end; p++) {
        if (p == memory) p += a->second.bytes;
        if (p < end && *p != GUARD) {
            // Most callers free in a destructor, which cannot report a status.
            fail(ILLEGAL_ADDRESS, "byte %td of an allocation of %zu bytes was written", p - memory, a->second.bytes);
            std::abort();
        }
    }
    munmap(a->second.map, a->second.map_bytes);
    state.used -= a->second.bytes;
    state.memory.erase(a);
    state.counts[FREES]++;
    return SUCCESS;
}

int check_pointer(const void *pointer, std::size_t alignment)
{
    if (!pointer) return SUCCESS; // optional parameters; reading it ends in `outside`
    NEED(contains(pointer, 0), ILLEGAL_ADDRESS, "%p is not in device memory", pointer);
    NEED((std::uintptr_t)pointer % alignment == 0, MISALIGNED_ADDRESS, "%p is not a multiple of %zu", pointer,
         alignment);
    return SUCCESS;
}

// Names the kernel that touched inaccessible memory (SIGSEGV), or memory at an address that does not fit the type
// (SIGILL, from the compiler's checks), then leaves the signal to whoever handled it before.
const char *launched = "";
struct sigaction previous_segv, previous_ill;

void wrong_access(int signal, siginfo_t *info, void *)
{
    char line[200];
    const char *what = signal == SIGSEGV ? "access outside of device memory" : "misaligned access, in the code";
    const int n = std::snprintf(line, sizeof line, "emulator: kernel %s: %s, at %p\n", launched, what, info->si_addr);
    if (write(STDERR_FILENO, line, n) < 0) _exit(1);
    sigaction(SIGSEGV, &previous_segv, nullptr);
    sigaction(SIGILL, &previous_ill, nullptr);
}

struct Watch {
    explicit Watch(const char *name)
    {
        launched = name;
        struct sigaction action = {};
        action.sa_sigaction = wrong_access;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGILL, &action, &previous_ill);
    }
    ~Watch()
    {
        sigaction(SIGSEGV, &previous_segv, nullptr);
        sigaction(SIGILL, &previous_ill, nullptr);
    }
};

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// ---- The emulator's own functions, see emulator.h

void emulator_reset(void)
{
    LOCK;
    std::memset(state.counts, 0, sizeof state.counts);
}

void emulator_counts(unsigned long long out[8])
{
    static_assert(COUNTERS == 8, "the documented number");
    LOCK;
    std::memcpy(out, state.counts, sizeof state.counts);
}

void emulator_reverse(int reverse)
{
    LOCK;
    emulator::reverse_order = reverse;
}

void emulator_count_convolution(void)
{
    LOCK;
    state.counts[CONVOLUTIONS]++;
}

int emulator_contains(const void *pointer, std::size_t bytes)
{
    return contains(pointer, bytes);
}

// ---- Start, errors, devices

int cuInit(unsigned flags)
{
    NEED(flags == 0, INVALID_VALUE, "cuInit: flags");
    state.initialised = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return SUCCESS;
}

int cuGetErrorName(int status, const char **name)
{
    for (const auto &n : NAMES)
        if (n.status == status) return *name = n.name, SUCCESS;
    return *name = nullptr, INVALID_VALUE;
}

int cuGetErrorString(int status, const char **text)
{
    for (const auto &n : NAMES)
        if (n.status == status) return *text = n.text, SUCCESS;
    return *text = nullptr, INVALID_VALUE;
}

int cuDeviceGetCount(int *count)
{
    NEED(state.initialised, NOT_INITIALIZED, "cuInit was not called");
    *count = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal)
{
    NEED(state.initialised, NOT_INITIALIZED, "cuInit was not called");
    NEED(ordinal == 0, INVALID_DEVICE, "there is one device, not number %d", ordinal);
    *device = 0;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int)
{
    std::snprintf(name, length, "emulated device");
    return SUCCESS;
}

int cuDeviceTotalMem_v2(std::size_t *bytes, int)
{
    *bytes = memory_bytes();
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int)
{
    switch (attribute) {
    case 1: *value = 1024; break;  // MAX_THREADS_PER_BLOCK
    case 10: *value = 32; break;   // WARP_SIZE
    case 16: *value = 2; break;    // MULTIPROCESSOR_COUNT
    case 39: *value = 2048; break; // MAX_THREADS_PER_MULTIPROCESSOR
    case 75: *value = 8; break;    // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = 0; break;    // COMPUTE_CAPABILITY_MINOR
    case 115: *value = 1; break;   // MEMORY_POOLS_SUPPORTED
    default: return fail(INVALID_VALUE, "unknown device attribute %d", attribute);
    }
    return SUCCESS;
}

// ---- Context

int cuDevicePrimaryCtxRetain(void **context, int)
{
    NEED(state.initialised, NOT_INITIALIZED, "cuInit was not called");
    *context = &state.context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int)
{
    return SUCCESS;
}

int cuCtxGetCurrent(void **context)
{
    *context = current_context;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context)
{
    NEED(!context || context == &state.context, INVALID_CONTEXT, "unknown context");
    current_context = context;
    return SUCCESS;
}

int cuCtxSynchronize(void)
{
    NEED_CONTEXT;
    return SUCCESS;
}

// ---- Streams and events: everything is done when the call returns

int cuStreamCreate(void **stream, unsigned)
{
    NEED_CONTEXT;
    *stream = &state.stream;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *)
{
    return SUCCESS;
}

int cuStreamSynchronize(void *)
{
    return SUCCESS;
}

int cuStreamWaitEvent(void *, void *, unsigned)
{
    return SUCCESS;
}

int cuStreamIsCapturing(void *, int *capturing)
{
    *capturing = recording != nullptr;
    return SUCCESS;
}

// ---- Graphs: what is asked for while one is recorded is kept, and done when it is launched

int emulator_recording(void)
{
    return recording != nullptr;
}

void emulator_record(const std::function<int()> &work)
{
    recording->work.push_back(work);
}

int cuStreamBeginCapture_v2(void *, int mode)
{
    const int thread_local_mode = 1;
    NEED_CONTEXT;
    NEED(mode == thread_local_mode, NOT_SUPPORTED, "capture mode %d", mode);
    NEED(!recording, INVALID_VALUE, "a graph is being recorded already");
    recording = new Graph;
    return SUCCESS;
}

int cuStreamEndCapture(void *, void **graph)
{
    NEED(recording, INVALID_VALUE, "no graph is being recorded");
    *graph = recording;
    recording = nullptr;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags)
{
    NEED(graph && flags == 0, INVALID_VALUE, "cuGraphInstantiateWithFlags: graph or flags");
    *executable = new Graph(*(const Graph *)graph);
    return SUCCESS;
}

int cuGraphLaunch(void *executable, void *)
{
    NEED_CONTEXT;
    NEED(executable, INVALID_HANDLE, "launch of no graph");
    NEED(!emulator_recording(), NOT_SUPPORTED, "a graph is launched while another is recorded");
    for (const auto &work : ((const Graph *)executable)->work)
        if (const int status = work()) return status;
    return SUCCESS;
}

int cuGraphExecDestroy(void *executable)
{
    delete (Graph *)executable;
    return SUCCESS;
}

int cuGraphDestroy(void *graph)
{
    delete (Graph *)graph;
    return SUCCESS;
}

int cuEventCreate(void **event, unsigned)
{
    NEED_CONTEXT;
    *event = &state.event;
    return SUCCESS;
}

int cuEventDestroy_v2(void *)
{
    return SUCCESS;
}

int cuEventRecord(void *, void *)
{
    return SUCCESS;
}

int cuEventQuery(void *)
{
    return SUCCESS;
}

int cuEventSynchronize(void *)
{
    return SUCCESS;
}

int cuEventElapsedTime_v2(float *milliseconds, void *, void *)
{
    *milliseconds = 0;
    return SUCCESS;
}

// ---- Memory

int cuMemAllocAsync(Address *address, std::size_t bytes, void *)
{
    NEED_CONTEXT;
    return allocate(address, bytes);
}

int cuMemAlloc_v2(Address *address, std::size_t bytes)
{
    NEED_CONTEXT;
    return allocate(address, bytes);
}

int cuMemFreeAsync(Address address, void *)
{
    NEED_CONTEXT;
    return release(address);
}

int cuMemFree_v2(Address address)
{
    NEED_CONTEXT;
    return release(address);
}

int cuMemGetInfo_v2(std::size_t *left, std::size_t *total)
{
    LOCK;
    *total = memory_bytes();
    *left = state.used < *total ? *total - state.used : 0;
    return SUCCESS;
}

int cuDeviceGetDefaultMemPool(void **pool, int)
{
    *pool = &state.pool;
    return SUCCESS;
}

int cuMemPoolSetAttribute(void *, int, void *)
{
    return SUCCESS;
}

// Page-locked host memory is ordinary memory.
int cuMemHostAlloc(void **memory, std::size_t bytes, unsigned)
{
    NEED_CONTEXT;
    *memory = std::malloc(bytes);
    return *memory ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *memory)
{
    std::free(memory);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, std::size_t bytes, void *)
{
    NEED_CONTEXT;
    LOCK;
    NEED(!recording, NOT_SUPPORTED, "%s while a graph is recorded", __func__);
    NEED(contains(to, bytes), INVALID_VALUE, "copy of %zu bytes to %#llx: not in device memory", bytes, to);
    std::memcpy((void *)to, from, bytes);
    state.counts[TO_DEVICE]++;
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void *to, Address from, std::size_t bytes, void *)
{
    NEED_CONTEXT;
    LOCK;
    NEED(!recording, NOT_SUPPORTED, "%s while a graph is recorded", __func__);
    NEED(contains(from, bytes), INVALID_VALUE, "copy of %zu bytes from %#llx: not in device memory", bytes, from);
    std::memcpy(to, (const void *)from, bytes);
    state.counts[FROM_DEVICE]++;
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, std::size_t bytes, void *)
{
    NEED_CONTEXT;
    LOCK;
    NEED(contains(to, bytes) && contains(from, bytes), INVALID_VALUE,
         "copy of %zu bytes from %#llx to %#llx: not in device memory", bytes, from, to);
    NEED(to + bytes <= from || from + bytes <= to, INVALID_VALUE, "copy of %zu bytes onto itself", bytes);
    const auto copy = [=] {
        std::memcpy((void *)to, (const void *)from, bytes);
        state.counts[ON_DEVICE]++;
        return int(SUCCESS);
    };
    if (!recording) return copy();
    emulator_record(copy);
    return SUCCESS;
}

int cuMemsetD8Async(Address to, unsigned char value, std::size_t bytes, void *)
{
    NEED_CONTEXT;
    LOCK;
    NEED(!recording, NOT_SUPPORTED, "%s while a graph is recorded", __func__);
    NEED(contains(to, bytes), INVALID_VALUE, "memset of %zu bytes at %#llx: not in device memory", bytes, to);
    std::memset((void *)to, value, bytes);
    state.counts[MEMSETS]++;
    return SUCCESS;
}

int cuMemcpyHtoD_v2(Address to, const void *from, std::size_t bytes)
{
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}

int cuMemcpyDtoH_v2(void *to, Address from, std::size_t bytes)
{
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}

int cuMemcpyDtoD_v2(Address to, Address from, std::size_t bytes)
{
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

int cuMemsetD8_v2(Address to, unsigned char value, std::size_t bytes)
{
    return cuMemsetD8Async(to, value, bytes, nullptr);
}

// ---- Modules and launches

// Any PTX text stands for the kernels as they were when the emulator was built. One without kernels (of a
// build without a compiler) offers them all; from any other only kernels that it names can be taken.
int cuModuleLoadData(void **module, const void *image)
{
    NEED_CONTEXT;
    const char *text = (const char *)image;
    NEED(text && (!std::strncmp(text, "//", 2) || !std::strncmp(text, ".version", 8)), INVALID_IMAGE,
         "the module is not a PTX text");
    *module = new Module{text};
    return SUCCESS;
}

int cuModuleUnload(void *module)
{
    delete (Module *)module;
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name)
{
    const std::string &ptx = ((Module *)module)->ptx;
    const auto has = [&](const std::string &part) { return ptx.find(part) != std::string::npos; };
    const bool named = !has(".entry ") || has(std::string(".entry ") + name + "(");
    const emulator::Kernel *kernel = emulator::find_kernel(name);
    NEED(named && kernel, NOT_FOUND, "there is no kernel %s", name);
    *function = (void *)kernel;
    return SUCCESS;
}

int cuLaunchKernel(
    void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared_bytes, void *, void **parameters, void **extra)
{
    NEED_CONTEXT;
    LOCK;
    NEED(function, INVALID_HANDLE, "launch of no kernel");
    const emulator::Kernel &kernel = *(const emulator::Kernel *)function;
    const unsigned long long threads = (unsigned long long)block_x * block_y * block_z;
    NEED(grid_x && grid_y && grid_z && grid_x <= 0x7FFFFFFF && grid_y <= 0xFFFF && grid_z <= 0xFFFF, INVALID_VALUE,
         "kernel %s: grid %u x %u x %u", kernel.name, grid_x, grid_y, grid_z);
    NEED(threads && threads <= 1024 && block_z <= 64, INVALID_VALUE, "kernel %s: block %u x %u x %u", kernel.name,
         block_x, block_y, block_z);
    NEED(shared_bytes == 0 && !extra && parameters, INVALID_VALUE, "kernel %s: dynamic shared memory or `extra`",
         kernel.name);
    if (const int status = kernel.check_pointers(parameters, check_pointer)) {
        fail((Status)status, "kernel %s: pointer parameter", kernel.name);
        return status;
    }
    const auto run = [=, &kernel](void **with) {
        LOCK;
        state.counts[LAUNCHES]++;
        Watch watch(kernel.name);
        const bool done =
            emulator::run_grid(kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, with);
        return int(done ? SUCCESS : LAUNCH_FAILED);
    };
    if (!recording) return run(parameters);
    // The caller's parameters are gone when the graph is launched.
    std::vector<std::vector<unsigned char>> kept;
    for (std::size_t i = 0; i < kernel.count; i++) {
        const unsigned char *from = (const unsigned char *)parameters[i];
        kept.emplace_back(from, from + kernel.sizes[i]);
    }
    emulator_record([=] {
        std::vector<void *> with;
        for (const auto &parameter : kept) with.push_back((void *)parameter.data());
        return run(with.data());
    });
    return SUCCESS;
}

} // extern "C"
#pragma GCC visibility pop
