/* SPDX-License-Identifier: MIT */
/*
 * Guarded access: a mapping can vanish at any moment (the driver revokes the pages), and the next
 * load or store then raises SIGBUS. Between gd_guard_enter and gd_guard_leave that signal, on an
 * address inside the guarded range, comes back as a second return of gd_guard_enter instead.
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

/* 0 on entry; not 0 when an access inside the range faulted. The mask is not saved: cheap. */
#define gd_guard_enter(guard, from, size)                                                         \
    (gd_guard_install(), (guard)->start = (from), (guard)->end = (from) + (size),                 \
     (guard)->outer = gd_guard_current,                                                           \
     sigsetjmp((guard)->back, 0) ? 1                                                              \
                                 : (__atomic_store_n(&gd_guard_current, (guard),                  \
                                                     __ATOMIC_RELEASE), 0))

#define gd_guard_leave(guard)                                                                     \
    __atomic_store_n(&gd_guard_current, (guard)->outer, __ATOMIC_RELEASE)

#endif
