/*
 * The resident kernel: polls lanes, runs functions, replies. Stands behind the functions' source
 * and signature.h. Before it are defined
 *
 *   GD_FUNCTIONS(X)  X(number, function, kind of team), one after the other
 *
 * A lane is polled by the first warp of its first block. Its other warps wait at a barrier until
 * a function wants the block, its other blocks poll the relay until one wants the grid.
 */
namespace gd_service {

#ifndef GD_POLLS
#define GD_POLLS 4                       /* loads of the next packet in flight */
#endif
#ifndef GD_STAGGER
#define GD_STAGGER 150                   /* clock ticks between them at first */
#endif

#ifdef GPUDIRECT_EMULATED
#undef GD_POLLS
#define GD_POLLS 1
#define GD_ACQUIRE() __threadfence_system()
#else
#define GD_ACQUIRE() asm volatile("fence.acq_rel.sys;" ::: "memory")
#endif

constexpr unsigned ALL = 0xffffffff;
constexpr unsigned AHEAD = 8;            /* packets that one load of a warp takes in */
constexpr unsigned ROUNDS_A_CHECK = 16;  /* rounds of GD_POLLS loads between looks at the clock */

/* ---- what the compiler knows of a function ---- */

template <bool condition, class T, class F> struct choose { typedef T type; };
template <class T, class F> struct choose<false, T, F> { typedef F type; };

template <unsigned... I> struct indices {};
template <unsigned N, unsigned... I> struct count_to : count_to<N - 1, N - 1, I...> {};
template <unsigned... I> struct count_to<0, I...> { typedef indices<I...> type; };

/* Where argument `which` starts, each at its natural alignment; which == number of them: the end. */
template <class... P> __device__ constexpr unsigned offset_of(unsigned which)
{
    unsigned sizes[] = {sizeof(P)..., 0}, alignments[] = {alignof(P)..., 1}, offset = 0;
    for (unsigned i = 0;; i++) {
        if (i == which && i == sizeof...(P))
            return offset;
        offset = (offset + alignments[i] - 1) / alignments[i] * alignments[i];
        if (i == which)
            return offset;
        offset += sizes[i];
    }
}

/* Does the function look at memory that the CPU writes, or write memory that the CPU looks at? */
template <class T> struct touches {
    static constexpr char kind = char(gd_signature_of::gd_kind_of<T>::gd_value);
    static constexpr bool reads = kind == 's', writes = kind == 's';
};
template <class T> struct touches<T *> { static constexpr bool reads = true, writes = true; };
template <class T> struct touches<const T *> { static constexpr bool reads = true, writes = false; };
template <class T> struct touches<T *const> : touches<T *> {};

template <class F> struct described;
template <class R, class... P> struct described<R (*)(P...)> {
    static constexpr unsigned count = sizeof...(P);
    static constexpr unsigned size = offset_of<P...>(count);
    static constexpr bool reads = (touches<P>::reads || ... || false);
    static constexpr bool writes = (touches<P>::writes || ... || false);
    static constexpr bool plain = ((alignof(P) <= 16) && ... && true);

    template <unsigned... I>
    static __device__ inline unsigned long long run(R (*function)(P...), const char *arguments,
                                                    indices<I...>)
    {
        if constexpr (gd_signature_of::gd_kind<R>::gd_value == 'v') {
            function(*(const typename gd_signature_of::gd_plain<P>::gd_type *)
                     (arguments + offset_of<P...>(I))...);
            return 0;
        } else {
            static_assert(sizeof(R) <= 8, "a function of a service returns at most 8 bytes: let it "
                                          "store larger results through a pointer");
            union { R result; unsigned long long bits; } both = {};
            both.bits = 0;
            both.result = function(*(const typename gd_signature_of::gd_plain<P>::gd_type *)
                                   (arguments + offset_of<P...>(I))...);
            return both.bits;
        }
    }
};

/* The same as data, which the CPU side finds in the compiled image. */
struct parameter { unsigned kind, size, alignment, pointee_kind, pointee_size; };
template <unsigned n> struct table {
    char magic[8];
    unsigned number, count;
    parameter parameters[n + 1];         /* the result, then the parameters */
};
template <class T> struct entry {
    static constexpr parameter value = {
        gd_signature_of::gd_describe<T>::gd_value.gd_kind,
        gd_signature_of::gd_describe<T>::gd_value.gd_size,
        gd_signature_of::gd_describe<T>::gd_value.gd_alignment,
        gd_signature_of::gd_describe<T>::gd_value.gd_pointee_kind,
        gd_signature_of::gd_describe<T>::gd_value.gd_pointee_size};
};
template <> struct entry<void> { static constexpr parameter value = {'v', 0, 1, 0, 0}; };
template <class F, unsigned number> struct tabled;
template <class R, class... P, unsigned number> struct tabled<R (*)(P...), number> {
    static constexpr table<sizeof...(P)> value = {
        {'g', 'd', '-', 'f', 'u', 'n', '0', '1'}, number, sizeof...(P),
        {entry<R>::value, entry<P>::value...}};
};

#define GD_TABLE(number, function, kind)                                                          \
    static_assert(described<decltype(&function)>::plain,                                          \
                  "an argument of a service's function is aligned to at most 16 bytes");          \
    extern "C" __device__ const auto gd_function_##number =                                       \
        tabled<decltype(&function), number>::value;
GD_FUNCTIONS(GD_TABLE)

#define GD_LARGEST(number, function, kind)                                                        \
    size = described<decltype(&function)>::size > size ? described<decltype(&function)>::size : size;
__device__ constexpr unsigned largest()
{
    unsigned size = P2PMOD_PACKET_ARGUMENTS;
    GD_FUNCTIONS(GD_LARGEST)
    return size;
}
constexpr unsigned ARGUMENT_WORDS = (largest() + 15) / 16 * 4;

/* ---- memory that the CPU writes and reads ---- */

/* Not from a cache, each time anew. */
__device__ inline uint4 look(const uint4 *at)
{
#ifdef GPUDIRECT_EMULATED
    return __ldcv(at);
#else
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
    return v;
#endif
}

__device__ inline unsigned look(const unsigned *at)
{
    return *(const volatile unsigned *)at;
}

/* 16 bytes in one store. */
__device__ inline void put(uint4 *at, uint4 v)
{
#ifdef GPUDIRECT_EMULATED
    __stwt(at, v);
#else
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

/* ---- running a function ---- */

__shared__ uint4 arguments[ARGUMENT_WORDS / 4];
__shared__ unsigned ordered;             /* the function that the block's warps run next */

/* By the threads of the team; the result is that of its first thread. */
__device__ inline unsigned long long run(unsigned function)
{
    switch (function) {
#define GD_RUN(number, name, kind)                                                                \
    case number:                                                                                  \
        return described<decltype(&name)>::run(                                                   \
            &name, (const char *)arguments,                                                       \
            typename count_to<described<decltype(&name)>::count>::type());
        GD_FUNCTIONS(GD_RUN)
    }
    return 0;
}

struct traits { unsigned char team; bool reads, writes; unsigned size; };

__device__ inline traits traits_of(unsigned function)
{
    switch (function) {
#define GD_TRAITS(number, name, kind)                                                             \
    case number:                                                                                  \
        return {kind, described<decltype(&name)>::reads, described<decltype(&name)>::writes,      \
                described<decltype(&name)>::size};
        GD_FUNCTIONS(GD_TRAITS)
    }
    return {THREAD, false, false, 0};
}

__device__ inline bool known(unsigned function)
{
    switch (function) {
#define GD_KNOWN(number, name, kind) case number:
        GD_FUNCTIONS(GD_KNOWN)
        return true;
    }
    return false;
}

/* The other warps of a polling block: run what is ordered until that is the end. */
__device__ void follow()
{
    for (;;) {
        __syncthreads();
        unsigned function = ordered;
        if (function == P2PMOD_FUNCTION_STOP)
            return;
        run(function);
        __threadfence_system();
        __syncthreads();
    }
}

/* A block's end of its part of a grid's function. */
__device__ inline void report()
{
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (failure[0] && atomicCAS(&relayed->failure[0], 0u, failure[0]) == 0)
            relayed->failure[1] = failure[1];
        __threadfence();
        atomicAdd(&relayed->arrived, 1ull);
    }
}

/* The other blocks of a lane. */
__device__ void second()
{
    for (unsigned last = 0;;) {
        if (threadIdx.x == 0) {
            while (look(&relayed->order) == last)
                __nanosleep(100);
            __threadfence();
            last = look(&relayed->order);
            ordered = look(&relayed->function);
            team = GRID;
            failure[0] = failure[1] = 0;
        }
        __syncthreads();
        if (ordered == P2PMOD_FUNCTION_STOP)
            return;
        for (unsigned i = threadIdx.x; i < ARGUMENT_WORDS / 4; i += blockDim.x)
            arguments[i] = look(&relayed->arguments[i]);
        __syncthreads();
        run(ordered);
        report();
    }
}

/* The first block's part of a grid's function, by all of its threads. Wakes and awaits the others. */
__device__ inline void wake_grid(unsigned function)
{
    for (unsigned i = threadIdx.x % 32; i < ARGUMENT_WORDS / 4; i += 32)
        relayed->arguments[i] = arguments[i];
    relayed->function = function;
    __syncwarp();
    if (threadIdx.x == 0) {
        __threadfence();
        *(volatile unsigned *)&relayed->order = relayed->order + 1;
    }
}

__device__ inline void await_grid(unsigned long long calls)
{
    if (threadIdx.x == 0) {
        while (*(volatile unsigned long long *)&relayed->arrived < calls * (blocks - 1))
            __nanosleep(20);
        __threadfence();
        unsigned status = look(&relayed->failure[0]);
        if (status) {
            if (!failure[0]) {
                failure[0] = status;
                failure[1] = look(&relayed->failure[1]);
            }
            relayed->failure[0] = 0;
        }
    }
}

/* ---- the polling warp ---- */

struct lane {
    const uint4 *packets;
    uint4 *replies;
    unsigned mask;
    unsigned next;                       /* number of the call awaited */
    unsigned long long grids;            /* calls that the grid has run */
};

/* Whether this thread's quarter of packet `number` is what call `number` has there. */
__device__ inline bool fits(uint4 quarter, unsigned which, unsigned number)
{
    return which == 0 ? quarter.x == number
         : which == 3 ? (quarter.w & 0xffff) == (number & 0xffff)
                      : true;
}

/*
 * Answer call lane.next, whose four quarters the four threads from `first` on hold. Whether the
 * lane goes on.
 */
__device__ inline bool answer(lane &l, uint4 quarter, unsigned first, bool stopping)
{
    unsigned me = threadIdx.x % 32, part = me - first;
    unsigned function = __shfl_sync(ALL, quarter.w >> 16, first + 3);
    unsigned long long value = 0;

    if (me == 0)
        failure[0] = failure[1] = 0;
    if (part < 4) {                      /* the words between the first and the last */
        unsigned *words = (unsigned *)arguments + part * 4;
        if (part > 0)
            words[-1] = quarter.x;
        words[0] = quarter.y;
        words[1] = quarter.z;
        if (part < 3)
            words[2] = quarter.w;
    }
    __syncwarp();
    if (stopping) {
        if (me == 0)
            failure[0] = P2PMOD_STATUS_STOPPED;
    } else if (known(function)) {
        traits t = traits_of(function);
        if (t.size > P2PMOD_PACKET_ARGUMENTS) {
            const uint4 *there = *(const uint4 *const *)arguments;
            __syncwarp();
            for (unsigned i = me; i < ARGUMENT_WORDS / 4; i += 32)
                if (i * 16 < t.size)
                    arguments[i] = look(there + i);
            __syncwarp();
        }
        if (t.reads)
            GD_ACQUIRE();
        if (me == 0)
            team = t.team;
        if (t.team == THREAD) {
            __syncwarp();
            if (me == 0)
                value = run(function);
        } else if (t.team == WARP) {
            __syncwarp();
            value = run(function);
            if (t.writes)
                __threadfence_system();
        } else {
            if (me == 0)
                ordered = function;
            if (t.team == GRID && blocks > 1)
                wake_grid(function);
            __syncthreads();
            value = run(function);
            __threadfence_system();
            __syncthreads();
            if (t.team == GRID && blocks > 1)
                await_grid(++l.grids);
        }
        if (t.writes && me == 0)
            __threadfence_system();
        __syncwarp();
    } else if (function != P2PMOD_FUNCTION_NOTHING && function != P2PMOD_FUNCTION_STOP) {
        if (me == 0)
            failure[0] = P2PMOD_STATUS_NO_FUNCTION;
    }
    if (me == 0) {
        unsigned status = *(volatile unsigned *)&failure[0];
        if (status)
            value = *(volatile unsigned *)&failure[1];
        put(l.replies + (l.next & l.mask),
            make_uint4(unsigned(value), unsigned(value >> 32), status, l.next));
    }
    __syncwarp();
    l.next++;
    return function != P2PMOD_FUNCTION_STOP;
}

/* How many packets from l.next on are there, at most AHEAD; 4 threads hold the quarters of each. */
__device__ inline unsigned look_ahead(const lane &l, uint4 *quarter)
{
    unsigned me = threadIdx.x % 32, number = l.next + me / 4;
    const uint4 *at = l.packets + (number & l.mask) * 4 + me % 4;

    *quarter = look(at);
    unsigned gone = ~__ballot_sync(ALL, fits(*quarter, me % 4, number));
    unsigned ready = gone ? (__ffs(gone) - 1) / 4 : AHEAD;
#ifdef GPUDIRECT_EMULATED
    if (ready)                           /* its loads are not one: a quarter may be older than the rest */
        *quarter = look(at);
#endif
    return ready;
}

/* Poll a lane until the service is stopped or its time is over. */
__device__ void poll(lane &l, const unsigned *control, unsigned long long idle_after,
                     unsigned idle_sleep, unsigned long long lifetime)
{
    unsigned me = threadIdx.x % 32;
    unsigned long long start = now(), worked = start;
    unsigned stop = 0;

    for (;;) {
        /* alone: the next packet only, with several loads in flight one behind the other */
        const uint4 *at = l.packets + (l.next & l.mask) * 4 + me % 4;
        uint4 seen, flying[GD_POLLS];
#pragma unroll
        for (unsigned i = 0; i < GD_POLLS; i++) {
#if GD_POLLS > 1
            for (long long t = clock64(); clock64() - t < GD_STAGGER;)
                ;
#endif
            flying[i] = look(at);
        }
        for (unsigned round = 1;; round++) {
#pragma unroll
            for (unsigned i = 0; i < GD_POLLS; i++) {
                seen = flying[i];
                if (__all_sync(ALL, fits(seen, me % 4, l.next)))
                    goto found;
                flying[i] = look(at);
            }
#ifdef GPUDIRECT_EMULATED
            __nanosleep(2000);
#endif
            if (round % ROUNDS_A_CHECK)
                continue;
            if (stop)
                return;
            stop = look(control);        /* waited for only when it is looked at */
            unsigned long long t = now();
            if (lifetime && t - start > lifetime)
                return;
            if (t - worked > idle_after)
                __nanosleep(idle_sleep);
        }
found:
#ifdef GPUDIRECT_EMULATED
        seen = look(at);
#endif
        if (!answer(l, seen, 0, false))
            return;
        /* several: as long as there are more, take in eight at once */
        for (unsigned ready; (ready = look_ahead(l, &seen)) != 0;) {
            stop = look(control);
            for (unsigned i = 0; i < ready; i++) {
                long long before = clock64();
                if (!answer(l, seen, i * 4, stop != 0))
                    stop = 1;
                else if (clock64() - before > 20000)
                    stop = look(control);
            }
        }
        if (stop)
            return;
        worked = now();
    }
}

}  // namespace gd_service

extern "C" __global__ void gd_resident(
    const uint4 *packets, uint4 *replies, const unsigned *control, unsigned char *relays,
    unsigned relay_size, unsigned slots, unsigned blocks_per_lane, unsigned idle_sleep,
    unsigned long long idle_after, unsigned long long lifetime)
{
    using namespace gd_service;
    unsigned number = blockIdx.x / blocks_per_lane;

    if (threadIdx.x == 0) {
        blocks = blocks_per_lane;
        relayed = (relay *)(relays + (unsigned long long)number * relay_size);
        team = THREAD;
        failure[0] = failure[1] = 0;
    }
    __syncthreads();
    if (blockIdx.x % blocks_per_lane) {
        second();
        return;
    }
    if (threadIdx.x >= 32) {
        follow();
        return;
    }
    lane l = {packets + (unsigned long long)number * slots * 4,
              replies + (unsigned long long)number * slots, slots - 1, 1, 0};
    poll(l, control, idle_after, idle_sleep, lifetime);
    /* what was sent before the stop was seen is told so */
    uint4 seen;
    for (unsigned ready; (ready = look_ahead(l, &seen)) != 0;)
        for (unsigned i = 0; i < ready; i++)
            answer(l, seen, i * 4, true);
    if (threadIdx.x == 0)
        ordered = P2PMOD_FUNCTION_STOP;
    if (blocks_per_lane > 1)
        wake_grid(P2PMOD_FUNCTION_STOP);
    __syncthreads();
}
