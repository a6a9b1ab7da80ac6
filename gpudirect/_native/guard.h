/* SPDX-License-Identifier: MIT */
/*
 * Guarded access: a mapping can vanish at any moment (the driver revokes the pages: SIGBUS; or it
 * is replaced by a reservation: SIGSEGV). Between gd_guard_enter and gd_guard_leave such a signal,
 * on an address inside the guarded range, comes back as a second return of gd_guard_enter instead.
 * Any other fault goes to whoever handled the signal before.
 */
#ifndef GPUDIRECT_GUARD_H
#define GPUDIRECT_GUARD_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

struct gd_guard {
    sigjmp_buf back;
    uintptr_t start, end;
    struct gd_guard *outer;
};

extern __thread struct gd_guard *gd_guard_current __attribute__((tls_model("initial-exec")));
extern __thread int64_t gd_guard_fault __attribute__((tls_model("initial-exec")));

void gd_guard_install(void);

/*
 * 0 on entry; not 0 when an access inside the range faulted. The mask is not saved: cheap (3 ns).
 * Guards nest. The fences keep the compiler from moving accesses across.
 */
#define gd_guard_enter(guard, from, size)                                                         \
    (gd_guard_install(), (guard)->start = (from), (guard)->end = (from) + (size),                 \
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
