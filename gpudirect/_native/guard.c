/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "guard.h"
#include "native.h"

__thread struct gd_guard *gd_guard_current __attribute__((tls_model("initial-exec")));
__thread int64_t gd_guard_fault __attribute__((tls_model("initial-exec")));

static struct sigaction before;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    struct gd_guard *guard = gd_guard_current;
    uintptr_t address = (uintptr_t)info->si_addr;
    sigset_t set;

    if (guard && address >= guard->start && address < guard->end) {
        gd_guard_fault = (int64_t)address;
        gd_guard_current = guard->outer;
        /* the jump skips the kernel's return from the handler, which would unblock the signal */
        sigemptyset(&set);
        sigaddset(&set, number);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        siglongjmp(guard->back, 1);
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        /* run the access again under the default action: it ends the process as it should */
        sigaction(number, &before, NULL);
    } else {
        before.sa_handler(number);
    }
}

static void install(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &action, &before);
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
