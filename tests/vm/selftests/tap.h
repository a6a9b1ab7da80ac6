/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A test harness in the manner of kselftest: TAP on stdout, each test in a process of its own with
 * a time limit, so that one that crashes or hangs takes nothing along.
 */
#ifndef TAP_H
#define TAP_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAP_LIMIT_S 120 /* a test that takes longer is a failure: software emulation is slow */
#define TAP_SKIP 77

struct test {
	const char *name;
	void (*run)(void);
};

static struct test tests[128];
static int test_count, failures;

#define TEST(fn)                                                        \
	static void fn(void);                                           \
	__attribute__((constructor)) static void add_##fn(void)         \
	{                                                               \
		tests[test_count++] = (struct test){ #fn, fn };         \
	}                                                               \
	static void fn(void)

#define NOTE(format, ...) printf("# " format "\n", ##__VA_ARGS__)

#define EXPECT(condition)                                                        \
	do {                                                                     \
		if (!(condition)) {                                              \
			NOTE("%s:%d: not true: %s", __FILE__, __LINE__, #condition); \
			failures++;                                              \
		}                                                                \
	} while (0)

#define EXPECT_EQ(want, got)                                                     \
	do {                                                                     \
		long long want_ = (long long)(want), got_ = (long long)(got);    \
		if (want_ != got_) {                                             \
			NOTE("%s:%d: %s is %lld, not %s (%lld)", __FILE__, __LINE__, #got, \
			     got_, #want, want_);                                \
			failures++;                                              \
		}                                                                \
	} while (0)

/* 0 for success */
#define EXPECT_ERRNO(want, call)                                                 \
	do {                                                                     \
		errno = 0;                                                       \
		int got_ = (call) == -1 ? errno : 0;                             \
		if (got_ != (want)) {                                            \
			NOTE("%s:%d: %s: %s, not %s", __FILE__, __LINE__, #call, \
			     got_ ? strerror(got_) : "success",                  \
			     (want) ? strerror(want) : "success");               \
			failures++;                                              \
		}                                                                \
	} while (0)

/* What the test cannot go on without. */
#define NEED(condition)                                                          \
	do {                                                                     \
		if (!(condition)) {                                              \
			NOTE("%s:%d: needed: %s (%s)", __FILE__, __LINE__, #condition, \
			     strerror(errno));                                   \
			exit(1);                                                 \
		}                                                                \
	} while (0)

#define SKIP(why)                                       \
	do {                                            \
		NOTE("skipped: %s", why);               \
		exit(TAP_SKIP);                         \
	} while (0)

/* The tests whose names contain @only, or all; the exit status. */
static int tap_run(const char *only)
{
	int failed = 0, number = 0, i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 0; i < test_count; i++)
		number += !only || strstr(tests[i].name, only) != NULL;
	printf("TAP version 13\n1..%d\n", number);
	for (number = i = 0; i < test_count; i++) {
		int status;
		pid_t pid;

		if (only && !strstr(tests[i].name, only))
			continue;
		number++;
		pid = fork();
		if (!pid) {
			alarm(TAP_LIMIT_S);
			tests[i].run();
			exit(failures ? 1 : 0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			status = 0x100;
		if (WIFSIGNALED(status))
			NOTE("ended by signal %d (%s)", WTERMSIG(status),
			     strsignal(WTERMSIG(status)));
		if (WIFEXITED(status) && WEXITSTATUS(status) == TAP_SKIP) {
			printf("ok %d %s # SKIP\n", number, tests[i].name);
			continue;
		}
		failed += status != 0;
		printf("%s %d %s\n", status ? "not ok" : "ok", number, tests[i].name);
	}
	printf("# %d of %d failed\n", failed, number);
	return failed || !number;
}

#endif /* TAP_H */
