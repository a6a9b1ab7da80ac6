/*
 * How the threads of a lane's blocks work together. The first warp of the first block polls; its other
 * warps wait at a barrier until a function wants the block, the other blocks poll the lane's board until
 * one wants the grid.
 */
namespace gd_service {

/* What entry.cuh has of the functions. */
typedef uint4 gd_quarter;                /* 16 bytes of arguments */
__device__ inline constexpr unsigned gd_quarters(); /* of the longest list, or of a packet */
__device__ inline gd_quarter *gd_arguments(); /* of a call by reference, or of one that blocks run */
/* Run a function, by every thread of a block or grid; the result is that of its first thread. */
__device__ inline unsigned long long gd_run(unsigned function);

/* The same for this one, if blocks or grids run it. */
template <unsigned kind, class F> __device__ inline unsigned long long gd_run_one(F function)
{
    if constexpr (kind == BLOCK || kind == GRID)
        return gd_described<F>::run(function, (const char *)gd_arguments(),
                                    typename gd_described<F>::all());
    else
        return 0;
}

__shared__ unsigned ordered;             /* the function that the block's warps run next */

/* The other warps of a polling block: run what is ordered until that is the end. */
__device__ inline void follow()
{
    for (;;) {
        __syncthreads();
        unsigned function = ordered;
        if (function == P2PMOD_FUNCTION_STOP)
            return;
        gd_run(function);
        release();
        __syncthreads();
    }
}

/* The other blocks of a lane. */
__device__ inline void second(unsigned turn)
{
    for (unsigned last = look(&shared_board->ordered[turn % 2]);;) {
        if (threadIdx.x == 0) {
            while (look(&shared_board->order) == last)
                __nanosleep(100);
            __threadfence();
            last = look(&shared_board->order);
            ordered = look(&shared_board->function);
            team = GRID;
            failure[0] = failure[1] = 0;
        }
        __syncthreads();
        if (ordered == P2PMOD_FUNCTION_STOP)
            return;
        for (unsigned i = threadIdx.x; i < gd_quarters(); i += blockDim.x)
            gd_arguments()[i] = look(&shared_board->arguments[i]);
        __syncthreads();
        gd_run(ordered);
        release();
        __syncthreads();
        if (threadIdx.x == 0) {
            if (failure[0] && atomicCAS(&shared_board->failure[0], 0u, failure[0]) == 0)
                shared_board->failure[1] = failure[1];
            __threadfence();
            atomicAdd(&shared_board->arrived, 1ull);
        }
    }
}

/* By the polling warp: hand a call to the other blocks. */
__device__ inline void wake_grid(unsigned function)
{
    for (unsigned i = threadIdx.x; i < gd_quarters(); i += 32)
        shared_board->arguments[i] = gd_arguments()[i];
    __threadfence();
    __syncwarp();
    if (threadIdx.x == 0) {
        shared_board->function = function;
        __threadfence();
        *(volatile unsigned *)&shared_board->order = shared_board->order + 1;
    }
}

/* By its first thread: until they have all ended the call. */
__device__ inline void await_grid(unsigned long long calls)
{
    while (*(volatile unsigned long long *)&shared_board->arrived < calls * (blocks - 1))
        __nanosleep(20);
    __threadfence();
    if (unsigned status = look(&shared_board->failure[0])) {
        if (!failure[0]) {
            failure[0] = status;
            failure[1] = look(&shared_board->failure[1]);
        }
        shared_board->failure[0] = 0;
    }
}

}  // namespace gd_service
