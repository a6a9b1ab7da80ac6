// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Random sequences of calls from several processes: pin, unpin, map, unmap, move, touch, fork, pass
 * files on, dump core, try to unload, read and write through the kernel (abuse.h), revoke, free, attach
 * to lanes, submit, poll, detach, garbage. Of a mapping one thing is expected: it faults once its buffer
 * was unpinned or its memory freed. For the rest the kernel's log is the result.
 *
 *   fuzz [SEED [CALLS [SECONDS [PROCESSES]]]]
 *
 * Each process draws from its own generator, seeded by SEED and its number: the same SEED gives the
 * same calls in each process (their interleaving is the scheduler's). Prints the calls made; fails
 * if fewer than CALLS were made in SECONDS, or if anything is still pinned afterwards.
 */
#include "tap.h"

#include <sched.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "abuse.h"
#include "gpu.h"
#include "test/caller.h"

#define FILES 3
#define MEMORIES 3
#define MAPS 6
#define HANDLES 8

struct shared {
	uint64_t calls, faults, succeeded, attached, answered, stale, received, dumped;
};

static struct shared *shared;
static uint64_t state;
static int post[2]; /* files go in at 0, and out at 1 */
static sigjmp_buf escape;

static uint64_t draw(void) /* splitmix64 */
{
	uint64_t z = state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t below(uint64_t n)
{
	return draw() % n;
}

/* Mostly sensible, sometimes at an edge, sometimes anything. */
static uint64_t number(uint64_t sensible)
{
	static const uint64_t edges[] = { 0, 1, 4095, 4096, 65535, 65536, 65537, 1ull << 32,
					  1ull << 44, (1ull << 44) + 1, INT64_MAX, UINT64_MAX };

	switch (below(16)) {
	case 0:
		return edges[below(sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return draw() >> below(64);
	}
	return sensible;
}

static void on_fault(int signal)
{
	siglongjmp(escape, signal);
}

static void count(uint64_t *what)
{
	__atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

static int touch(volatile uint8_t *at, int store)
{
	if (sigsetjmp(escape, 1)) {
		count(&shared->faults);
		return 1;
	}
	if (store)
		*at = 1;
	else
		(void)*at;
	return 0;
}

struct map {
	void *at; /* NULL: none. Its first page is never unmapped alone */
	size_t length;
	int file; /* which of the process's files, and the buffer's handle and address there */
	uint32_t handle;
	uint64_t va;
	int persistent;
};

/* What was unpinned, or freed, must be out of reach. */
static void must_fault(const struct map *map)
{
	if (map->at && !touch(map->at, 0)) {
		count(&shared->stale);
		DIAG("handle %u of address %#llx can still be read", map->handle,
		     (unsigned long long)map->va);
	}
}

struct memory {
	int fd;
	uint64_t va, length;
};

static void allocate(struct memory *m, const struct map *maps)
{
	struct standin_alloc a = { .size = sizeof(a), .length = (1 + below(24)) * GPU_PAGE };

	if (m->fd >= 0) {
		close(m->fd);
		for (int i = 0; i < MAPS; i++)
			if (!maps[i].persistent && maps[i].va - m->va < m->length)
				must_fault(&maps[i]);
	}
	m->fd = open(STANDIN_NODE, O_RDWR | O_CLOEXEC);
	if (m->fd < 0 || ioctl(m->fd, STANDIN_ALLOC, &a))
		return;
	m->va = a.va;
	m->length = a.length;
}

static int garbage(int fd)
{
	static uint64_t bytes[64];
	size_t i;

	for (i = 0; i < 64; i++)
		bytes[i] = below(3) ? 0 : draw() >> below(64);
	bytes[0] = (bytes[0] & ~0xffffffffull) | (uint32_t)(below(2) ? 8 * below(10) : number(64));
	return ioctl(fd, below(8) ? _IOC(3, P2PMOD_MAGIC, 0x3f + below(8), 64) : (uint32_t)draw(),
		     below(16) ? (uintptr_t)bytes : (uintptr_t)draw());
}

#define REPLY_BYTES (64 * CPU_PAGE)

struct lanes {
	int caller;
	uint8_t *replies; /* memory of the process, replaced now and then */
	struct { uint64_t replies; uint32_t slots, sequence; } lane[CALLER_LANES];
};

/* What a GPU would answer, or somebody else. */
static void answer(struct lanes *l, uint32_t lane)
{
	uint32_t sequence = below(4) ? l->lane[lane].sequence : draw();
	uint64_t at = l->lane[lane].replies +
		      (sequence & (l->lane[lane].slots - 1)) * sizeof(struct p2pmod_reply);

	if (at >= (uintptr_t)l->replies && at < (uintptr_t)l->replies + REPLY_BYTES)
		((struct p2pmod_reply *)at)->sequence = sequence;
}

/* One call of the module that uses lanes. */
static int call_lane(struct lanes *l, int fd, const struct p2pmod_pin *pin)
{
	uint32_t lane = below(CALLER_LANES), named = below(16) ? lane : (uint32_t)draw();

	switch (below(16)) {
	case 0 ... 3: {
		struct caller_attach a = {
			.fd = below(16) ? (uint32_t)fd : (uint32_t)below(64),
			.handle = number(pin->handle),
			.packets = number(64 * below(256) + (-pin->address & 63)),
			.slots = number(2u << (below(8) ? below(5) : below(15))), .first = number(1),
		};

		a.replies = number((uintptr_t)l->replies + 16 * below(REPLY_BYTES / 16 - 64));
		if (!below(3)) { /* and naps, told of by words that calls change */
			a.told = number((uintptr_t)l->replies + 4 * below(REPLY_BYTES / 4));
			a.wake_handle = number(pin->handle);
			a.wake = number(4 * below(16384));
		}
		if (ioctl(l->caller, CALLER_ATTACH, &a))
			return -1;
		l->lane[a.lane].replies = a.replies;
		l->lane[a.lane].slots = a.slots;
		__atomic_fetch_add(&shared->attached, 1, __ATOMIC_RELAXED);
		return 0;
	}
	case 4: {
		struct caller_detach d = {.lane = named};

		return ioctl(l->caller, CALLER_DETACH, &d);
	}
	case 5 ... 8: {
		struct caller_submit c = {.lane = named, .context = below(5), .function = draw(),
					  .bytes = number(below(57)), .unasked = !below(3),
					  .no_arguments = !below(8)};

		if (ioctl(l->caller, CALLER_SUBMIT, &c))
			return -1;
		l->lane[lane].sequence = c.sequence;
		if (below(2))
			answer(l, lane);
		return 0;
	}
	case 9 ... 11: {
		struct caller_reply r = {.lane = named, .context = below(5),
					 .sequence = number(l->lane[lane].sequence),
					 .wait = below(2), .timeout_ms = below(3)};

		if (ioctl(l->caller, CALLER_REPLY, &r))
			return -1;
		__atomic_fetch_add(&shared->answered, 1, __ATOMIC_RELAXED);
		return 0;
	}
	case 12: {
		struct caller_run r = {.lane = named, .context = below(5), .calls = below(20),
				       .ahead = number(1 + below(20)), .seed = draw(),
				       .timeout_ms = below(5)};

		return ioctl(l->caller, CALLER_RUN, &r);
	}
	case 13: /* other pages from here on; lanes keep the old ones */
		mmap(l->replies, REPLY_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		return 0;
	case 14:
		if (below(8) == 0) {
			close(l->caller);
			l->caller = open(CALLER_NODE, O_RDWR | O_CLOEXEC);
		}
		return 0;
	}
	answer(l, lane);
	return 0;
}

/* A child with pins, mappings and a core that is dumped. */
static void dump_core(void)
{
	struct rlimit most = { RLIM_INFINITY, RLIM_INFINITY };
	struct memory m = { .fd = -1 };
	struct p2pmod_pin pin;
	pid_t child = fork();
	int fd, status = 0;

	if (!child) {
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &most);
		if (chdir("/tmp"))
			_exit(1);
		allocate(&m, NULL);
		fd = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);
		if (!p2p_pin(fd, m.va, m.length, &pin))
			touch(p2p_map(fd, &pin, 0, m.length), 1);
		abort();
	}
	if (waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WCOREDUMP(status))
		count(&shared->dumped);
	unlink("/tmp/core");
}

/* A file of another process, out of a message: unpin, map, ask, and close it, perhaps the last time. */
static void use_received(int post)
{
	struct p2pmod_status s;
	struct p2pmod_pin pin;
	int fd = receive_file(post);
	void *at;

	if (fd < 0)
		return;
	count(&shared->received);
	for (int i = below(6); i; i--) {
		uint32_t handle = 1 + below(200);

		pin.map_offset = (uint64_t)handle << 44;
		if (below(3) == 0)
			p2p_unpin(fd, handle);
		p2p_status(fd, handle, &s);
		at = p2p_map(fd, &pin, 0, CPU_PAGE);
		if (at != MAP_FAILED) {
			touch(at, below(2));
			if (below(8))
				munmap(at, CPU_PAGE);
		}
	}
	close(fd);
}

static void process(int number_, uint64_t seed, uint64_t calls, time_t until, int depth)
{
	struct map maps[MAPS] = {};
	struct p2pmod_pin pins[HANDLES] = {};
	struct memory memories[MEMORIES] = {};
	uint64_t addresses[32], i, mine = 0, offset;
	uint32_t handle;
	struct lanes lanes = {};
	int files[FILES];

	state = seed * 1000003 + number_;
	for (i = 0; i < FILES; i++)
		files[i] = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);
	lanes.caller = open(CALLER_NODE, O_RDWR | O_CLOEXEC);
	lanes.replies = mmap(NULL, REPLY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	if (lanes.caller < 0 || lanes.replies == MAP_FAILED)
		_exit(1);
	for (i = 0; i < MEMORIES; i++) {
		memories[i].fd = -1;
		allocate(&memories[i], maps);
	}
	while (mine < calls && ((mine & 63) || time(NULL) < until)) {
		struct memory *m = &memories[below(MEMORIES)];
		unsigned int slot = below(HANDLES), at = below(MAPS);
		struct p2pmod_pin *pin = &pins[slot];
		int *fd = &files[slot % FILES], r = 0;

		mine++;
		switch (below(36)) {
		case 30 ... 33:
			if (maps[at].at)
				r = abuse(draw(), &maps[at].at, maps[at].length, lanes.replies);
			break;
		case 34:
			if (below(2))
				r = send_file(post[0], *fd);
			else
				use_received(post[1]);
			break;
		case 35: /* unpins that are late, callbacks that are slow: for everybody; and rarer things */
			if (below(100))
				r = standin_control(m->fd, below(2) ? STANDIN_DELAY_PUT : STANDIN_DELAY_CALLBACK,
						    below(20) ? 0 : 1 + below(3));
			else if (below(4))
				r = syscall(SYS_delete_module, "p2pmod", O_NONBLOCK);
			else if (!depth)
				dump_core();
			break;
		case 24 ... 29:
			/* some on end: a lane does not live long here */
			for (uint64_t more = below(12); more; more--, mine++) {
				call_lane(&lanes, *fd, pin);
				__atomic_fetch_add(&shared->calls, 1, __ATOMIC_RELAXED);
			}
			r = call_lane(&lanes, *fd, pin);
			break;
		case 0 ... 5: {
			offset = below(m->length ? m->length : 1);
			r = p2p_pin_flags(*fd, number(m->va + offset),
					  number(1 + below(m->length - offset + 1)),
					  below(8) ? 0 : (uint32_t)draw() >> below(32), pin);
			break;
		}
		case 6 ... 8:
			handle = number(pin->handle);
			r = p2p_unpin(*fd, handle);
			for (i = 0; !r && i < MAPS; i++)
				if (maps[i].file == *fd && maps[i].handle == handle)
					must_fault(&maps[i]);
			break;
		case 9 ... 11:
			if (maps[at].at)
				munmap(maps[at].at, maps[at].length);
			maps[at] = (struct map){ .length = CPU_PAGE * (1 + below(20)), .file = *fd,
						 .va = pin->address };
			offset = number(pin->map_offset + CPU_PAGE * below(16));
			maps[at].handle = offset >> 44;
			maps[at].persistent = maps[at].handle != pin->handle ||
					      pin->flags & P2PMOD_PIN_PERSISTENT;
			maps[at].at = mmap(NULL, maps[at].length, below(8) ? 3 : (int)below(8),
					   below(8) ? MAP_SHARED : MAP_PRIVATE, *fd, offset);
			if (maps[at].at == MAP_FAILED) {
				maps[at].at = NULL;
				r = -1;
			}
			break;
		case 12 ... 16:
			if (maps[at].at)
				touch((uint8_t *)maps[at].at + below(maps[at].length), below(2));
			break;
		case 17: /* a hole; a move */
			if (!maps[at].at)
				break;
			if (below(2) && maps[at].length > CPU_PAGE) {
				char *hole = (char *)maps[at].at +
					     maps[at].length / CPU_PAGE / 2 * CPU_PAGE;

				r = munmap(hole, CPU_PAGE);
				/* no other mapping is to come to lie there */
				mmap(hole, CPU_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				     -1, 0);
			} else {
				r = mprotect(maps[at].at, CPU_PAGE, below(8));
			}
			break;
		case 18: {
			struct p2pmod_pages p = { .size = sizeof(p), .handle = number(pin->handle),
						  .first = number(0), .count = below(33),
						  .addresses = below(8) ? (uintptr_t)addresses : draw() };

			r = ioctl(*fd, P2PMOD_PAGES, &p);
			break;
		}
		case 19: {
			struct p2pmod_status s;

			r = p2p_status(*fd, number(pin->handle), &s);
			break;
		}
		case 20:
			r = garbage(*fd);
			break;
		case 21:
			r = standin_control(m->fd, below(6) ? STANDIN_REVOKE : STANDIN_FAIL_NEXT,
					    below(3) ? 0 : 1 + below(4));
			break;
		case 22:
			if (below(4) == 0)
				allocate(m, maps);
			else if (below(4) == 0) {
				for (i = 0; i < MAPS; i++) /* its number may be another file's soon */
					if (maps[i].file == *fd)
						maps[i].file = -1;
				close(*fd);
				*fd = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);
			}
			break;
		case 23:
			if (!depth && below(40) == 0) { /* a child with the same descriptors */
				pid_t child = fork();

				if (!child) {
					for (i = 0; i < 20; i++)
						p2p_unpin(files[i % FILES], pins[i % HANDLES].handle);
					process(number_ + 1000, seed + mine, 200, until, 1);
					_exit(0);
				}
				if (below(2))
					kill(child, SIGKILL);
				waitpid(child, NULL, 0);
			}
			break;
		}
		if (!r)
			__atomic_fetch_add(&shared->succeeded, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&shared->calls, 1, __ATOMIC_RELAXED);
	}
}

int main(int count, char **words)
{
	uint64_t seed = count > 1 ? strtoull(words[1], NULL, 0) : 1;
	uint64_t calls = count > 2 ? strtoull(words[2], NULL, 0) : 20000;
	time_t until = time(NULL) + (count > 3 ? atoi(words[3]) : 60);
	int processes = count > 4 ? atoi(words[4]) : 4, i, status, bad = 0;
	struct sigaction action = { .sa_handler = on_fault };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || processes < 1)
		return 2;
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, post))
		return 2;
	printf("TAP version 13\n1..3\n");
	fflush(stdout);
	for (i = 0; i < processes; i++)
		if (!fork()) {
			process(i, seed, calls / processes + 1, until, 0);
			_exit(0);
		}
	for (i = 0; i < processes; i++)
		if (wait(&status) < 0 || status) {
			DIAG("a process ended with status %#x", status);
			bad = 1;
		}
	bad |= shared->calls < calls;
	DIAG("seed %llu: %llu calls of %llu, %llu succeeded, %llu accesses faulted; %llu lanes attached, "
	     "%llu replies fetched; %llu files passed on, %llu cores dumped", (unsigned long long)seed, (unsigned long long)shared->calls,
	     (unsigned long long)calls, (unsigned long long)shared->succeeded,
	     (unsigned long long)shared->faults, (unsigned long long)shared->attached,
	     (unsigned long long)shared->answered, (unsigned long long)shared->received,
	     (unsigned long long)shared->dumped);
	printf("%s 1 fuzz_made_its_calls\n", bad ? "not ok" : "ok");
	printf("%s 3 what_was_unpinned_or_freed_faults\n", shared->stale ? "not ok" : "ok");
	bad |= shared->stale != 0;
	close(post[0]); /* and the files in it */
	close(post[1]);
	i = open(STANDIN_NODE, O_RDWR | O_CLOEXEC);
	standin_control(i, STANDIN_DELAY_PUT, 0);
	standin_control(i, STANDIN_DELAY_CALLBACK, 0);
	close(i);
	sleep(1); /* revocations on their way */
	i = gpu_pins() != 0;
	printf("%s 2 fuzz_left_nothing_pinned\n", i ? "not ok" : "ok");
	return bad || i;
}
