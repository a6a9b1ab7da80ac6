/*
 * The end of a launch. The kernel ends by itself after a slice, between two calls, and its next launch,
 * queued behind it on the same stream, goes on from what the board of each lane says. Slices are cut at
 * multiples of their length on the device's clock, so that all residents of a device end together.
 */
namespace gd_service {

/* What the lanes of a service agree on, in device memory. Zeroed when it starts. */
struct gd_ends {
    unsigned ready;             /* lanes that have ended this launch, or are ready to */
    unsigned ended;             /* lanes that have ended it */
    unsigned over;              /* lanes that have ended for good */
};
__shared__ gd_ends *ending;
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

}  // namespace gd_service
