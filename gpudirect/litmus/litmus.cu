/*
 * The device's side of the litmus tests. Loads and stores are volatile: they go to memory each
 * time. A kernel that is not answered gives up, so that a broken run ends.
 */
typedef volatile unsigned word;

#define PATIENCE 20000000000ll /* clock ticks: about 10 s */

__device__ bool came(word *flag, unsigned value)
{
    long long start = clock64();

    while (*flag != value)
        if (clock64() - start > PATIENCE)
            return false;
    return true;
}

/* After the flag the payload must be there: counts the rounds in which it is not. */
__global__ void receive(word *payload, int words, int step, word *flag, word *answer,
                        unsigned first, unsigned rounds, unsigned *wrong)
{
    unsigned count = 0;

    for (unsigned v = first; v != first + rounds; v++) {
        unsigned old = 0;
        if (!came(flag, v))
            return;
        __threadfence_system();
        for (int i = 0; i < words; i++)
            old |= payload[i * step] ^ v;
        count += old != 0;
        *wrong = count;
        __threadfence_system();
        *answer = v;
    }
}

/* A packet of 16 bytes, by one vector load. */
__global__ void receive16(const int4 *packet, word *answer, unsigned first, unsigned rounds,
                          unsigned *wrong)
{
    unsigned count = 0;

    for (unsigned v = first; v != first + rounds; v++) {
        long long start = clock64();
        int4 p = __ldcv(packet);
        while ((unsigned)p.x != v) {
            if (clock64() - start > PATIENCE)
                return;
            p = __ldcv(packet);
        }
        count += (unsigned)p.y != v || (unsigned)p.z != v || (unsigned)p.w != v;
        *wrong = count;
        __threadfence_system();
        *answer = v;
    }
}

/*
 * A packet of 64 bytes, by one load of a warp. (Volatile: the compiler took a __ldcv of 4 bytes out
 * of the loop, and the kernel never saw a second packet.)
 */
__global__ void receive64(word *packet, word *answer, unsigned first, unsigned rounds,
                          unsigned *wrong)
{
    unsigned lane = threadIdx.x, count = 0;

    for (unsigned v = first; v != first + rounds; v++) {
        long long start = clock64();
        unsigned mine, head;
        int late;
        do {
            mine = packet[lane % 16];
            head = __shfl_sync(0xffffffff, mine, 0);
            late = __any_sync(0xffffffff, clock64() - start > PATIENCE);
        } while (head != v && !late);
        if (head != v)
            return;
        count += !__all_sync(0xffffffff, mine == v);
        if (lane == 0) {
            *wrong = count;
            __threadfence_system();
            *answer = v;
        }
    }
}

/* The payload, a fence if asked for, and the flag, all into memory that the CPU reads. */
__global__ void reply(word *bell, word *payload, int words, int step, word *flag, unsigned first,
                      unsigned rounds, int fenced)
{
    for (unsigned v = first; v != first + rounds; v++) {
        if (!came(bell, v))
            return;
#ifdef SABOTAGE
        *flag = v;
        for (long long start = clock64(); clock64() - start < 50000;)
            ;
#endif
        for (int i = 0; i < words; i++)
            payload[i * step] = v;
        if (fenced)
            __threadfence_system();
        *flag = v;
    }
}

__global__ void check(const unsigned *data, unsigned n, unsigned value, unsigned *wrong)
{
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        if (data[i] != value)
            atomicAdd(wrong, 1u);
}

__global__ void stamp(unsigned *data, unsigned n, unsigned value)
{
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        data[i] = value;
}

/* As stamp, but not before some time has passed. */
__global__ void stamp_late(unsigned *data, unsigned n, unsigned value, int ticks)
{
    for (long long start = clock64(); clock64() - start < ticks;)
        ;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        data[i] = value;
}
