/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The least of a test harness, printing TAP. A test is a function; EXPECT notes a failure and goes
 * on, ASSERT ends the test. Every test runs in a process of its own: what one breaks, others keep.
 */
#ifndef TAP_H
#define TAP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int tap_failed;

struct tap_test {
	const char *name;
	void (*run)(void);
};

static struct tap_test tap_tests[256];
static int tap_count;

#define TEST(fn)                                                                      \
	static void fn(void);                                                         \
	__attribute__((constructor)) static void fn##_register(void)                  \
	{                                                                             \
		tap_tests[tap_count++] = (struct tap_test){#fn, fn};                  \
	}                                                                             \
	static void fn(void)

#define DIAG(...) (printf("# " __VA_ARGS__), printf("\n"), fflush(stdout))

#define EXPECT(condition)                                                             \
	((condition) ? 1 : (tap_failed++, DIAG("%s:%d: %s (errno %d, %s)", __func__,  \
					       __LINE__, #condition, errno,           \
					       strerror(errno)), 0))

#define ASSERT(condition)                                                             \
	do {                                                                          \
		if (!EXPECT(condition))                                               \
			exit(1);                                                      \
	} while (0)

/* The call fails, with just this error. */
#define EXPECT_ERRNO(wanted, call)                                                    \
	do {                                                                          \
		errno = 0;                                                            \
		long tap_result = (long)(call);                                       \
		if (tap_result != -1 || errno != (wanted)) {                          \
			tap_failed++;                                                 \
			DIAG("%s:%d: %s gave %ld, errno %d (%s); wanted %s", __func__, \
			     __LINE__, #call, tap_result, errno, strerror(errno),     \
			     strerror(wanted));                                       \
		}                                                                     \
	} while (0)

#define TAP_TIMEOUT 600 /* seconds; pinning 10,000 times takes minutes on a debug kernel, emulated */

static inline int tap_main(const char *only)
{
	int failures = 0, ran = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%d\n", tap_count);
	for (int i = 0; i < tap_count; i++) {
		int status;
		pid_t child;

		if (only && strcmp(only, tap_tests[i].name))
			continue;
		fflush(stdout);
		child = fork();
		if (child == 0) {
			alarm(TAP_TIMEOUT);
			tap_tests[i].run();
			exit(tap_failed ? 1 : 0);
		}
		waitpid(child, &status, 0);
		ran++;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
			printf("ok %d %s\n", i + 1, tap_tests[i].name);
			continue;
		}
		failures++;
		if (WIFSIGNALED(status))
			printf("# ended by signal %d\n", WTERMSIG(status));
		printf("not ok %d %s\n", i + 1, tap_tests[i].name);
	}
	printf("# %d ran, %d failed\n", ran, failures);
	return failures ? 1 : 0;
}

#endif /* TAP_H */
