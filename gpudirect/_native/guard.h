/* SPDX-License-Identifier: MIT */
/*
 * Guarded access: a mapping can vanish at any moment (the driver revokes the pages: SIGBUS; or it
 * is replaced by a reservation: SIGSEGV). Between gd_guard_enter and gd_guard_leave such a signal,
 * on an address inside the guarded range, comes back as a second return of gd_guard_enter instead.
 * Any other fault goes to whoever handled the signal before.
 *
 * Somebody else may take the signals later (faulthandler.enable(), signal.signal()). That is looked
 * for where a mapping is made, and at the start of a guarded access or while it waits, if the last
 * look is more than some 20 us ago: asking the system costs 0.1 us or more, and a store 0.1 us. He
 * then gets what is not ours. What cannot be had: an access that meets revoked memory before
 * the next look. With faulthandler in front its report is written, and the access comes back as it
 * should; a handler that ends the process ends it, and one that just returns returns for ever.
 */
#ifndef GPUDIRECT_GUARD_H
#define GPUDIRECT_GUARD_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "native.h"

struct gd_guard {
    sigjmp_buf back;
    uintptr_t start, end;
    struct gd_guard *outer;
};

extern __thread struct gd_guard *gd_guard_current __attribute__((tls_model("initial-exec")));
extern __thread int64_t gd_guard_fault __attribute__((tls_model("initial-exec")));

extern uint64_t gd_guard_looked; /* when it was last made sure that our handlers are in front */

void gd_guard_look(uint64_t now);
void gd_guard_renew(void); /* look now, if there ever was a guard */

#if defined(__x86_64__)
#define GD_GUARD_TICKS 50000 /* of the time stamp counter: 10 to 25 us */
static inline uint64_t gd_guard_tick(void)
{
    return __builtin_ia32_rdtsc();
}
#else
#define GD_GUARD_TICKS 20000 /* ns */
#define gd_guard_tick gd_now
#endif

/* Our handlers are in front, or were some microseconds ago. */
static inline void gd_guard_keep(void)
{
    uint64_t now = gd_guard_tick();

    if (__builtin_expect(now - __atomic_load_n(&gd_guard_looked, __ATOMIC_RELAXED) > GD_GUARD_TICKS, 0))
        gd_guard_look(now);
}

/*
 * 0 on entry; not 0 when an access inside the range faulted. The mask is not saved: cheap (10 ns).
 * Guards nest. The fences keep the compiler from moving accesses across.
 */
#define gd_guard_enter(guard, from, size)                                                         \
    (gd_guard_keep(), (guard)->start = (from), (guard)->end = (from) + (size),                 \
     (guard)->outer = gd_guard_current, sigsetjmp((guard)->back, 0) ? 1 : gd_guard_set(guard))

#define gd_guard_leave(guard) ((void)gd_guard_set((guard)->outer))

static inline int gd_guard_set(struct gd_guard *guard)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&gd_guard_current, guard, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return 0;
}

#endif
