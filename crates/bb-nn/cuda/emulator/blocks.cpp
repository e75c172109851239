// Runs the threads of a block as fibers on the calling thread.
//
// A fiber runs one thread after another until one of them reaches a barrier; then the next fiber takes over. A kernel
// without barriers so needs a single fiber and no switches. Fibers start through ucontext and switch by longjmp.

#include "emulator.h"
#include "shim.h"

#include <cstdio>
#include <memory>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

bool reverse_order = false;

namespace {

constexpr std::size_t STACK = 128 * 1024;

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool started = false;
    bool waiting = false; // at a barrier
    uint3 thread{};
};

jmp_buf scheduler;
Fiber *running;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber *> idle;

// The block that runs.
const Kernel *kernel;
void **parameters;
unsigned threads, begun, ended;

// Not inline, as `resume`.
__attribute__((noinline)) void to_scheduler(Fiber &fiber)
{
    if (!_setjmp(fiber.state)) _longjmp(scheduler, 1);
}

uint3 thread_number(unsigned i)
{
    if (reverse_order) i = threads - 1 - i;
    return {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
}

void fiber_main()
{
    for (;;) {
        while (begun < threads) {
            threadIdx = thread_number(begun++);
            kernel->call(parameters);
            ended++;
        }
        to_scheduler(*running);
    }
}

// Not inline: a frame that `longjmp` returns to must not keep other functions' variables.
__attribute__((noinline)) void resume(Fiber &fiber)
{
    running = &fiber;
    fiber.waiting = false;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

// Not inline, as `resume`: getcontext may return twice.
__attribute__((noinline)) void prepare(Fiber &fiber)
{
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
}

Fiber &idle_fiber()
{
    if (idle.empty()) {
        fibers.push_back(std::make_unique<Fiber>());
        prepare(*fibers.back());
        return *fibers.back();
    }
    Fiber &fiber = *idle.back();
    idle.pop_back();
    return fiber;
}

bool run_block()
{
    std::vector<Fiber *> waiting, resumed;
    const auto run = [&](Fiber &fiber) {
        resume(fiber);
        (fiber.waiting ? waiting : idle).push_back(&fiber);
    };
    clear_shared_memory();
    begun = ended = 0;
    while (begun < threads) run(idle_fiber());
    while (!waiting.empty()) {
        if (ended) {
            std::fprintf(stderr, "emulator: kernel %s: %u threads of a block ended, %zu wait at a barrier\n",
                         kernel->name, ended, waiting.size());
            idle.clear();
            fibers.clear();
            return false;
        }
        resumed.swap(waiting);
        for (Fiber *fiber : resumed) run(*fiber);
        resumed.clear();
    }
    return true;
}

} // namespace

bool run_grid(const Kernel &which, Dim3 grid, Dim3 block, void **with)
{
    kernel = &which;
    parameters = with;
    threads = block.x * block.y * block.z;
    gridDim = {grid.x, grid.y, grid.z};
    blockDim = {block.x, block.y, block.z};
    const unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
    for (unsigned long long n = 0; n < blocks; n++) {
        const unsigned long long i = reverse_order ? blocks - 1 - n : n;
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        if (!run_block()) return false;
    }
    return true;
}

} // namespace emulator

void __syncthreads()
{
    using namespace emulator;
    Fiber &self = *running;
    self.thread = threadIdx;
    self.waiting = true;
    to_scheduler(self);
    threadIdx = self.thread;
}
