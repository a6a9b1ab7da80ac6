/* SPDX-License-Identifier: MIT */
/*
 * The copy threads. One thread cannot fill the link: a core has too few write-combining and
 * line-fill buffers. The pool is started once, on the first copy that is large enough.
 *
 * A job is cut into pieces, and whoever is free takes the next: the caller starts at once and a
 * thread that was asleep helps with what is left, so waking one up never delays a copy. The state
 * is one word, `claim`: the job's number above, the pieces not yet taken below. Taking a piece is a
 * compare-and-swap on it, and a job cannot end before every piece taken was reported, so who took
 * one may read team->job freely and nobody else may.
 *
 * After a job the threads look for the next one for GD_THREADS_SPIN, then sleep.
 *
 * All this there is once for each team: a team serves one copy at a time, and each device has its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "guard.h"
#include "native.h"
#include "relax.h"
#include "threads.h"

#define LINE 64
#define MAX_THREADS 64
#define DEFAULT_THREADS 8       /* at most; 8 loads in flight fill the link, 2 to 4 stores do */
#define SPINS_BEFORE_YIELD 4096 /* the caller, for the last pieces */
#define STACK_BYTES (256 << 10) /* holds a signal frame with AVX-512 state */

/* Pieces of a copy of n bytes: small enough to end together, large enough to be worth taking. */
#define WRITE_PIECES 32
#define WRITE_PIECE_MIN (16 << 10)
#define WRITE_PIECE_MAX (256 << 10)
#define READ_PIECES 128
#define READ_PIECE_MIN (2 << 10)
#define READ_PIECE_MAX (64 << 10)

size_t gd_threads_in_a_row[2] = {32 << 10, 256 << 10};
size_t gd_threads_alone[2] = {256 << 10, 2 << 20};
uint64_t gd_threads_last[GD_TEAMS];

static struct team {
    pthread_mutex_t call; /* one job at a time; guards everything down to `generation` */
    int running;          /* helpers started in this generation */
    int pinned;
    cpu_set_t cpus;
    uint32_t number; /* of the last job */
    int wanted;      /* threads, the caller included; 0: not configured. Atomic */
    int generation;  /* helpers of an older one leave. Atomic */

    struct gd_job job; /* for who took a piece */
    size_t piece;      /* bytes */
    uint32_t pieces;
    int64_t fault;
    int code;

    uint64_t claim __attribute__((aligned(LINE)));
    uint32_t done __attribute__((aligned(LINE))); /* pieces reported */

    pthread_mutex_t lock __attribute__((aligned(LINE))); /* of the sleepers */
    pthread_cond_t wake;
    int sleepers; /* changed with the lock held, looked at without */
} teams[GD_TEAMS] = {[0 ... GD_TEAMS - 1] = {
    .call = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
}};

/* ---- pieces ---- */

static int pieces_left(const struct team *team)
{
    return (uint32_t)__atomic_load_n(&team->claim, __ATOMIC_SEQ_CST) != 0;
}

static int take(struct team *team, uint32_t *left)
{
    uint64_t claim = __atomic_load_n(&team->claim, __ATOMIC_ACQUIRE);

    do {
        if (!(uint32_t)claim)
            return 0;
    } while (!__atomic_compare_exchange_n(&team->claim, &claim, claim - 1, 1, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    *left = (uint32_t)claim;
    return 1;
}

/* Pieces end where lines of the mapping do, so that no line is stored to by two threads. */
static void do_piece(struct team *team, uint32_t index)
{
    const struct gd_job *job = &team->job;
    size_t skew = job->mapped & (LINE - 1);
    size_t from = index ? index * team->piece - skew : 0;
    size_t to = (index + 1) * team->piece - skew;
    struct gd_guard guard;

    if (to > job->n)
        to = job->n;
    if (!(job->flags & GD_GUARDED)) {
        job->piece(job, from, to - from);
        return;
    }
    if (__atomic_load_n(&team->code, __ATOMIC_RELAXED))
        return; /* the mapping is gone: the rest would only fault as well */
    if (gd_guard_enter(&guard, (job->mapped + from) & ~(uintptr_t)(LINE - 1),
                       to - from + 2 * LINE)) {
        __atomic_store_n(&team->fault, gd_guard_fault, __ATOMIC_RELAXED);
        __atomic_store_n(&team->code, -EFAULT, __ATOMIC_RELEASE);
        return;
    }
    job->piece(job, from, to - from);
    gd_guard_leave(&guard);
}

static void work(struct team *team)
{
    uint32_t taken = 0, left;
    int write = 0;

    while (take(team, &left)) {
        write = team->job.write;
        do_piece(team, team->pieces - left);
        taken++;
    }
    if (!taken)
        return;
    if (write)
        gd_fence(); /* orders the stores of its own thread only */
    __atomic_add_fetch(&team->done, taken, __ATOMIC_RELEASE);
}

/* ---- helpers ---- */

static int outdated(const struct team *team, int generation)
{
    return __atomic_load_n(&team->generation, __ATOMIC_SEQ_CST) != generation;
}

static void sleep_until_work(struct team *team, int generation)
{
    int another;

    pthread_mutex_lock(&team->lock);
    __atomic_add_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!pieces_left(team) && !outdated(team, generation))
        pthread_cond_wait(&team->wake, &team->lock);
    another = __atomic_sub_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&team->lock);
    /* each wakes the next: the caller, who has data to move, pays for one wake-up only */
    if (another)
        pthread_cond_signal(&team->wake);
}

static void *helper(void *argument)
{
    struct team *team = &teams[(uintptr_t)argument % GD_TEAMS];
    int generation = (int)((uintptr_t)argument / GD_TEAMS);

    for (;;) {
        uint64_t since = gd_now();

        while (!pieces_left(team) && !outdated(team, generation)) {
            for (int i = 0; i < 32 && !pieces_left(team); i++)
                gd_relax();
            if (gd_now() - since > GD_THREADS_SPIN)
                sleep_until_work(team, generation);
        }
        if (outdated(team, generation))
            return NULL;
        work(team);
    }
}

/* A child of fork() has none of these threads: it forgets them, and starts its own when needed. */
static void forget(void)
{
    for (struct team *team = teams; team < teams + GD_TEAMS; team++) {
        pthread_mutex_init(&team->call, NULL);
        pthread_mutex_init(&team->lock, NULL);
        pthread_cond_init(&team->wake, NULL);
        team->running = team->sleepers = 0;
        team->claim = 0;
    }
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forget);
}

/* With team->call held. */
static void start(struct team *team)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    unsigned number = (unsigned)(team - teams);
    int helpers = gd_threads_count_of(number) - 1;
    /* which team, and which generation of it */
    uintptr_t who = (uintptr_t)team->generation * GD_TEAMS + number;
    pthread_attr_t attributes;
    sigset_t ours, before;
    pthread_t thread;

    if (team->running >= helpers)
        return;
    pthread_once(&once, watch_forks);
    /* the program's signals go to the program's threads; faults come to whoever made them */
    sigfillset(&ours);
    sigdelset(&ours, SIGBUS);
    sigdelset(&ours, SIGSEGV);
    sigdelset(&ours, SIGILL);
    sigdelset(&ours, SIGFPE);
    sigdelset(&ours, SIGTRAP);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (team->pinned)
        pthread_attr_setaffinity_np(&attributes, sizeof(team->cpus), &team->cpus);
    pthread_sigmask(SIG_SETMASK, &ours, &before);
    for (; team->running < helpers; team->running++) {
        if (pthread_create(&thread, &attributes, helper, (void *)who))
            break; /* fewer threads, then */
        pthread_setname_np(thread, "gpudirect-copy");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* ---- jobs ---- */

static size_t clamp(size_t n, size_t low, size_t high)
{
    return n < low ? low : n > high ? high : n;
}

int gd_threads_run(const struct gd_job *job)
{
    unsigned number = gd_team_of(job->flags);
    struct team *team = &teams[number];
    int code;

    if (pthread_mutex_trylock(&team->call))
        return -EBUSY;
    start(team);
    team->job = *job;
    team->piece = job->write ? clamp(job->n / WRITE_PIECES, WRITE_PIECE_MIN, WRITE_PIECE_MAX)
                            : clamp(job->n / READ_PIECES, READ_PIECE_MIN, READ_PIECE_MAX);
    team->piece &= ~(size_t)(LINE - 1);
    team->pieces = (uint32_t)((job->n + (job->mapped & (LINE - 1)) + team->piece - 1) / team->piece);
    team->code = 0;
    __atomic_store_n(&team->done, 0, __ATOMIC_RELAXED);
    /* published before sleepers are looked for; they look for pieces after they count themselves */
    __atomic_store_n(&team->claim, (uint64_t)++team->number << 32 | team->pieces, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team->sleepers, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&team->lock);
        pthread_cond_signal(&team->wake);
        pthread_mutex_unlock(&team->lock);
    }
    work(team);
    for (int spins = 0; __atomic_load_n(&team->done, __ATOMIC_ACQUIRE) != team->pieces; spins++)
        spins < SPINS_BEFORE_YIELD ? gd_relax() : (void)sched_yield();
    code = __atomic_load_n(&team->code, __ATOMIC_RELAXED);
    if (code)
        gd_guard_fault = team->fault;
    __atomic_store_n(&gd_threads_last[number], gd_ticks(), __ATOMIC_RELAXED);
    pthread_mutex_unlock(&team->call);
    return code;
}

int gd_threads_configure_team(unsigned number, int count, const int *cpus, int cpu_count,
                              const struct gd_thresholds *from)
{
    struct team *team = &teams[number % GD_TEAMS];
    cpu_set_t set;

    if (number >= GD_TEAMS || count < 1 || count > MAX_THREADS || cpu_count < 0 || (cpu_count && !cpus) || !from)
        return -EINVAL;
    CPU_ZERO(&set);
    for (int i = 0; i < cpu_count; i++) {
        if (cpus[i] < 0 || cpus[i] >= CPU_SETSIZE)
            return -EINVAL;
        CPU_SET(cpus[i], &set);
    }
    if (pthread_mutex_trylock(&team->call))
        return -EBUSY;
    /* those that run leave by themselves; the next large copy starts new ones */
    __atomic_add_fetch(&team->generation, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&team->lock);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    team->running = 0;
    team->cpus = set;
    team->pinned = cpu_count > 0;
    __atomic_store_n(&team->wanted, count, __ATOMIC_RELAXED);
    __atomic_store_n(&gd_threads_in_a_row[0], from->read_in_a_row, __ATOMIC_RELAXED);
    __atomic_store_n(&gd_threads_in_a_row[1], from->write_in_a_row, __ATOMIC_RELAXED);
    __atomic_store_n(&gd_threads_alone[0], from->read_alone, __ATOMIC_RELAXED);
    __atomic_store_n(&gd_threads_alone[1], from->write_alone, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&team->call);
    return 0;
}

int gd_threads_configure(int count, const int *cpus, int cpu_count,
                         const struct gd_thresholds *from)
{
    return gd_threads_configure_team(0, count, cpus, cpu_count, from);
}

int gd_threads_count_of(unsigned number)
{
    struct team *team = &teams[number];
    int wanted = __atomic_load_n(&team->wanted, __ATOMIC_RELAXED);
    cpu_set_t set;

    if (!wanted) {
        /* half of the processors that we may use: the others belong to the program */
        wanted = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set) / 2;
        wanted = wanted < 1 ? 1 : wanted > DEFAULT_THREADS ? DEFAULT_THREADS : wanted;
        __atomic_store_n(&team->wanted, wanted, __ATOMIC_RELAXED);
    }
    return wanted;
}

int gd_threads_count(void)
{
    return gd_threads_count_of(0);
}
