/*
 * How the threads of a lane's blocks work together. The first warp of the first block polls; its other
 * warps wait at a barrier until a function wants the block, the first warps of the other blocks poll the
 * lane's board until one wants the grid.
 *
 * Each way takes one trip. An order is a packet in parts of 16 bytes, each one store with the order's
 * number in it, so that no fence stands between its words and what is polled: a part that has the number
 * is whole. The way back is one counter, behind a fence of each block's first thread, which the barrier
 * before it extends to all threads of the block: of the whole system, at the same time in all blocks, so
 * that none stands between the last arrival and the reply.
 */
namespace gd_service {

/* What entry.cuh has of the functions. */
typedef uint4 gd_quarter;                /* 16 bytes of arguments */
constexpr unsigned gd_of_grid = GRID;
__device__ inline constexpr unsigned gd_quarters(); /* of the longest list, or of a packet */
__device__ inline gd_quarter *gd_arguments(); /* of a call by reference, or of one that blocks run */
/* Run a function, by every thread of a block or grid; the result is that of its first thread. */
__device__ inline unsigned long long gd_run(unsigned function);
/* Bytes of its arguments, if a grid runs it and they go by reference; else 0. */
__device__ inline unsigned gd_far(unsigned function);
/* Whether it may write memory that the CPU looks at. */
__device__ inline bool gd_writes(unsigned function);

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
        __syncthreads();
    }
}

/*
 * By the polling warp: hand a packet to the other blocks, `words` being all but its first. They have
 * ended what was ordered before. What earlier functions wrote must be fenced.
 */
__device__ inline void order_grid(unsigned number, const volatile unsigned *words, unsigned function)
{
    unsigned part = threadIdx.x % ORDER_PARTS, copy = threadIdx.x / ORDER_PARTS, at = 3 * part;

    if (copy < COPIES)
        put(&shared_board->order[copy].parts[part],
            make_uint4(words[at], words[at + 1], part == ORDER_PARTS - 1 ? function : words[at + 2], number));
}

/* By the first warp of another block: wait for the order of this number, and make it ready to be run. */
__device__ inline void take_order(unsigned number, unsigned copy)
{
    unsigned me = threadIdx.x, looks = 0, *words = (unsigned *)gd_arguments();
    const uint4 *at = &shared_board->order[copy].parts[me < ORDER_PARTS ? me : 0];
    uint4 part;

    while (!__all_sync(ALL, (part = look(at)).w == number))
        between_looks(looks);
#ifdef GPUDIRECT_EMULATED                /* where 16 bytes are not one load */
    part = look(at);
#endif
    unsigned function = __shfl_sync(ALL, part.z, ORDER_PARTS - 1);
    if (unsigned size = gd_far(function)) {
        const unsigned *there = (const unsigned *)((unsigned long long)alike(part.y) << 32 | alike(part.x));
        for (unsigned i = me; i * 4 < size; i += 32)
            words[i] = look(there + i);
    } else if (me < ORDER_PARTS) {
        words[3 * me] = part.x;
        words[3 * me + 1] = part.y;
        words[3 * me + 2] = part.z;
    }
    if (me == 0) {
        ordered = function;
        team = GRID;
        failure[0] = failure[1] = 0;
    }
}

/* The other blocks of a lane. */
__device__ inline void second(unsigned turn)
{
    unsigned copy = blockIdx.x % blocks % COPIES;

    for (unsigned number = look(&shared_board->ordered[turn % 2]) + 1;; number++) {
        if (threadIdx.x < 32)
            take_order(number, copy);
        __syncthreads();
        if (ordered == P2PMOD_FUNCTION_STOP)
            return;
        gd_run(ordered);
        __syncthreads();
        if (threadIdx.x == 0) {
            if (GD_FAILS && failure[0] && atomicCAS(&shared_board->failure[0], 0u, failure[0]) == 0)
                shared_board->failure[1] = failure[1];
            if (gd_writes(ordered))
                release();
            else
                agree();
            atomicAdd(&shared_board->back[copy].arrived, 1u);
        }
    }
}

/* How many blocks but the first add to a counter. */
__device__ inline unsigned arriving_at(unsigned copy)
{
    return copy < COPIES ? (blocks - 1 + COPIES - copy) / COPIES - (copy == 0) : 0;
}

/*
 * By the polling warp: until so many have arrived, ever, at the counter of each thread. No fence stands behind it, as none
 * stands behind the packet: what is loaded next comes from where the others' stores have arrived, and their
 * fences reach the CPU that will see the reply.
 */
__device__ inline void await_grid(unsigned arrivals)
{
    unsigned copy = threadIdx.x % COPIES, looks = 0;

    while (!__all_sync(ALL, threadIdx.x >= COPIES || look(&shared_board->back[copy].arrived) == arrivals))
        between_looks(looks);
}

/* By its first thread, behind that: what failed in another block, if nothing did in this one. */
__device__ inline void failure_of_grid()
{
    unsigned status = look(&shared_board->failure[0]);

    if (!status)
        return;
    if (!failure[0]) {
        failure[0] = status;
        failure[1] = look(&shared_board->failure[1]);
    }
    shared_board->failure[0] = 0;
}

}  // namespace gd_service
