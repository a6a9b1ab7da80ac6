/*
 * Runs launches for the emulated GPU: blocks, threads, barriers, warp operations and faults.
 *
 * A block runs on one OS thread, so that thread_local serves as __shared__ memory. Up to
 * RESIDENT_BLOCKS blocks of a launch run at once.
 *
 * The threads of a block take turns. A fiber (a stack of its own) starts them one after another,
 * as a plain loop would; only when a thread has to wait does its stack stay with it, and another
 * fiber starts the remaining ones. A kernel without barriers so never switches, and no kernel
 * has to be classified. Compiled kernels call __sanitizer_cov_trace_pc() at each basic block;
 * a thread that used up its slice there gives way, so a loop that polls memory starves nobody.
 */
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "runtime.h"

/* The built-in variables; initial-exec, because kernels read them all the time. */
__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace {

constexpr unsigned WARP = 32, MAX_THREADS = 1024, RESIDENT_BLOCKS = 64;
constexpr unsigned SLICE = 4096;          /* basic blocks, some 10 us */
constexpr size_t STACK = 256 << 10, GUARD = 64 << 10;
constexpr int EXIT_FAULT = 70;

typedef unsigned long long u64;

enum State : unsigned char { READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber;

struct Thread {
    State state;
    int operation;                        /* what it waits for: GD_BARRIER..., GD_SHUFFLE... */
    unsigned mask, argument;              /* of a warp operation */
    u64 value, result;
    uint3 index;
    Fiber *fiber;
};

struct Fiber {
    jmp_buf context;
    ucontext_t birth;
    char *stack;
    Thread *thread;                       /* null: has nothing to run */
};

struct Launch {
    gd_entry_t entry;
    const char *name;
    int stream;
    dim3 grid, block;
    const void *arguments;
    u64 blocks;
    bool cooperative;
    mutable std::atomic<u64> arrivals{0};  /* of blocks at the barrier of the grid, ever */
    std::atomic<u64> next{0}, finished{0};
    std::atomic<unsigned> resident{0};
    std::mutex mutex;
    std::condition_variable done;
};

u64 nanoseconds()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* ---- faults: the reason goes into a file that the program reads when this process is gone ---- */

int obituary = -1;
std::atomic_flag dying = ATOMIC_FLAG_INIT;

/* One OS thread that runs blocks. */
struct Worker {
    const Launch *launch = nullptr;
    unsigned count = 0, started = 0, done = 0;
    unsigned at_barrier = 0, in_warp = 0, sleeping = 0;
    Fiber *current = nullptr;             /* null: not inside a kernel */
    jmp_buf home;
    Thread threads[MAX_THREADS];
    std::deque<Fiber *> ready;
    std::vector<Fiber *> idle, all;
    char *signal_stack = nullptr;

    ~Worker();
    Fiber *fresh();
    void trim();
    void run_block(const Launch &work, u64 linear);
    void start_threads(Fiber *self);
    size_t others() const { return count - started + ready.size(); }
    void suspend();
    void make_way();
    void sleep(unsigned duration);
    [[noreturn]] void dispatch();
    void wake(Thread &thread, u64 result);
    bool finish_barrier();
    bool finish_warp(unsigned first, unsigned mask);
    void finish_waiters_of(Thread &thread);
};

/* A stack takes two of the 65530 mappings that a process may have (vm.max_map_count): so many threads
 * may wait at once, and above so many stacks a block's are given back when it is done. */
constexpr unsigned RESIDENT_THREADS = 16384, KEPT_STACKS = 8192, KEPT_BY_WORKER = 64;
std::atomic<unsigned> stacks{0};

__thread Worker *worker;
__thread unsigned budget = SLICE;

[[noreturn]] void die(const char *format, ...)
{
    if (dying.test_and_set())
        for (;;)
            pause();
    char text[1024];
    const Worker *w = worker;
    const Launch *launch = w ? w->launch : nullptr;
    int n = snprintf(text, sizeof text, "%d\n", launch ? launch->stream : -1);
    va_list list;
    va_start(list, format);
    n += vsnprintf(text + n, sizeof text - n, format, list);
    va_end(list);
    if (launch && n < (int)sizeof text) {
        n += snprintf(text + n, sizeof text - n, ", in kernel '%s', block (%u, %u, %u)",
                      launch->name, blockIdx.x, blockIdx.y, blockIdx.z);
        if (w->current && w->current->thread && n < (int)sizeof text)
            n += snprintf(text + n, sizeof text - n, ", thread (%u, %u, %u)",
                          threadIdx.x, threadIdx.y, threadIdx.z);
    }
    if (n > (int)sizeof text)
        n = sizeof text;
    if (pwrite(obituary, text, n, 0) < 0)
        _exit(EXIT_FAULT + 1);
    _exit(EXIT_FAULT);
}

void on_fault(int number, siginfo_t *info, void *)
{
    const Fiber *fiber = worker ? worker->current : nullptr;
    const char *address = static_cast<const char *>(info->si_addr);
    if (!fiber) {                         /* not a kernel's fault: let it be seen as it is */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    switch (number) {
    case SIGSEGV:
        if (address >= fiber->stack && address < fiber->stack + GUARD)
            die("a thread used more than its %zu KiB of stack", STACK >> 10);
        if (info->si_code == SEGV_MAPERR)
            die("illegal address %p: nothing is mapped there", address);
        if (info->si_code == SEGV_ACCERR)
            die("illegal address %p: the memory does not permit this access", address);
        die("illegal address: not one that a pointer can have");
    case SIGBUS:
        die("illegal address %p: no memory behind it (SIGBUS)", address);
    case SIGFPE:
        die("integer division by zero, or its result does not fit (SIGFPE)");
    case SIGABRT:
        die("abort() was called");
    default:
        die("illegal instruction (signal %d)", number);
    }
}

/* ---- the threads of a block ---- */

void fiber_main()
{
    Worker *w = worker;
    Fiber *self = w->current;
    for (;;) {
        w->start_threads(self);
        w->idle.push_back(self);
        w->suspend();
    }
}

Fiber *Worker::fresh()
{
    void *memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE))
        die("no memory for the stack of one more thread (%zu in this block have one)", all.size());
    Fiber *fiber = new Fiber();
    fiber->stack = static_cast<char *>(memory);
    getcontext(&fiber->birth);
    fiber->birth.uc_stack.ss_sp = fiber->stack + GUARD;
    fiber->birth.uc_stack.ss_size = STACK;
    makecontext(&fiber->birth, fiber_main, 0);
    all.push_back(fiber);
    stacks++;
    return fiber;
}

/* Give back the stacks that no thread is on. */
void Worker::trim()
{
    while (all.size() > KEPT_BY_WORKER && !idle.empty()) {
        Fiber *fiber = idle.back();
        idle.pop_back();
        all.erase(std::find(all.begin(), all.end(), fiber));
        munmap(fiber->stack, GUARD + STACK);
        delete fiber;
        stacks--;
    }
}

Worker::~Worker()
{
    for (Fiber *fiber : all) {
        munmap(fiber->stack, GUARD + STACK);
        delete fiber;
        stacks--;
    }
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    free(signal_stack);
}

/* Go on with another fiber: one that starts threads as long as there are any, then those ready. */
void Worker::dispatch()
{
    if (started < count) {
        if (idle.empty()) {
            current = fresh();
            setcontext(&current->birth);
        }
        current = idle.back();
        idle.pop_back();
        _longjmp(current->context, 1);
    }
    if (!ready.empty()) {
        current = ready.front();
        ready.pop_front();
        _longjmp(current->context, 1);
    }
    if (done == count)
        _longjmp(home, 1);

    current->thread = nullptr;            /* it is nobody's fault in particular */
    unsigned mask = 0;
    for (unsigned i = 0; i < count; i++)
        if (threads[i].state == IN_WARP)
            mask = threads[i].mask;
    die("deadlock: %u threads wait in a warp operation (mask 0x%08x) that other lanes of the mask "
        "never reach; %u wait in __syncthreads(), %u have ended",
        in_warp, mask, at_barrier, done);
}

__attribute__((noinline)) void Worker::suspend()
{
    if (_setjmp(current->context) == 0)
        dispatch();
    if (current->thread)
        threadIdx = current->thread->index;
}

/* Let the other threads of the block run, and stay ready. */
void Worker::make_way()
{
    ready.push_back(current);
    suspend();
}

/* __nanosleep(): the OS thread sleeps when all threads of the block that could run do. */
void Worker::sleep(unsigned duration)
{
    u64 end = nanoseconds() + duration, now;
    sleeping++;
    while ((now = nanoseconds()) < end) {
        if (others() + 1 == sleeping) {
            u64 rest = others() ? std::min<u64>(end - now, 20000) : end - now;
            timespec pause = {time_t(rest / 1000000000), long(rest % 1000000000)};
            nanosleep(&pause, nullptr);
        }
        if (others())
            make_way();
    }
    sleeping--;
}

void Worker::start_threads(Fiber *self)
{
    while (started < count) {
        unsigned i = started++;
        Thread &thread = threads[i];
        thread.state = READY;
        thread.fiber = self;
        thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                        i / (blockDim.x * blockDim.y)};
        threadIdx = thread.index;
        self->thread = &thread;
        launch->entry(launch->arguments);
        self->thread = nullptr;
        thread.state = DONE;
        done++;
        finish_waiters_of(thread);
    }
}

__attribute__((noinline)) void Worker::run_block(const Launch &work, u64 linear)
{
    launch = &work;
    count = work.block.x * work.block.y * work.block.z;
    started = done = at_barrier = in_warp = sleeping = 0;
    blockDim = work.block;
    gridDim = work.grid;
    blockIdx = {unsigned(linear % work.grid.x), unsigned(linear / work.grid.x % work.grid.y),
                unsigned(linear / work.grid.x / work.grid.y)};
    if (_setjmp(home) == 0)
        dispatch();
    current = nullptr;
    launch = nullptr;
    if (stacks > KEPT_STACKS)
        trim();
}

void Worker::wake(Thread &thread, u64 result)
{
    thread.result = result;
    thread.state = READY;
    if (thread.fiber != current)
        ready.push_back(thread.fiber);
}

/* ---- barriers: every thread of the block that has not ended must arrive ---- */

bool Worker::finish_barrier()
{
    if (!at_barrier || at_barrier + done < count)
        return false;
    unsigned yes = 0;
    for (unsigned i = 0; i < count; i++)
        if (threads[i].state == AT_BARRIER && threads[i].value)
            yes++;
    for (unsigned i = 0; i < count; i++) {
        Thread &thread = threads[i];
        if (thread.state != AT_BARRIER)
            continue;
        wake(thread, thread.operation == GD_BARRIER_AND  ? yes == at_barrier
                     : thread.operation == GD_BARRIER_OR ? yes != 0
                                                         : yes);
    }
    at_barrier = 0;
    return true;
}

/* ---- warp operations: every lane of the mask that has not ended must arrive ---- */

u64 reduce(int operation, const Thread *lanes, unsigned mask)
{
    bool first = true;
    unsigned r = 0;
    for (; mask; mask &= mask - 1) {
        unsigned v = unsigned(lanes[__builtin_ctz(mask)].value);
        switch (first ? -1 : operation) {
        case -1: r = v; break;
        case GD_REDUCE_ADD: r += v; break;
        case GD_REDUCE_AND: r &= v; break;
        case GD_REDUCE_OR: r |= v; break;
        case GD_REDUCE_XOR: r ^= v; break;
        case GD_REDUCE_MIN: r = int(v) < int(r) ? v : r; break;
        case GD_REDUCE_MAX: r = int(v) > int(r) ? v : r; break;
        case GD_REDUCE_UMIN: r = v < r ? v : r; break;
        case GD_REDUCE_UMAX: r = v > r ? v : r; break;
        }
        first = false;
    }
    return r;
}

/* The last lane to arrive computes the result of each, so that none reads another's later on. */
bool Worker::finish_warp(unsigned first, unsigned mask)
{
    Thread *lanes = threads + first;
    unsigned here = 0;
    int operation = -1;
    for (unsigned lane = 0; lane < WARP && first + lane < count; lane++) {
        if (!(mask >> lane & 1))
            continue;
        if (first + lane >= started)
            return false;
        if (lanes[lane].state == DONE)
            continue;
        if (lanes[lane].state != IN_WARP || lanes[lane].mask != mask)
            return false;
        if (here && lanes[lane].operation != operation)
            die("lanes of mask 0x%08x wait in different warp operations at once", mask);
        operation = lanes[lane].operation;
        here |= 1u << lane;
    }
    if (!here)
        return false;

    u64 common = 0;
    unsigned ballot = 0;
    for (unsigned m = here; m; m &= m - 1)
        if (lanes[__builtin_ctz(m)].value)
            ballot |= 1u << __builtin_ctz(m);
    if (operation == GD_VOTE)
        common = ballot | u64(here) << 32;
    else if (operation >= GD_REDUCE_ADD)
        common = reduce(operation, lanes, here);

    u64 results[WARP];
    for (unsigned m = here; m; m &= m - 1) {
        unsigned lane = __builtin_ctz(m);
        results[lane] = common;
        if (operation == GD_SHUFFLE) {
            unsigned from = lanes[lane].argument;  /* a lane that is not there: its own value */
            results[lane] = lanes[here >> from & 1 ? from : lane].value;
        } else if (operation == GD_MATCH) {
            unsigned same = 0;
            for (unsigned n = here; n; n &= n - 1)
                if (lanes[__builtin_ctz(n)].value == lanes[lane].value)
                    same |= 1u << __builtin_ctz(n);
            results[lane] = same | u64(here) << 32;
        }
    }
    for (unsigned m = here; m; m &= m - 1)
        wake(lanes[__builtin_ctz(m)], results[__builtin_ctz(m)]);
    in_warp -= __builtin_popcount(here);
    return true;
}

/* A thread has ended: those that waited for it wait no longer. */
void Worker::finish_waiters_of(Thread &thread)
{
    finish_barrier();
    if (!in_warp)
        return;
    unsigned lane = unsigned(&thread - threads), first = lane / WARP * WARP;
    for (unsigned i = first; i < first + WARP && i < started; i++)
        if (threads[i].state == IN_WARP && threads[i].mask >> (lane - first) & 1)
            finish_warp(first, threads[i].mask);
}

/* ---- OS threads ---- */

/* Signals need a stack of their own: the fault may be a stack that ran over. */
Worker &this_worker()
{
    static thread_local std::unique_ptr<Worker> own;
    if (!own) {
        own = std::make_unique<Worker>();
        stack_t stack = {};
        stack.ss_size = 128 << 10;
        stack.ss_sp = own->signal_stack = static_cast<char *>(malloc(stack.ss_size));
        sigaltstack(&stack, nullptr);
        worker = own.get();
    }
    return *own;
}

/* OS threads that wait for blocks. One that takes a block asks for one more as long as there are
 * blocks left, so that a short launch wakes few and a long one gets all it may have. */
struct Pool {
    std::mutex mutex;
    std::condition_variable call;
    std::deque<std::shared_ptr<Launch>> offers;
    unsigned idle = 0;

    void offer(std::shared_ptr<Launch> launch)
    {
        std::lock_guard<std::mutex> lock(mutex);
        offers.push_back(std::move(launch));
        if (idle >= offers.size())
            call.notify_one();
        else
            std::thread([this] { serve(); }).detach();
    }

    [[noreturn]] void serve()
    {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            idle++;
            call.wait(lock, [this] { return !offers.empty(); });
            idle--;
            std::shared_ptr<Launch> launch = std::move(offers.front());
            offers.pop_front();
            lock.unlock();
            take_blocks(launch);
            launch.reset();
            lock.lock();
        }
    }

    void take_blocks(const std::shared_ptr<Launch> &launch)
    {
        Worker &w = this_worker();
        unsigned threads = launch->block.x * launch->block.y * launch->block.z;
        bool asked = ++launch->resident >= std::min(RESIDENT_BLOCKS, RESIDENT_THREADS / threads);
        u64 block;
        while ((block = launch->next++) < launch->blocks) {
            if (!asked && block + 1 < launch->blocks)
                offer(launch);
            asked = true;
            w.run_block(*launch, block);
            if (++launch->finished == launch->blocks) {
                std::lock_guard<std::mutex> lock(launch->mutex);
                launch->done.notify_all();
            }
        }
    }
};

Pool &pool = *new Pool;                   /* never destroyed: its threads live as long as we */

}  // namespace

extern "C" {

/* fd: the file that gets the reason when a kernel's fault ends this process. */
void gd_start(int fd)
{
    obituary = fd;
    setvbuf(stdout, nullptr, _IOLBF, 0);  /* what a kernel printed is seen even if it dies */
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP})
        sigaction(number, &action, nullptr);
}

/* Run a launch to its end. grid and block: three numbers each, checked by the caller, who has also
 * seen to it that all blocks of a cooperative launch can be resident. */
void gd_launch(gd_entry_t entry, const char *name, int stream, const unsigned *grid,
               const unsigned *block, const void *arguments, size_t size, int cooperative)
{
    constexpr size_t alignment = 128;     /* no parameter can want more */
    std::unique_ptr<void, void (*)(void *)> aligned(
        aligned_alloc(alignment, (size / alignment + 1) * alignment), free);
    memcpy(aligned.get(), arguments, size);
    auto launch = std::make_shared<Launch>();
    launch->entry = entry;
    launch->name = name;
    launch->stream = stream;
    launch->grid = dim3(grid[0], grid[1], grid[2]);
    launch->block = dim3(block[0], block[1], block[2]);
    launch->arguments = aligned.get();
    launch->cooperative = cooperative;
    launch->blocks = u64(grid[0]) * grid[1] * grid[2];
    pool.take_blocks(launch);
    std::unique_lock<std::mutex> lock(launch->mutex);
    launch->done.wait(lock, [&] { return launch->finished == launch->blocks; });
    fflush(stdout);
}

/* ---- what compiled kernels call ---- */

void __sanitizer_cov_trace_pc(void)
{
    if (__builtin_expect(--budget, 1))
        return;
    budget = SLICE;
    Worker *w = worker;
    if (!w || !w->current)
        return;
    if (w->others())
        w->make_way();
    sched_yield();
}

u64 gd_barrier(int operation, int predicate)
{
    Worker *w = worker;
    Thread *self = w->current->thread;
    self->state = AT_BARRIER;
    self->operation = operation;
    self->value = predicate != 0;
    w->at_barrier++;
    if (!w->finish_barrier())
        w->suspend();
    return self->result;
}

u64 gd_warp(int operation, unsigned mask, u64 value, unsigned argument)
{
    Worker *w = worker;
    Thread *self = w->current->thread;
    unsigned number = unsigned(self - w->threads), lane = number % WARP;
    if (!(mask >> lane & 1))
        die("a warp operation's mask 0x%08x leaves out lane %u, which calls it", mask, lane);
    self->state = IN_WARP;
    self->operation = operation;
    self->mask = mask;
    self->value = value;
    self->argument = argument;
    w->in_warp++;
    if (!w->finish_warp(number - lane, mask))
        w->suspend();
    return self->result;
}

bool gd_cooperative(void)
{
    return worker->launch->cooperative;
}

void gd_grid_barrier(void)
{
    Worker *w = worker;
    const Launch *launch = w->launch;
    if (!launch->cooperative)
        die("a barrier of the whole grid in a launch that is not cooperative: its blocks need not "
            "run at the same time");
    u64 target = (launch->arrivals++ / launch->blocks + 1) * launch->blocks;
    while (launch->arrivals < target) {
        if (w->others())
            w->make_way();
        sched_yield();
    }
}

unsigned gd_lane(void)
{
    return unsigned(worker->current->thread - worker->threads) % WARP;
}

/* A failed attempt at a lock, say: waiting costs the slice faster than computing does. */
void gd_relax(void)
{
    if (budget > 64)
        budget -= 63;
}

void gd_sleep(unsigned duration)
{
    if (worker && worker->current)
        worker->sleep(duration);
}

u64 gd_nanoseconds(void)
{
    return nanoseconds();
}

void gd_trap(void)
{
    die("__trap() was executed");
}

void gd_assert_failed(const char *what, const char *file, unsigned line, const char *function)
{
    die("%s:%u: assertion `%s' failed in %s()", file, line, what, function);
}

}  /* extern "C" */
