/*
 * What functions of a service may use. Like all of the resident kernel but entry.cuh it stands before
 * their source, where neither their names nor their macros reach it. What the macros here leave in
 * the source begins with gd, as their macros may have made something else of any other name.
 *
 *   gd_rank(), gd_size()    this thread's number in the team that runs the function, and how many
 *                           there are: one thread, a warp, a block or a grid, as declared
 *   gd_sync()               wait for the team; what its threads wrote before, all of them see after
 *   gd_assert(c)            unless c, return, and the call raises DeviceAssertionError with the line
 *   gd_assert(c, result)    the same in a function with a result
 *   gd_require(c[, result]) the same for an argument: the call raises RefusedArgumentError
 *   gd_status(n)            the call raises CallError with this status, 256 or more
 *
 * In a team gd_assert and gd_require must come out alike in all its threads if a gd_sync follows.
 */
namespace gd_service {

enum : unsigned { THREAD, WARP, BLOCK, GRID };

/*
 * What the blocks of a lane share, and one launch of the kernel hands to the next, in device
 * memory. Zeroed when the service starts. What all blocks poll, or add to, at once is there several times,
 * lines apart: a quarter of them each, or they would wait for one another.
 */
constexpr unsigned ORDER_PARTS = 5, COPIES = 4;
struct board {
    unsigned long long deadline; /* of the lifetime; 0 before the first launch */
    unsigned long long worked;  /* when it was last seen to have calls; 0 before the first launch */
    unsigned answered;          /* calls, when the kernel ended: the next launch goes on from there */
    unsigned over;              /* not 0: the lane was told to end, and no launch serves it again */
    unsigned ordered[2];        /* orders when launch number n began: in ordered[n % 2] */
    unsigned failure[2];        /* status and line of the first failure in another block */
    alignas(128) unsigned long long barrier; /* arrivals of blocks at gd_sync(), ever */
    struct alignas(128) {
        unsigned arrived;       /* blocks that have ended their part of a call, ever */
    } back[COPIES];
    struct alignas(128) {       /* a packet's words but the first; each part: three and the order's number */
        uint4 parts[ORDER_PARTS];
    } order[COPIES];
};
static_assert(sizeof(board) == 1280, "_layout.py says so");

__shared__ unsigned team;       /* which kind runs a function now */
__shared__ unsigned failure[2]; /* status and line of the call's first failure in this block */
__shared__ unsigned blocks;     /* of this block's lane */
__shared__ unsigned before;     /* threads of its blocks before this one */
__shared__ board *shared_board; /* of this lane */

__device__ inline void gd_fail(unsigned status, unsigned line)
{
    if (atomicCAS(&failure[0], 0u, status) == 0)
        failure[1] = line;
}

/* Nanoseconds since some moment. */
__device__ inline unsigned long long now()
{
#ifdef GPUDIRECT_EMULATED
    return clock64();
#else
    unsigned long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
#endif
}

/* What this thread wrote, others see before what it writes from now on: the CPU too. */
__device__ inline void release()
{
#ifdef GPUDIRECT_EMULATED
    __threadfence_system();
#else
    asm volatile("fence.acq_rel.sys;" ::: "memory");
#endif
}

/* The same for threads of this device. It costs less. */
__device__ inline void agree()
{
#ifdef GPUDIRECT_EMULATED
    __threadfence();
#else
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

/* Between two looks at what another block writes: soon at first, then in peace. */
__device__ inline void between_looks(unsigned &looks)
{
#ifndef GPUDIRECT_EMULATED
    if (++looks < 2000)                  /* about a millisecond */
        return;
#endif
    __nanosleep(100);
}

/* All blocks of the lane arrive, and all of each block's threads. */
__device__ inline void grid_barrier()
{
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned looks = 0;
        agree();
        unsigned long long target =
            (atomicAdd(&shared_board->barrier, 1ull) / blocks + 1) * blocks;
        while (*(volatile unsigned long long *)&shared_board->barrier < target)
            between_looks(looks);
        agree();
    }
    __syncthreads();
}

}  // namespace gd_service

__device__ inline unsigned gd_rank()
{
    switch (gd_service::team) {
    case gd_service::THREAD: return 0;
    case gd_service::GRID: return gd_service::before + threadIdx.x;
    default: return threadIdx.x;
    }
}

__device__ inline unsigned gd_size()
{
    switch (gd_service::team) {
    case gd_service::THREAD: return 1;
    case gd_service::WARP: return 32;
    case gd_service::BLOCK: return blockDim.x;
    default: return gd_service::blocks * blockDim.x;
    }
}

__device__ inline void gd_sync()
{
    switch (gd_service::team) {
    case gd_service::THREAD: return;
    case gd_service::WARP: __syncwarp(); return;
    case gd_service::BLOCK: __syncthreads(); return;
    default: gd_service::grid_barrier();
    }
}

#define gd_status(n) gd_service::gd_fail((n), __LINE__)
#define gd_assert(condition, ...)                                                                 \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            gd_service::gd_fail(P2PMOD_STATUS_ASSERT, __LINE__);                                     \
            return __VA_ARGS__;                                                                   \
        }                                                                                         \
    } while (0)
#define gd_require(condition, ...)                                                                \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            gd_service::gd_fail(P2PMOD_STATUS_ARGUMENT, __LINE__);                                   \
            return __VA_ARGS__;                                                                   \
        }                                                                                         \
    } while (0)
