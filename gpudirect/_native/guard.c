/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "native.h"
#include "relax.h"

__thread struct gd_guard *gd_guard_current __attribute__((tls_model("initial-exec")));
__thread int64_t gd_guard_fault __attribute__((tls_model("initial-exec")));
uint64_t gd_guard_looked;

/*
 * Who handled a signal before us, the first at the bottom. Whoever put himself in front of us later
 * comes on top of them, and we in front of him again. A signal that is not ours goes to the top; if
 * he passes it on to what he had found, which is us, it goes one further down.
 */
#define DEPTH 8
struct others {
    int count;
    struct sigaction action[DEPTH];
};

/* Handlers of other threads may still read the one before: never changed in place. */
#define GENERATIONS 4
static struct {
    struct others generation[GENERATIONS];
    unsigned newest;
} bus, segv;

static int installed, changing;

/* A signal being passed on by this thread: what was passed, how far down, and from which frame. */
static __thread struct passing {
    const siginfo_t *info;
    uintptr_t frame;
    int level;
} passing __attribute__((tls_model("initial-exec")));

static int same(const struct sigaction *a, const struct sigaction *b)
{
    /* the handler and the action share their place in every libc */
    return a->sa_handler == b->sa_handler;
}

static void on_fault(int number, siginfo_t *info, void *context);

static void put_in_front(int number)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_fault;
    /* NODEFER: the jump skips the kernel's return from the handler, which would unblock it */
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(number, &action, NULL);
}

static int ours(const struct sigaction *action)
{
    return action->sa_sigaction == on_fault;
}

/* Somebody put us back with signal(), without what tells us of the fault. */
static int told_nothing(int number)
{
    struct sigaction front;

    return !sigaction(number, NULL, &front) && ours(&front) && !(front.sa_flags & SA_SIGINFO);
}

/* If somebody else is in front: remember him, and step in front of him. */
static void look(int number)
{
    unsigned newest = number == SIGBUS ? bus.newest : segv.newest;
    struct others *generation = number == SIGBUS ? bus.generation : segv.generation;
    const struct others *before = &generation[newest % GENERATIONS];
    struct others *after = &generation[(newest + 1) % GENERATIONS];
    struct sigaction front;

    if (sigaction(number, NULL, &front))
        return;
    if (ours(&front)) {
        if (!(front.sa_flags & SA_SIGINFO))
            put_in_front(number);
        return;
    }
    after->count = 0;
    if (front.sa_handler != SIG_DFL && front.sa_handler != SIG_IGN)
        for (int i = 0; i < before->count; i++)
            if (!same(&before->action[i], &front))
                after->action[after->count++] = before->action[i];
    if (after->count == DEPTH) { /* the bottom stays, which is what was there before all of us */
        memmove(&after->action[1], &after->action[2], (DEPTH - 2) * sizeof(front));
        after->count--;
    }
    after->action[after->count++] = front;
    __atomic_store_n(number == SIGBUS ? &bus.newest : &segv.newest, newest + 1, __ATOMIC_RELEASE);
    put_in_front(number);
}

void gd_guard_look(uint64_t now)
{
    if (__atomic_exchange_n(&changing, 1, __ATOMIC_ACQUIRE)) { /* another thread is at it */
        while (!__atomic_load_n(&installed, __ATOMIC_ACQUIRE))
            gd_relax();
        return;
    }
    look(SIGBUS);
    look(SIGSEGV);
    __atomic_store_n(&installed, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&gd_guard_looked, now, __ATOMIC_RELAXED);
    __atomic_store_n(&changing, 0, __ATOMIC_RELEASE);
}

void gd_guard_renew(void)
{
    if (__atomic_load_n(&installed, __ATOMIC_RELAXED))
        gd_guard_look(gd_guard_tick());
}

/* A child whose parent forked in the middle of looking. */
static void in_child(void)
{
    changing = 0;
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

static void pass_to(const struct sigaction *action, int number, siginfo_t *info, void *context)
{
    if (action->sa_flags & SA_SIGINFO) {
        action->sa_sigaction(number, info, context);
    } else if (action->sa_handler == SIG_IGN && info->si_code <= 0) {
        return; /* sent by a process, and not wanted */
    } else if (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) {
        /* the access runs again under the default action, which ends the process as it should */
        struct sigaction end;

        memset(&end, 0, sizeof(end));
        end.sa_handler = SIG_DFL;
        sigaction(number, &end, NULL);
        if (info->si_code <= 0)
            raise(number);
    } else {
        action->sa_handler(number);
    }
}

static void pass_on(int number, siginfo_t *info, void *context)
{
    static const struct sigaction end; /* SIG_DFL */
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    const struct passing before = passing;
    /*
     * Back again: called by him to whom it was passed, or raised by him. (He may also have jumped
     * out of his handler, as we do: then we come from no deeper than at that time.)
     */
    int again = before.info && frame < before.frame &&
                (info == before.info || (info->si_code <= 0 && info->si_pid == getpid()));
    unsigned newest = __atomic_load_n(number == SIGBUS ? &bus.newest : &segv.newest, __ATOMIC_ACQUIRE);
    const struct others *others =
        &(number == SIGBUS ? bus.generation : segv.generation)[newest % GENERATIONS];
    int level = again ? before.level - 1 : others->count - 1;
    const struct sigaction action = level >= 0 ? others->action[level] : end;

    passing = (struct passing){info, frame, level};
    pass_to(&action, number, info, context);
    passing = before;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t address;

    if (told_nothing(number)) {
        sigset_t one;

        put_in_front(number);
        sigemptyset(&one); /* as it would be had we been called as we ask to be */
        sigaddset(&one, number);
        pthread_sigmask(SIG_UNBLOCK, &one, NULL);
        if (!passing.info)
            return; /* the access runs again */
        info = (siginfo_t *)passing.info;
    }
    address = (uintptr_t)info->si_addr;
    for (struct gd_guard *guard = gd_guard_current; guard && info->si_code > 0;
         guard = guard->outer) {
        if (address < guard->start || address >= guard->end)
            continue;
        gd_guard_fault = (int64_t)address;
        gd_guard_set(guard->outer);
        siglongjmp(guard->back, 1);
    }
    /*
     * Raised by this very thread inside a guard: by a handler that came in front of us since we
     * looked, took the fault for its own and gave up its place (faulthandler does so). The access
     * runs again, and if it faults, that is told to us.
     */
    if (gd_guard_current && info->si_code == SI_TKILL && info->si_pid == getpid() && !passing.info)
        return;
    pass_on(number, info, context);
}

int64_t gd_fault_address(void)
{
    return gd_guard_fault;
}
