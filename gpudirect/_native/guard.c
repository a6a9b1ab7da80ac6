/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "guard.h"
#include "native.h"

__thread struct gd_guard *gd_guard_current __attribute__((tls_model("initial-exec")));
__thread int64_t gd_guard_fault __attribute__((tls_model("initial-exec")));

static struct sigaction before_bus, before_segv;

static void pass_on(int number, siginfo_t *info, void *context)
{
    struct sigaction *before = number == SIGBUS ? &before_bus : &before_segv;

    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(number, info, context);
    } else if (before->sa_handler == SIG_IGN && info->si_code <= 0) {
        return; /* sent by a process, and not wanted */
    } else if (before->sa_handler == SIG_DFL || before->sa_handler == SIG_IGN) {
        /* the access runs again under the default action, which ends the process as it should */
        sigaction(number, before, NULL);
        if (info->si_code <= 0)
            raise(number);
    } else {
        before->sa_handler(number);
    }
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr;

    for (struct gd_guard *guard = gd_guard_current; guard && info->si_code > 0;
         guard = guard->outer) {
        if (address < guard->start || address >= guard->end)
            continue;
        gd_guard_fault = (int64_t)address;
        gd_guard_set(guard->outer);
        siglongjmp(guard->back, 1);
    }
    pass_on(number, info, context);
}

static void install(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_fault;
    /* NODEFER: the jump skips the kernel's return from the handler, which would unblock it */
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGSEGV, &action, &before_segv);
}

void gd_guard_install(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, install);
}

int64_t gd_fault_address(void)
{
    return gd_guard_fault;
}
