/*
 * The resident kernel: polls lanes, runs functions, replies. Stands behind the functions' source
 * and signature.h. Before it are defined
 *
 *   GD_FUNCTIONS(X)  X(number, function, kind of team), one after the other
 *   GD_FAILS         whether a function may use gd_assert, gd_require or gd_status
 *
 * A lane is polled by the first warp of its first block. Its other warps wait at a barrier until
 * a function wants the block, its other blocks poll the lane's board until one wants the grid.
 *
 * The kernel ends by itself after a slice, between two calls, and its next launch, queued behind it
 * on the same stream, goes on from what the board of each lane says. Slices are cut at multiples of
 * their length on the device's clock, so that all residents of a device end together.
 *
 * Compiled with loads that bypass the L1 cache (ptxas -dlcm=cg), where the CPU's stores do not
 * arrive: what a function reads after its packet was seen is what the CPU stored before it.
 */
namespace gd_service {

constexpr unsigned ALL = 0xffffffff;
constexpr unsigned WORDS = P2PMOD_PACKET_BYTES / 4;
constexpr unsigned LOADS_AHEAD = 4;      /* of a warp, at once; each takes in two packets */
constexpr unsigned POLLS_A_CHECK = 16;   /* polls between looks at the clock and at `control` */
constexpr unsigned SLOW = 20000;         /* clock ticks of a call after which `control` is looked at */
enum : unsigned { GO_ON, STOP, PAUSE, CUT }; /* what `control` says; CUT: the slice is over */

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

    typedef typename count_to<count>::type all;

    template <class T> static __device__ inline const T &at(const char *arguments, unsigned offset)
    {
        return *(const T *)(arguments + offset);
    }

    /* The arguments lie one behind the other, aligned to 16 bytes. */
    template <unsigned... I>
    static __device__ inline unsigned long long run(R (*function)(P...), const char *arguments,
                                                    indices<I...>)
    {
        if constexpr (gd_signature_of::gd_kind<R>::gd_value == 'v') {
            function(at<typename gd_signature_of::gd_plain<P>::gd_type>(
                arguments, offset_of<P...>(I))...);
            return 0;
        } else {
            static_assert(sizeof(R) <= 8, "a function of a service returns at most 8 bytes: let it "
                                          "store larger results through a pointer");
            union { unsigned long long bits; R result; } both = {0};
            both.result = function(at<typename gd_signature_of::gd_plain<P>::gd_type>(
                arguments, offset_of<P...>(I))...);
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
__device__ inline unsigned look(const unsigned *at)
{
    return *(const volatile unsigned *)at;
}

__device__ inline unsigned long long look(const unsigned long long *at)
{
    return *(const volatile unsigned long long *)at;
}

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

/* Of what the threads of a warp saw each for itself: the first one's, so that they go one way. */
__device__ inline unsigned alike(unsigned seen)
{
    return __shfl_sync(ALL, seen, 0);
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

/* ---- teams ---- */

/*
 * Packets that were seen, a row of 64 bytes each: word w is in column w - 1, so that arguments are
 * aligned; the last column is not used. Then the arguments of a call by reference, or of one that
 * blocks run.
 */
constexpr unsigned TAG = WORDS - 2;      /* its column */
__shared__ uint4 rows[LOADS_AHEAD * 2][P2PMOD_PACKET_BYTES / 16];
__shared__ uint4 arguments[ARGUMENT_WORDS / 4];
__shared__ unsigned ordered;             /* the function that the block's warps run next */

/* By every thread of a block or grid; the result is that of its first thread. */
__device__ inline unsigned long long run(unsigned function)
{
    switch (function) {
#define GD_RUN(number, name, kind)                                                                \
    case number:                                                                                  \
        if constexpr (kind == BLOCK || kind == GRID)                                              \
            return described<decltype(&name)>::run(&name, (const char *)arguments,                \
                                                   described<decltype(&name)>::all());            \
        break;
        GD_FUNCTIONS(GD_RUN)
    }
    return 0;
}

/* The other warps of a polling block: run what is ordered until that is the end. */
__device__ inline void follow()
{
    for (;;) {
        __syncthreads();
        unsigned function = ordered;
        if (function == P2PMOD_FUNCTION_STOP)
            return;
        run(function);
        release();
        __syncthreads();
    }
}

/* The other blocks of a lane. */
__device__ inline void second(unsigned launch)
{
    for (unsigned last = look(&shared_board->ordered[launch % 2]);;) {
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
        for (unsigned i = threadIdx.x; i < ARGUMENT_WORDS / 4; i += blockDim.x)
            arguments[i] = look(&shared_board->arguments[i]);
        __syncthreads();
        run(ordered);
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
    for (unsigned i = threadIdx.x; i < ARGUMENT_WORDS / 4; i += 32)
        shared_board->arguments[i] = arguments[i];
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

/* ---- the end of a launch ---- */

/* What the lanes of a service agree on, in device memory. Zeroed when it starts. */
struct ends {
    unsigned ready;             /* lanes that have ended this launch, or are ready to */
    unsigned ended;             /* lanes that have ended it */
    unsigned over;              /* lanes that have ended for good */
};
__shared__ ends *ending;
__shared__ unsigned lanes;      /* of the service */

#ifdef GPUDIRECT_EMULATED
constexpr unsigned GRACE = 2000000;
#else
constexpr unsigned GRACE = 50000;        /* ns that a lane waits for the others to be ready */
#endif
constexpr unsigned AGAIN = 8 * GRACE;    /* after which it asks them again */

/*
 * By a lane whose slice is over, between two calls: whether all lanes end now. While one runs a long
 * function, the others go on: a launch that has ended in part would answer none of their calls.
 */
__device__ inline bool all_ready()
{
    bool all = false;

    if (threadIdx.x == 0) {
        unsigned seen = atomicAdd(&ending->ready, 1u) + 1;
        unsigned long long end = now() + GRACE;
        while (seen != lanes && now() < end) {
            __nanosleep(100);
            seen = look(&ending->ready);
        }
        while (seen != lanes) {          /* not ready any more, unless that is settled meanwhile */
            unsigned found = atomicCAS(&ending->ready, seen, seen - 1);
            if (found == seen)
                break;
            seen = found;
        }
        all = seen == lanes;
    }
    return __shfl_sync(ALL, unsigned(all), 0);
}

/* By a lane's last act: the last one of the launch tells whoever queues the next one. */
__device__ inline void tell_end(unsigned launch, volatile unsigned *told)
{
    __threadfence();
    if (atomicAdd(&ending->ended, 1u) != lanes - 1)
        return;
    ending->ended = ending->ready = 0;
    if (look(&ending->over) == lanes)
        told[1] = 1;
    release();
    told[0] = launch;
}

/* ---- the polling warp ---- */

struct lane {
    const unsigned *packets;             /* this thread's word of the first packet */
    const unsigned *at;                  /* of the next one */
    uint4 *replies;
    uint4 *reply;                        /* to the next one */
    unsigned mask;
    unsigned row;                        /* address of rows[0] */
    unsigned next;                       /* number of the call awaited */
    unsigned long long cut;              /* when the slice is over; never, for ever */
    unsigned long long grids;            /* calls that the grid has run since */

    __device__ inline void go_to(unsigned number)
    {
        next = number;
        at = packets + (number & mask) * WORDS;
        reply = replies + (number & mask);
    }
};

/* Whether this thread's word of a packet is what call `number` has there. */
__device__ inline bool fits(unsigned word, unsigned number)
{
    unsigned which = threadIdx.x % WORDS;

    return which == 0           ? word == number
           : which == WORDS - 1 ? (word & 0xffff) == (number & 0xffff)
                                : true;
}

/* The address of the first row as shared memory has it, kept in a register. */
__device__ inline unsigned first_row()
{
#ifdef GPUDIRECT_EMULATED
    return 0;
#else
    unsigned at = unsigned(__cvta_generic_to_shared(rows));
    asm volatile("" : "+r"(at));         /* or it is made anew at each use, which takes longer */
    return at;
#endif
}

/* 16 bytes of a row. */
__device__ inline uint4 from_row(unsigned at)
{
#ifdef GPUDIRECT_EMULATED
    return __ldcv((const uint4 *)((const char *)rows + at));
#else
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
#endif
}

/* Run a function on the arguments in a row. */
template <unsigned number, unsigned kind, class F>
__device__ inline unsigned long long serve(F function, lane &l, unsigned row)
{
    typedef described<F> d;
    constexpr bool far = d::size > P2PMOD_PACKET_ARGUMENTS;
    constexpr unsigned quarters = (d::size + 15) / 16;
    unsigned me = threadIdx.x;
    unsigned long long value = 0;

    if (me == 0)
        team = kind;
    if constexpr (far) {
        uint4 start = from_row(row);
        const unsigned *there = (const unsigned *)((unsigned long long)start.y << 32 | start.x);
        for (unsigned i = me; i * 4 < d::size; i += 32)
            ((unsigned *)arguments)[i] = look(there + i);
        __syncwarp();
    } else if constexpr (kind == BLOCK || kind == GRID) {
        if (me < quarters)
            arguments[me] = from_row(row + 16 * me);
        __syncwarp();
    }
    if constexpr (kind == THREAD || kind == WARP) {
        if (kind == WARP)
            __syncwarp();
        if (kind == WARP || me == 0) {
            if constexpr (far) {
                value = d::run(function, (const char *)arguments, typename d::all());
            } else {
                uint4 near[quarters + 1];  /* in registers: every index is known */
#pragma unroll
                for (unsigned i = 0; i < quarters; i++)
                    near[i] = from_row(row + 16 * i);
                value = d::run(function, (const char *)near, typename d::all());
            }
            if (d::writes)
                release();
        }
    } else {
        if (me == 0)
            ordered = number;
        if (kind == GRID && blocks > 1)
            wake_grid(number);
        __syncthreads();
        value = run(number);
        release();
        __syncthreads();
        if (kind == GRID && blocks > 1 && me == 0)
            await_grid(++l.grids);
    }
    return value;
}

/* Answer call l.next, which wants this function. False when it ends the lane. */
__device__ inline bool answer(lane &l, unsigned function, unsigned row, bool stopping)
{
    unsigned long long value = 0;
    unsigned status = P2PMOD_STATUS_OK;

    if (GD_FAILS && threadIdx.x == 0)
        failure[0] = failure[1] = 0;
    if (stopping) {
        status = P2PMOD_STATUS_STOPPED;
    } else {
        switch (function) {
#define GD_SERVE(number, name, kind)                                                              \
    case number:                                                                                  \
        value = serve<number, kind>(&name, l, row);                                               \
        break;
            GD_FUNCTIONS(GD_SERVE)
        default:
            if (function < P2PMOD_FUNCTION_NOTHING)
                status = P2PMOD_STATUS_NO_FUNCTION;
        }
    }
    if (GD_FAILS)
        __syncwarp();
    if (threadIdx.x == 0) {
        if (GD_FAILS && !status) {
            status = *(volatile unsigned *)&failure[0];
            if (status)
                value = *(volatile unsigned *)&failure[1];
        }
        put(l.reply, make_uint4(unsigned(value), unsigned(value >> 32), status, l.next));
    }
    __syncwarp();
    l.go_to(l.next + 1);
    return function != P2PMOD_FUNCTION_STOP;
}

/* Keep a word of a packet, where it is one of a row's. */
__device__ inline void keep(unsigned row, unsigned word)
{
    unsigned which = threadIdx.x % WORDS;

    if (which)
        ((unsigned *)rows[row])[which - 1] = word;
}

/* How many packets from l.next on are there, in as many rows; and what `control` says. */
__device__ inline unsigned look_ahead(const lane &l, const unsigned *control, unsigned *told)
{
    unsigned words[LOADS_AHEAD], half = threadIdx.x / WORDS, ready = 0;

#pragma unroll
    for (unsigned i = 0; i < LOADS_AHEAD; i++)
        words[i] = look(l.packets + ((l.next + 2 * i + half) & l.mask) * WORDS);
    unsigned says = look(control);       /* comes with the others */
#pragma unroll
    for (unsigned i = 0; i < LOADS_AHEAD; i++) {
        unsigned gone = ~__ballot_sync(ALL, fits(words[i], l.next + 2 * i + half));
        if (ready == 2 * i)
            ready += !gone ? 2 : !(gone & 0xffff);
    }
#pragma unroll
    for (unsigned i = 0; i < LOADS_AHEAD; i++) {
#ifdef GPUDIRECT_EMULATED                /* a load there is not one of the whole warp */
        words[i] = look(l.packets + ((l.next + 2 * i + half) & l.mask) * WORDS);
#endif
        keep(2 * i + half, words[i]);
    }
    __syncwarp();
    if (ready && !*told)
        *told = alike(says);
    return ready;
}

/* Whether much time has passed. All threads of the warp go one way. */
__device__ inline bool slow(unsigned since)
{
    bool much = unsigned(clock64()) - since > SLOW;
#ifdef GPUDIRECT_EMULATED                /* where each has a clock of its own */
    much = __any_sync(ALL, much);
#endif
    return much;
}

/*
 * Answer what is there, several at a time, as long as there is more. What `control` says. After a
 * stop as many calls as the ring holds are told of it: whoever sends on must not keep the lane from
 * ending.
 */
__device__ inline unsigned answer_ahead(lane &l, const unsigned *control, unsigned told)
{
    unsigned stops = l.mask + 1;

    for (;;) {
        unsigned ready = look_ahead(l, control, &told), since = unsigned(clock64());

        if (!ready)
            return told;
        if (!told && __any_sync(ALL, now() > l.cut))
            return CUT;
#pragma unroll 1
        for (unsigned i = 0; i < ready; i++) {
            if (told && (told != STOP || !stops--))
                return told;
            unsigned function = ((const volatile unsigned *)rows[i])[TAG] >> 16;
            if (!answer(l, function, l.row + i * P2PMOD_PACKET_BYTES, told == STOP))
                told = STOP;
            else if (!told && i + 1 < ready && slow(since))
                told = alike(look(control));
        }
    }
}

/*
 * Poll a lane until the service is stopped or paused, or its time or the slice is over. STOP: the
 * lane has ended for good.
 */
__device__ inline unsigned poll(lane &l, const unsigned *control, unsigned long long idle_after,
                            unsigned idle_sleep, unsigned long long end)
{
    unsigned heard = GO_ON, polls = 0, polls_a_check = POLLS_A_CHECK;
    unsigned long long worked = now();
    bool work = false;

    for (;;) {
        /* what can be done before it is known whether the packet is there */
        unsigned word = look(l.at), function = __shfl_sync(ALL, word, WORDS - 1) >> 16;
        keep(0, word);
        if (__all_sync(ALL, fits(word, l.next))) {
#ifdef GPUDIRECT_EMULATED
            word = look(l.at);
            function = __shfl_sync(ALL, word, WORDS - 1) >> 16;
            keep(0, word);
#endif
            __syncwarp();
            unsigned told = answer(l, function, l.row, false) ? GO_ON : STOP;
            told = answer_ahead(l, control, told);
            if (told && told != CUT)
                return told;
            work = true;
            polls_a_check = POLLS_A_CHECK;
            if (told)
                polls = POLLS_A_CHECK;   /* look at the clock now */
        }
#ifdef GPUDIRECT_EMULATED
        __nanosleep(2000);
#endif
        if (++polls < polls_a_check)
            continue;
        polls = 0;
        unsigned long long t = now();
        if (unsigned told = __any_sync(ALL, t > end) ? STOP : alike(heard)) {
            if (told == STOP)
                answer_ahead(l, control, told);
            return told;
        }
        if (__any_sync(ALL, t > l.cut)) {
            if (all_ready())
                return CUT;
            l.cut = now() + AGAIN;
        }
        heard = look(control);           /* waited for at the next check only */
        if (work) {
            worked = t;
            work = false;
        } else if (__any_sync(ALL, t - worked > idle_after)) {
            polls_a_check = 1;
            __nanosleep(idle_sleep);
        }
    }
}

}  // namespace gd_service

extern "C" __global__ void gd_resident(
    const unsigned *packets, uint4 *replies, const unsigned *control, gd_service::ends *end_of_launch,
    unsigned char *boards, unsigned board_size, unsigned slots, unsigned blocks_per_lane,
    unsigned idle_sleep, unsigned long long idle_after, unsigned long long lifetime,
    volatile unsigned *told, unsigned launch, unsigned long long slice)
{
    using namespace gd_service;
    unsigned number = blockIdx.x / blocks_per_lane;

    if (threadIdx.x == 0) {
        blocks = blocks_per_lane;
        shared_board = (board *)(boards + (unsigned long long)number * board_size);
        ending = end_of_launch;
        lanes = gridDim.x / blocks_per_lane;
        team = THREAD;
        failure[0] = failure[1] = 0;
    }
    __syncthreads();
    if (blockIdx.x % blocks_per_lane) {
        second(launch);
        return;
    }
    if (threadIdx.x >= 32) {
        follow();
        return;
    }
    lane l;
    l.packets = packets + (unsigned long long)number * slots * WORDS + threadIdx.x % WORDS;
    l.replies = replies + (unsigned long long)number * slots;
    l.mask = slots - 1;
    l.row = first_row();
    l.grids = blocks > 1 ? look(&shared_board->arrived) / (blocks - 1) : 0;
    l.go_to(look(&shared_board->answered) + 1);
    unsigned long long start = now();
    l.cut = ~0ull;
    if (slice) {
        l.cut = (start / slice + 1) * slice;
        if (l.cut - start < slice / 4) /* of a launch that did not follow another */
            l.cut += slice;
    }
    unsigned long long end = look(&shared_board->deadline);
    if (!end)
        end = lifetime ? start + lifetime : ~0ull;
    unsigned over = look(&shared_board->over);
    __syncwarp();
    unsigned why = over ? unsigned(STOP) : poll(l, control, idle_after, idle_sleep, end);
    if (threadIdx.x == 0) {
        if (why == STOP && !over)
            atomicAdd(&ending->over, 1u);
        if (why != CUT)
            atomicAdd(&ending->ready, 1u);
        shared_board->answered = l.next - 1;
        shared_board->deadline = end;
        shared_board->over = why == STOP;
        shared_board->ordered[(launch + 1) % 2] = shared_board->order + (blocks_per_lane > 1);
        ordered = P2PMOD_FUNCTION_STOP;
    }
    if (blocks_per_lane > 1)
        wake_grid(P2PMOD_FUNCTION_STOP);
    __syncthreads();
    if (threadIdx.x == 0)
        tell_end(launch, told);
}
