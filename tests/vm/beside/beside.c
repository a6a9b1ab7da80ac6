// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * p2pmod beside GDRCopy's gdrdrv, on the same stand-in, in one run: what each costs, in rounds that
 * alternate, and what each does where their contracts are tested. Prints lines that the lab makes
 * tables of:  cost PAGES BYTES WHO pin map touch unmap unpin (ns, medians)   |   behaviour WHAT WHO SAID
 */
#include "tap.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/sysmacros.h>

#include "gdrdrv.h"
#include "gpu.h"

enum { P2PMOD, GDRDRV, WHO };
static const char *const names[WHO] = { "p2pmod", "gdrdrv" };
static int fds[WHO];

struct mapped {
	uint64_t handle, offset;
	size_t length;
	volatile uint8_t *at;
};

/* ---- the two, by the same verbs ---- */

static int pin(int who, const struct gpu *gpu, struct mapped *m)
{
	struct GDRDRV_IOC_PIN_BUFFER_PARAMS gdr = { .addr = gpu->va, .size = gpu->length };
	struct p2pmod_pin ours;

	m->length = gpu->length;
	if (who == P2PMOD) {
		if (p2p_pin(fds[who], gpu->va, gpu->length, &ours))
			return -1;
		m->handle = ours.handle;
		m->offset = ours.map_offset;
		return 0;
	}
	if (ioctl(fds[who], GDRDRV_IOC_PIN_BUFFER, &gdr))
		return -1;
	m->handle = gdr.handle;
	m->offset = gdr.handle * CPU_PAGE;
	return 0;
}

static int unpin(int who, uint64_t handle)
{
	struct GDRDRV_IOC_UNPIN_BUFFER_PARAMS gdr = { .handle = handle };

	return who == P2PMOD ? p2p_unpin(fds[who], handle) :
			       ioctl(fds[who], GDRDRV_IOC_UNPIN_BUFFER, &gdr);
}

static int map_it(int who, struct mapped *m)
{
	m->at = mmap(NULL, m->length, PROT_READ | PROT_WRITE, MAP_SHARED, fds[who], m->offset);
	return m->at == MAP_FAILED ? -1 : 0;
}

/* ---- costs ---- */

enum { PIN, MAP, TOUCH, UNMAP, UNPIN, STEPS };
#define ROUNDS 5

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values, int n)
{
	qsort(values, n, sizeof(*values), compare);
	return values[n / 2];
}

#define MOST 200
static uint64_t steps[STEPS][MOST];

/* Medians of one round of one of them: of many goes, where they are short. */
static void one_round(int who, const struct gpu *gpu, int goes, uint64_t *result)
{
	for (int i = 0; i < goes; i++) {
		struct mapped m;
		uint64_t t[STEPS + 1];

		t[0] = now_ns();
		ASSERT(pin(who, gpu, &m) == 0);
		t[1] = now_ns();
		ASSERT(map_it(who, &m) == 0);
		t[2] = now_ns();
		for (size_t at = 0; at < m.length; at += CPU_PAGE)
			m.at[at] = 1;
		t[3] = now_ns();
		munmap((void *)m.at, m.length);
		t[4] = now_ns();
		ASSERT(unpin(who, m.handle) == 0);
		t[5] = now_ns();
		for (int s = 0; s < STEPS; s++)
			steps[s][i] = t[s + 1] - t[s];
	}
	for (int s = 0; s < STEPS; s++)
		result[s] = median(steps[s], goes);
}

static void costs(size_t length, uint32_t flags, int goes)
{
	struct gpu gpu = gpu_alloc_flags(length, flags, 0);
	static uint64_t rounds[WHO][STEPS][ROUNDS];

	for (int r = 0; r < ROUNDS; r++)
		for (int i = 0; i < WHO; i++) {
			int who = (i + r) % WHO;
			uint64_t round[STEPS];

			one_round(who, &gpu, goes, round);
			for (int s = 0; s < STEPS; s++)
				rounds[who][s][r] = round[s];
		}
	for (int who = 0; who < WHO; who++) {
		printf("cost %s %zu %s", flags ? "contiguous" : "scattered", length, names[who]);
		for (int s = 0; s < STEPS; s++)
			printf(" %llu", (unsigned long long)median(rounds[who][s], ROUNDS));
		printf("\n");
	}
	munmap((void *)gpu.view, length);
	close(gpu.fd);
}

/* ---- behaviour ---- */

static sigjmp_buf escape;

static void on_fault(int signal)
{
	siglongjmp(escape, signal);
}

static int faults(volatile uint8_t *at)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	if (sigsetjmp(escape, 1))
		return 1;
	*at = 7;
	return 0;
}

static void said(const char *what, int who, const char *text)
{
	printf("behaviour %s %s %s\n", what, names[who], text);
}

static void after_a_part(int who, int how)
{
	static const char *const what[] = { "mprotect-of-a-part-then-free", "munmap-of-a-part-then-free",
					    "mremap-then-free" };
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct mapped m;
	volatile uint8_t *left;

	ASSERT(pin(who, &gpu, &m) == 0 && map_it(who, &m) == 0);
	left = m.at;
	m.at[0] = 1;
	if (how == 0)
		mprotect((void *)(m.at + GPU_PAGE), CPU_PAGE, PROT_READ);
	else if (how == 1)
		munmap((void *)(m.at + GPU_PAGE), CPU_PAGE);
	else
		left = mremap((void *)m.at, m.length, m.length, MREMAP_MAYMOVE | MREMAP_FIXED,
			      mmap(NULL, m.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	if (left == MAP_FAILED) {
		said(what[how], who, "refused");
		return;
	}
	left[0] = 2;
	gpu_free(&gpu);
	said(what[how], who, faults(left) ? "SIGBUS" : "access still works");
	unpin(who, m.handle);
}

static void *free_thread(void *data)
{
	gpu_free(data);
	return NULL;
}

static void mmap_races_free(int who)
{
	enum { RACES = 100 };
	int stale = 0;
	char text[64];

	for (int i = 0; i < RACES; i++) {
		struct gpu gpu = gpu_alloc(64 * GPU_PAGE);
		struct mapped m;
		pthread_t thread;

		ASSERT(pin(who, &gpu, &m) == 0);
		pthread_create(&thread, NULL, free_thread, &gpu);
		if (map_it(who, &m))
			m.at = NULL;
		pthread_join(thread, NULL);
		if (m.at) {
			stale += !faults(m.at);
			munmap((void *)m.at, m.length);
		}
		unpin(who, m.handle);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
	}
	snprintf(text, sizeof(text), "stale after %d of %d", stale, RACES);
	said("mmap-races-free", who, text);
}

static void made_up(int who)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct mapped m, other;

	ASSERT(pin(who, &gpu, &m) == 0);
	other = m;
	other.offset += 77ull << 40;
	said("mmap-of-a-made-up-offset", who,
	     map_it(who, &other) ? strerror(errno) : "maps another buffer");
	said("unpin-of-a-made-up-handle", who,
	     unpin(who, (uint32_t)m.handle + 12345) ? strerror(errno) : "unpins another buffer");
	unpin(who, m.handle);
}

int main(void)
{
	char line[128];
	FILE *devices = fopen("/proc/devices", "r");
	int major = -1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (devices && fgets(line, sizeof(line), devices))
		if (strstr(line, "gdrdrv"))
			major = atoi(line);
	ASSERT(major > 0 && mknod("/dev/gdrdrv", S_IFCHR | 0600, makedev(major, 0)) == 0);
	fds[P2PMOD] = p2p_open();
	fds[GDRDRV] = open("/dev/gdrdrv", O_RDWR | O_CLOEXEC);
	ASSERT(fds[GDRDRV] >= 0);

	for (uint32_t flags = STANDIN_CONTIGUOUS; flags + 1; flags--) {
		costs(GPU_PAGE, flags, 200);
		costs(32 * GPU_PAGE, flags, 40);
		costs(4096 * GPU_PAGE, flags, 3);
	}
	for (int who = 0; who < WHO; who++) {
		for (int how = 0; how < 3; how++)
			after_a_part(who, how);
		mmap_races_free(who);
		made_up(who);
	}
	return tap_failed;
}
