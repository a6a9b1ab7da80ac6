/*
 * The end of a launch. The kernel ends by itself after a slice, between two calls, and its next launch,
 * queued behind it on the same stream, goes on from what the board of each lane says. Slices are cut at
 * multiples of their length on the device's clock, so that all residents of a device end together.
 *
 * Without calls it leaves the device: its next launch waits on its stream for the wake word, which the
 * next call's store sets (p2pmod-lane.h).
 */
namespace gd_service {

/* What the lanes of a service agree on, in device memory. Zeroed when it starts. */
struct gd_ends {
    unsigned ready;             /* lanes that have ended this launch, or are ready to */
    unsigned ended;             /* lanes that have ended it */
    unsigned over;              /* lanes that have ended for good */
    unsigned idle;              /* lanes that have had no call for a while */
    unsigned active;            /* lanes that have ended this launch and were not idle */
    unsigned called;            /* lanes that have ended it and had calls in it */
};
__shared__ gd_ends *ending;
__shared__ unsigned lanes;      /* of the service */
__shared__ unsigned *wake;      /* the device's wake word; null: launches wait for nothing */
__shared__ unsigned rounds;     /* number of the round that this launch belongs to */

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

/* Whether a round comes after another. */
__device__ inline bool later(unsigned round, unsigned than)
{
    return int(round - than) > 0;
}

/*
 * By a lane's last act. The last one of the launch tells whoever queues the next one, and lets that
 * begin, unless no lane has had calls: then nothing is resident until somebody sets the wake word.
 */
__device__ inline void tell_end(bool active, bool called, volatile unsigned *told)
{
    if (active)
        atomicAdd(&ending->active, 1u);
    if (called)
        atomicAdd(&ending->called, 1u);
    __threadfence();
    if (atomicAdd(&ending->ended, 1u) != lanes - 1)
        return;
    __threadfence();
    unsigned all = lanes, over = look(&ending->over);
    active = look(&ending->active);
    called = look(&ending->called);
    ending->ended = ending->ready = ending->idle = ending->active = ending->called = 0;
    if (over == all)
        told[P2PMOD_TOLD_OVER] = 1;
    if (!active)
        told[P2PMOD_TOLD_NAPPED] = rounds;
    if (called)
        told[P2PMOD_TOLD_CALLED] = rounds;
    release();
    told[P2PMOD_TOLD_ENDED] = rounds;
    if (active && wake && !later(look(wake), rounds))
        *(volatile unsigned *)wake = rounds + 1;
}

}  // namespace gd_service
