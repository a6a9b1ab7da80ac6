/*
 * A lane is polled by the first warp of its first block, which runs its functions and replies.
 *
 * Compiled with loads that bypass the L1 cache (ptxas -dlcm=cg), where the CPU's stores do not
 * arrive: what a function reads after its packet was seen is what the CPU stored before it.
 */
namespace gd_service {

constexpr unsigned WORDS = P2PMOD_PACKET_BYTES / 4;
constexpr unsigned LOADS_AHEAD = 4;      /* of a warp, at once; each takes in two packets */
constexpr unsigned POLLS_A_CHECK = 16;   /* polls between looks at the clock and at `control` */
constexpr unsigned SLOW = 20000;         /* clock ticks of a call after which `control` is looked at */
enum : unsigned { GO_ON, STOP, PAUSE, CUT }; /* what `control` says; CUT: the slice is over */

/*
 * Packets that were seen, a row of 64 bytes each: word w is in column w - 1, so that arguments are
 * aligned; the last column is not used.
 */
constexpr unsigned TAG = WORDS - 2;      /* its column */
__shared__ uint4 rows[LOADS_AHEAD * 2][P2PMOD_PACKET_BYTES / 16];

struct gd_lane {
    const unsigned *packets;             /* this thread's word of the first packet */
    const unsigned *at;                  /* of the next one */
    uint4 *replies;
    uint4 *reply;                        /* to the next one */
    unsigned mask;
    unsigned row;                        /* address of rows[0] */
    unsigned next;                       /* number of the call awaited */
    unsigned long long cut;              /* when the slice is over; never, for ever */
    unsigned long long worked;           /* when it last had calls */
    unsigned orders;                     /* to the other blocks, ever */
    unsigned arrivals;                   /* of theirs, ever, at this thread's counter */
    bool open;                           /* functions may have written what no fence stands behind */

    /* Whether it has had no call for so long. */
    __device__ inline bool rests(unsigned long long t, unsigned long long nap_after) const
    {
        return nap_after && t > worked && t - worked > nap_after;
    }

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
__device__ inline unsigned long long gd_serve_one(F function, gd_lane &l, unsigned row)
{
    typedef gd_described<F> d;
    constexpr bool far = d::gd_size > P2PMOD_PACKET_ARGUMENTS;
    constexpr unsigned quarters = (d::gd_size + 15) / 16;
    unsigned me = threadIdx.x;
    unsigned long long value = 0;

    if (me == 0)
        team = kind;
    if (kind == GRID && blocks > 1) {
        if (l.open)
            agree();
        order_grid(++l.orders, (const unsigned *)((const char *)rows + (row - l.row)), number);
    }
    if constexpr (far) {
        uint4 start = from_row(row);
        const unsigned *there = (const unsigned *)((unsigned long long)start.y << 32 | start.x);
        for (unsigned i = me; i * 4 < d::gd_size; i += 32)
            ((unsigned *)gd_arguments())[i] = look(there + i);
        __syncwarp();
    } else if constexpr (kind == BLOCK || kind == GRID) {
        if (me < quarters)
            gd_arguments()[me] = from_row(row + 16 * me);
        __syncwarp();
    }
    if constexpr (kind == THREAD || kind == WARP) {
        if (kind == WARP)
            __syncwarp();
        if (kind == WARP || me == 0) {
            if constexpr (far) {
                value = d::run(function, (const char *)gd_arguments(), typename d::all());
            } else {
                uint4 near[quarters + 1];  /* in registers: every index is known */
#pragma unroll
                for (unsigned i = 0; i < quarters; i++)
                    near[i] = from_row(row + 16 * i);
                value = d::run(function, (const char *)near, typename d::all());
            }
            if (d::gd_writes)
                release();
        }
    } else {
        bool grid = kind == GRID && blocks > 1;
        if (me == 0)
            ordered = number;
        __syncthreads();
        value = gd_run(number);
        __syncthreads();
        if (d::gd_writes && me == 0)
            release();
        if (grid) {
            l.arrivals += arriving_at(me);
            await_grid(l.arrivals);
            if (GD_FAILS && me == 0)
                failure_of_grid();
        }
    }
    l.open = kind != GRID && (l.open || !d::gd_writes);
    return value;
}

/* Run the function of this number on the arguments in a row. In entry.cuh. */
__device__ inline unsigned long long gd_serve(unsigned function, gd_lane &l, unsigned row,
                                              unsigned &status);

/* The status of a call of a function that there is not. */
__device__ inline unsigned gd_missing(unsigned function)
{
    return function < P2PMOD_FUNCTION_NOTHING ? P2PMOD_STATUS_NO_FUNCTION : P2PMOD_STATUS_OK;
}

/* Answer call l.next, which wants this function. False when it ends the lane. */
__device__ inline bool answer(gd_lane &l, unsigned function, unsigned row, bool stopping)
{
    unsigned long long value = 0;
    unsigned status = P2PMOD_STATUS_OK;

    if (GD_FAILS && threadIdx.x == 0)
        failure[0] = failure[1] = 0;
    if (stopping) {
        status = P2PMOD_STATUS_STOPPED;
    } else {
        value = gd_serve(function, l, row, status);
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
__device__ inline unsigned look_ahead(const gd_lane &l, const unsigned *control, unsigned *told)
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
__device__ inline unsigned answer_ahead(gd_lane &l, const unsigned *control, unsigned told)
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

struct idling {
    unsigned long long sleep_after, nap_after; /* ns without a call; nap_after 0: never */
    unsigned sleep;                      /* ns between polls */
};

/*
 * Poll a lane until the service is stopped or paused, its time or the slice is over, or all lanes are
 * idle. STOP: the lane has ended for good.
 */
__device__ inline unsigned poll(gd_lane &l, const unsigned *control, const idling &idle,
                                unsigned long long end)
{
    unsigned heard = GO_ON, asked = rounds, polls = 0;
    unsigned polls_a_check = __any_sync(ALL, l.rests(now(), idle.nap_after)) ? 1 : POLLS_A_CHECK;
    bool work = false, counted = false;

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
        if (work) {
            l.worked = t;
            work = false;
        }
        bool cut = __any_sync(ALL, t > l.cut) || alike(later(asked, rounds));
        bool rests = !cut && __any_sync(ALL, l.rests(t, idle.nap_after));
        if (rests != counted) {
            if (threadIdx.x == 0)
                atomicAdd(&ending->idle, rests ? 1u : ~0u);
            counted = rests;
        }
        if (cut || (rests && alike(look(&ending->idle)) == lanes)) {
            if (all_ready())
                return CUT;
            l.cut = now() + AGAIN;
        }
        heard = look(control);           /* waited for at the next check only */
        if (wake)
            asked = look(wake);
        if (__any_sync(ALL, t > l.worked && t - l.worked > idle.sleep_after)) {
            polls_a_check = 1;
            __nanosleep(idle.sleep);
        }
    }
}

/* The resident kernel. */
__device__ inline void gd_reside(
    const unsigned *packets, uint4 *replies, const unsigned *control, gd_ends *end_of_launch,
    unsigned char *boards, unsigned board_size, unsigned slots, unsigned blocks_per_lane,
    unsigned idle_sleep, unsigned long long idle_after, unsigned long long lifetime,
    volatile unsigned *told, unsigned *wake_word, unsigned long long nap_after, unsigned turn,
    unsigned round, unsigned long long slice)
{
    unsigned number = blockIdx.x / blocks_per_lane;

    if (threadIdx.x == 0) {
        blocks = blocks_per_lane;
        before = blockIdx.x % blocks_per_lane * blockDim.x;
        shared_board = (board *)(boards + (unsigned long long)number * board_size);
        ending = end_of_launch;
        lanes = gridDim.x / blocks_per_lane;
        wake = wake_word;
        rounds = round;
        if (blockIdx.x == 0)
            told[P2PMOD_TOLD_BEGUN] = round;
        team = THREAD;
        failure[0] = failure[1] = 0;
    }
    __syncthreads();
    if (blockIdx.x % blocks_per_lane) {
        second(turn);
        return;
    }
    if (threadIdx.x >= 32) {
        follow();
        return;
    }
    gd_lane l;
    l.packets = packets + (unsigned long long)number * slots * WORDS + threadIdx.x % WORDS;
    l.replies = replies + (unsigned long long)number * slots;
    l.mask = slots - 1;
    l.row = first_row();
    l.orders = l.arrivals = 0;
    l.open = false;
    if (blocks > 1) {
        l.orders = look(&shared_board->ordered[turn % 2]);
        l.arrivals = look(&shared_board->back[threadIdx.x % COPIES].arrived);
    }
    unsigned first = look(&shared_board->answered) + 1;
    l.go_to(first);
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
    l.worked = look(&shared_board->worked);
    if (!l.worked)
        l.worked = start;
    unsigned over = look(&shared_board->over);
    idling idle = {idle_after, nap_after, idle_sleep};
    __syncwarp();
    unsigned why = over ? unsigned(STOP) : poll(l, control, idle, end);
    if (threadIdx.x == 0) {
        if (why == STOP && !over)
            atomicAdd(&ending->over, 1u);
        if (why != CUT)
            atomicAdd(&ending->ready, 1u);
        shared_board->answered = l.next - 1;
        shared_board->deadline = end;
        shared_board->over = why == STOP;
        shared_board->worked = l.worked;
        shared_board->ordered[(turn + 1) % 2] = l.orders + (blocks_per_lane > 1);
        ordered = P2PMOD_FUNCTION_STOP;
    }
    if (blocks_per_lane > 1)
        order_grid(l.orders + 1, (const unsigned *)rows, P2PMOD_FUNCTION_STOP);
    __syncthreads();
    if (threadIdx.x == 0)
        tell_end(why != STOP && !l.rests(now(), idle.nap_after), l.next != first, told);
}

}  // namespace gd_service
