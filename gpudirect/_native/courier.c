/* SPDX-License-Identifier: MIT */
/*
 * The CPU's end of a courier. An errand is cut into calls of the resident kernel, several of them under
 * way at once, each with a part of the seat's memory: while the kernel fills or empties one, the CPU
 * does so with another.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "courier.h"
#include "native.h"
#include "relax.h"

enum { READ, GATHER, SCATTER, PACK, UNPACK };

#define READ_PART 32768          /* bytes of a read that go through a part: two are under way at 64 KiB */
#define DIRECT_PART (1 << 20)    /* that the kernel stores where they belong: 32 us, far below a slice */
#define PATIENCE 20000000        /* ns until the caller is told that it takes long */
#define NARROWED 512             /* indices narrowed at once */
#define LEAST_ASLEEP 65536       /* bytes for which a kernel that naps is woken: that takes 6 us */

_Static_assert(READ_PART + 64 <= GD_COURIER_PLACE, "a read fits into its part");
_Static_assert(GD_COURIER_PARTS == 4 && GD_COURIER_DIMS == 4 && GD_COURIER_SEATS == 8,
               "courier.h says both");

/* Arguments of the kernel's functions, as courier.cuh declares them. */
struct push { uint64_t to, from, n; };
struct pick { uint64_t to, from, list; uint32_t count, word, per, wide; };
struct put { uint64_t to, list, items; uint32_t count, word, per, step, wide, ordered; };
struct spread { uint64_t packed, first; uint32_t count, unused; struct gd_strided strided; };

/* ---- seats ---- */

static void get_up(struct gd_seat *seat)
{
    __atomic_store_n(&seat->taken, 0, __ATOMIC_RELEASE);
}

static int sit(struct gd_seat *seat)
{
    uint32_t empty = 0;

    return !__atomic_load_n(&seat->taken, __ATOMIC_RELAXED) &&
           __atomic_compare_exchange_n(&seat->taken, &empty, 1, 0, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
}

static int is_open(const struct gd_courier *courier)
{
    return __atomic_load_n(&courier->open, __ATOMIC_ACQUIRE) != 0;
}

static struct gd_seat *take_seat(struct gd_courier *courier, unsigned how)
{
    uint64_t end = 0;

    for (;;) {
        if (!is_open(courier))
            return NULL;
        for (uint32_t i = 0; i < courier->seats; i++) {
            struct gd_seat *seat = &courier->seat[i];

            if (!sit(seat))
                continue;
            if (is_open(courier)) /* who closes it waits for those who sit */
                return seat;
            get_up(seat);
            return NULL;
        }
        if (!(how & GD_COURIER_FORCED) || (end && gd_now() > end))
            return NULL;
        if (!end)
            end = gd_now() + PATIENCE;
        sched_yield();
    }
}

int gd_courier_clear(struct gd_courier *courier, uint32_t seat)
{
    return seat < GD_COURIER_SEATS && sit(&courier->seat[seat]) ? 0 : -EAGAIN;
}

/* ---- parts ---- */

static uintptr_t staging(const struct gd_seat *seat, uint32_t call)
{
    return seat->staging + (uintptr_t)(call % GD_COURIER_PARTS) * GD_COURIER_PLACE;
}

static size_t list_offset(uint32_t call)
{
    return (size_t)(call % GD_COURIER_PARTS) * GD_COURIER_PLACE;
}

static int is_wide(const struct gd_errand *e)
{
    return e->size > UINT32_MAX;
}

static size_t item(const struct gd_errand *e)
{
    return (size_t)e->word * e->per;
}

/* Items of a gather, and of a scatter, that one part takes. */
static uint64_t most_picked(const struct gd_errand *e)
{
    uint64_t listed = GD_COURIER_PART / (is_wide(e) ? 8 : 4), packed = GD_COURIER_PART / item(e);

    return listed < packed ? listed : packed;
}

static uint64_t most_put(const struct gd_errand *e)
{
    return (GD_COURIER_PART - 64) / ((is_wide(e) ? 8 : 4) + item(e));
}

/* What is added to a negative index: where a gather counts from the end, a scatter has none. */
static uint64_t from_the_end(const struct gd_errand *e)
{
    return e->kind == GATHER ? e->size : 0;
}

/* How many elements from one place on an item takes up. */
static uint64_t reach(const struct gd_errand *e)
{
    return e->kind == SCATTER ? (e->per + (uint64_t)e->step - 1) / e->step : 1;
}

/* From which index on an item is not inside. */
static uint64_t outside(const struct gd_errand *e)
{
    return e->size < reach(e) ? 0 : e->size - reach(e) + 1;
}

static int all_inside(const struct gd_errand *e)
{
    uint64_t last = outside(e) - 1, size = from_the_end(e), wrong = 0;

    for (uint64_t i = 0; i < e->total; i++) {
        uint64_t at = (uint64_t)e->indices[i] + ((uint64_t)(e->indices[i] >> 63) & size);

        wrong |= at | (last - at); /* either is negative */
    }
    return !(wrong >> 63);
}

/*
 * Indices from number `begun` on into a list, none negative, in 4 bytes each where that is enough.
 * -ERANGE: one is outside, and the list is not to be used. Who checked them all before may have been
 * wrong since: they lie in memory of the caller's.
 * rising: whether each item ends before the next begins.
 */
static int store_indices(const struct gd_courier *courier, struct gd_seat *seat, size_t offset,
                         uint64_t count, int *rising)
{
    struct gd_errand *e = &seat->errand;
    const int64_t *all = e->indices + e->begun;
    uint64_t narrowed[NARROWED] __attribute__((aligned(64)));
    uint64_t size = from_the_end(e), last = outside(e) - 1, apart = reach(e);
    uint64_t wrong = 0, falling = 0; /* in their highest bit: what becomes negative */
    uint32_t *small = (uint32_t *)narrowed;
    size_t each = is_wide(e) ? 8 : 4;

    for (uint64_t done = 0; done < count;) {
        size_t n = count - done < NARROWED ? count - done : NARROWED;
        const int64_t *some = all + done;
        int code;

        if (each == 8) {
            for (size_t i = 0; i < n; i++) {
                narrowed[i] = (uint64_t)some[i] + ((uint64_t)(some[i] >> 63) & size);
                wrong |= narrowed[i] | (last - narrowed[i]);
            }
        } else {
            for (size_t i = 0; i < n; i++) {
                uint64_t at = (uint64_t)some[i] + ((uint64_t)(some[i] >> 63) & size);

                wrong |= at | (last - at);
                small[i] = (uint32_t)at;
            }
        }
        if (e->kind == SCATTER)
            for (size_t i = !done; i < n; i++)
                falling |= (uint64_t)some[i] - (uint64_t)some[(ptrdiff_t)i - 1] - apart;
        code = gd_write(seat->list + offset + done * each, (const char *)narrowed, n * each,
                        GD_NO_FENCE | GD_ONE_THREAD | courier->flags);
        if (code)
            return code;
        done += n;
    }
    *rising = !(falling >> 63);
    return wrong >> 63 ? -ERANGE : 0;
}

/* ---- calls ---- */

static int send_read(const struct gd_courier *courier, struct gd_seat *seat, uint64_t *amount)
{
    struct gd_errand *e = &seat->errand;
    uint64_t left = e->total - e->begun, most = e->direct ? DIRECT_PART : READ_PART;
    struct push push = {.from = e->device + e->begun};

    push.n = *amount = left < most ? left : most;
    push.to = e->direct ? (uint64_t)(uintptr_t)e->to + e->begun
                        : staging(seat, e->calls) + (push.from & 15);
    return gd_lane_send(&seat->lane, courier->push, (const char *)&push, sizeof(push));
}

static int send_gather(const struct gd_courier *courier, struct gd_seat *seat, uint64_t *amount)
{
    struct gd_errand *e = &seat->errand;
    uint64_t left = e->total - e->begun, most = most_picked(e);
    size_t offset = list_offset(e->calls);
    struct pick pick = {.from = e->device, .list = seat->list_device + offset, .word = e->word,
                        .per = e->per, .wide = (uint32_t)is_wide(e)};
    int rising, code;

    *amount = left < most ? left : most;
    pick.count = (uint32_t)*amount;
    pick.to = e->direct ? (uint64_t)(uintptr_t)e->to + e->begun * item(e)
                        : staging(seat, e->calls);
    code = store_indices(courier, seat, offset, *amount, &rising);
    return code ? code
                : gd_lane_send(&seat->lane, courier->pick, (const char *)&pick, sizeof(pick));
}

static int send_scatter(const struct gd_courier *courier, struct gd_seat *seat, uint64_t *amount)
{
    struct gd_errand *e = &seat->errand;
    size_t each = is_wide(e) ? 8 : 4, offset = list_offset(e->calls), behind;
    uint64_t left = e->total - e->begun, most = most_put(e);
    struct put put = {.to = e->device, .list = seat->list_device + offset, .word = e->word,
                      .per = e->per, .step = e->step, .wide = (uint32_t)is_wide(e)};
    int rising, code;

    *amount = left < most ? left : most;
    put.count = (uint32_t)*amount;
    code = store_indices(courier, seat, offset, *amount, &rising);
    if (code)
        return code;
    behind = offset + ((size_t)*amount * each + 63) / 64 * 64;
    put.items = seat->list_device + behind;
    put.ordered = !rising;
    code = gd_write(seat->list + behind, e->from + e->begun * item(e), (size_t)*amount * item(e),
                    GD_NO_FENCE | GD_ONE_THREAD | courier->flags);
    return code ? code
                : gd_lane_send(&seat->lane, courier->put, (const char *)&put, sizeof(put));
}

static int send_spread(const struct gd_courier *courier, struct gd_seat *seat, uint64_t *amount)
{
    struct gd_errand *e = &seat->errand;
    uint64_t left = e->total - e->begun, most = GD_COURIER_PART / e->word;
    size_t offset = list_offset(e->calls);
    struct spread spread = {.first = e->begun, .strided = e->strided};

    *amount = left < most ? left : most;
    spread.count = (uint32_t)*amount;
    if (e->kind == PACK) {
        spread.packed = e->direct ? (uint64_t)(uintptr_t)e->to + e->begun * e->word
                                  : staging(seat, e->calls);
    } else {
        int code = gd_write(seat->list + offset, e->from + e->begun * e->word, *amount * e->word,
                            GD_NO_FENCE | GD_ONE_THREAD | courier->flags);

        if (code)
            return code;
        spread.packed = seat->list_device + offset;
    }
    return gd_lane_send(&seat->lane, e->kind == PACK ? courier->pack : courier->unpack,
                        (const char *)&spread, sizeof(spread));
}

static int send_next(const struct gd_courier *courier, struct gd_seat *seat)
{
    struct gd_errand *e = &seat->errand;
    uint64_t *amount = &e->amount[e->calls % GD_COURIER_PARTS];
    int code = e->kind == READ      ? send_read(courier, seat, amount)
               : e->kind == GATHER  ? send_gather(courier, seat, amount)
               : e->kind == SCATTER ? send_scatter(courier, seat, amount)
                                    : send_spread(courier, seat, amount);

    if (code)
        return code;
    e->begun += *amount;
    e->calls++;
    return 0;
}

/* What the oldest call brought goes where it belongs. */
static void bring(struct gd_seat *seat)
{
    struct gd_errand *e = &seat->errand;
    const char *from = (const char *)staging(seat, e->taken);
    size_t n = e->amount[e->taken % GD_COURIER_PARTS] * item(e);

    if (!e->to || e->direct)
        return;
    memcpy(e->to, e->kind == READ ? from + (e->device & 15) : from, n);
    e->to += n;
}

/* ---- errands ---- */

static int advance(struct gd_seat *seat, int64_t timeout)
{
    const struct gd_courier *courier = seat->courier;
    struct gd_errand *e = &seat->errand;

    for (;;) {
        struct p2pmod_reply reply;
        int code;

        while (e->begun < e->total && e->calls - e->taken < GD_COURIER_PARTS) {
            code = send_next(courier, seat);
            if (code) { /* what was sent before still runs */
                e->failed = code;
                e->total = e->begun;
            }
        }
        if (e->taken == e->calls)
            return e->failed;
        code = gd_lane_wait(&seat->lane, seat->lane.sent - (e->calls - e->taken) + 1, timeout,
                            &reply);
        if (code)
            return code;
        if (reply.status != P2PMOD_STATUS_OK)
            return -ESHUTDOWN;
        bring(seat);
        e->taken++;
    }
}

int gd_courier_go_on(struct gd_left *left, int64_t timeout)
{
    struct gd_seat *seat = left->seat;

    if (!seat)
        return left->code;
    left->code = advance(seat, timeout);
    if (left->code != -ETIMEDOUT) {
        left->seat = NULL;
        get_up(seat);
    }
    return left->code;
}

/* Nothing of the kernel is on the device: p2pmod-lane.h. */
static int naps(const struct gd_lane *lane)
{
    const uint32_t *told = (const uint32_t *)lane->told;
    uint32_t ended;

    if (!told)
        return 0;
    ended = __atomic_load_n(&told[P2PMOD_TOLD_ENDED], __ATOMIC_ACQUIRE);
    return __atomic_load_n(&told[P2PMOD_TOLD_NAPPED], __ATOMIC_ACQUIRE) == ended &&
           __atomic_load_n(&told[P2PMOD_TOLD_BEGUN], __ATOMIC_ACQUIRE) == ended;
}

/*
 * A kernel that naps is slower than any other way to move a little. So a little goes that way, and a
 * call that asks for nothing wakes the kernel for what comes next.
 */
static void stir(struct gd_lane *lane)
{
    struct p2pmod_reply reply;

    if (!lane->sent || !gd_lane_look(lane, lane->sent, &reply))
        gd_lane_send(lane, P2PMOD_FUNCTION_NOTHING, NULL, 0);
}

/* worth: bytes of a read that takes as long any other way. */
static int begin(struct gd_courier *courier, const struct gd_errand *errand, uint64_t worth,
                 unsigned how, struct gd_left *left)
{
    struct gd_seat *seat = take_seat(courier, how);

    if (!seat)
        return -EAGAIN;
    if (worth < LEAST_ASLEEP && !(how & GD_COURIER_FORCED) && naps(&seat->lane)) {
        stir(&seat->lane);
        get_up(seat);
        return -EAGAIN;
    }
    seat->errand = *errand;
    seat->errand.direct = how & GD_COURIER_DIRECT;
    __atomic_add_fetch(&courier->errands[errand->kind], 1, __ATOMIC_RELAXED);
    left->seat = seat;
    return gd_courier_go_on(left, PATIENCE);
}

/* The widest word that all of these are multiples of. */
static uint32_t widest(uint64_t all)
{
    return all & 1 ? 1 : all & 2 ? 2 : all & 4 ? 4 : all & 8 ? 8 : 16;
}

int gd_courier_read(struct gd_courier *courier, char *to, uint64_t device, size_t n, unsigned how,
                    struct gd_left *left)
{
    struct gd_errand e = {.kind = READ, .device = device, .to = to, .total = n, .word = 1, .per = 1};

    if (!n)
        return 0;
    if (((uintptr_t)to ^ device) & 15)
        how &= ~(unsigned)GD_COURIER_DIRECT; /* whole words go there, or none */
    return begin(courier, &e, n, how, left);
}

int gd_courier_gather(struct gd_courier *courier, char *to, uint64_t device, uint64_t size,
                      const int64_t *indices, size_t count, size_t itemsize, unsigned how,
                      struct gd_left *left)
{
    uint64_t bits = itemsize | device | (how & GD_COURIER_DIRECT ? (uintptr_t)to : 0);
    struct gd_errand e = {.kind = GATHER, .device = device, .to = to, .indices = indices,
                          .size = size, .total = count};

    if (!count || !itemsize)
        return 0;
    if (itemsize > GD_COURIER_ITEM)
        return -E2BIG;
    e.word = widest(bits);
    e.per = (uint32_t)(itemsize / e.word);
    if (count > most_picked(&e) && !all_inside(&e))
        return -ERANGE; /* of fewer, nothing is sent before all were looked at */
    return begin(courier, &e, count * 256, how, left);
}

int gd_courier_scatter(struct gd_courier *courier, uint64_t device, uint64_t size, size_t step,
                       const int64_t *indices, size_t count, const char *items, size_t itemsize,
                       unsigned how, struct gd_left *left)
{
    struct gd_errand e = {.kind = SCATTER, .device = device, .from = items, .indices = indices,
                          .size = size, .total = count};

    if (!count || !itemsize || !step)
        return 0;
    if (itemsize > GD_COURIER_ITEM)
        return -E2BIG;
    e.word = widest(itemsize | step | device);
    e.per = (uint32_t)(itemsize / e.word);
    e.step = (uint32_t)(step / e.word);
    if (count > most_put(&e) && !all_inside(&e))
        return -ERANGE;
    return begin(courier, &e, count * 64, how & ~(unsigned)GD_COURIER_DIRECT, left);
}

static int spread(struct gd_courier *courier, const struct gd_strided *strided,
                  struct gd_errand *e, unsigned how, struct gd_left *left)
{
    e->strided = *strided;
    e->word = strided->word;
    e->per = 1;
    e->total = 1;
    for (int i = 0; i < GD_COURIER_DIMS; i++)
        e->total *= strided->shape[i];
    return e->total ? begin(courier, e, e->total * 64, how, left) : 0;
}

int gd_courier_pack(struct gd_courier *courier, char *to, const struct gd_strided *strided,
                    unsigned how, struct gd_left *left)
{
    struct gd_errand e = {.kind = PACK, .to = to};

    if ((uintptr_t)to & (strided->word - 1))
        how &= ~(unsigned)GD_COURIER_DIRECT;
    return spread(courier, strided, &e, how, left);
}

int gd_courier_unpack(struct gd_courier *courier, const struct gd_strided *strided,
                      const char *from, unsigned how, struct gd_left *left)
{
    struct gd_errand e = {.kind = UNPACK, .from = from};

    return spread(courier, strided, &e, how & ~(unsigned)GD_COURIER_DIRECT, left);
}

/* ---- life ---- */

struct gd_courier *gd_courier_new(void)
{
    struct gd_courier *courier = aligned_alloc(64, (sizeof(*courier) + 63) / 64 * 64);

    if (!courier)
        return NULL;
    memset(courier, 0, sizeof(*courier));
    for (int i = 0; i < GD_COURIER_SEATS; i++) {
        courier->seat[i].taken = 1; /* nobody sits where nothing is */
        courier->seat[i].courier = courier;
    }
    return courier;
}

void gd_courier_ready(struct gd_courier *courier)
{
    for (uint32_t i = 0; i < courier->seats; i++)
        get_up(&courier->seat[i]);
}

void gd_courier_open(struct gd_courier *courier)
{
    __atomic_store_n(&courier->open, 1, __ATOMIC_RELEASE);
}

void gd_courier_close(struct gd_courier *courier)
{
    __atomic_store_n(&courier->open, 0, __ATOMIC_RELEASE);
}
