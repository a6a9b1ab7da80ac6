/* SPDX-License-Identifier: MIT */
/*
 * The copy engine without Python, for processors and checkers that Python does not reach: arm64
 * under user-mode emulation, address and thread sanitizers. Every case is compared byte by byte,
 * with pages that cannot be accessed on both ends of both sides.
 *
 * Prints one line for each part; exit status 1 and the first difference if one fails. With the
 * argument "threads" that part alone, for the thread sanitizer, which is slow.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"

#define LINE 64
#define CANARY 0xA5
#define MARGIN 96

static const struct gd_thresholds always = {1, 1, 1, 1}; /* bytes */
static size_t page;
static long cases;

#define CHECK(condition, ...)                                                                     \
    do {                                                                                          \
        __atomic_add_fetch(&cases, 1, __ATOMIC_RELAXED);                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "copy_test: %s:%d: %s: ", __FILE__, __LINE__, #condition);            \
            fprintf(stderr, __VA_ARGS__);                                                         \
            fputc('\n', stderr);                                                                  \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

struct walled {
    unsigned char *start;
    size_t size;
};

static struct walled walled(size_t size)
{
    int64_t base = gd_reserve(0, size + 2 * page, 0);
    struct walled w = {(unsigned char *)(uintptr_t)base + page, size};

    CHECK(base > 0, "gd_reserve: %lld", (long long)base);
    CHECK(gd_map((uintptr_t)w.start, size, 1, 1, -1, 0, 1) == base + (int64_t)page, "gd_map");
    return w;
}

static void noise(unsigned char *p, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        p[i] = (unsigned char)(seed >> 24);
    }
}

static void one(struct walled there, struct walled here, size_t mapped, size_t other, size_t n,
                int write)
{
    struct walled target = write ? there : here, source = write ? here : there;
    size_t to = write ? mapped : other, from = write ? other : mapped;
    size_t low = to > MARGIN ? to - MARGIN : 0;
    size_t high = to + n + MARGIN < target.size ? to + n + MARGIN : target.size;
    int code;

    memset(target.start + low, CANARY, high - low);
    code = write ? gd_write((uintptr_t)there.start + mapped, (char *)here.start + other, n, 0)
                 : gd_read((char *)here.start + other, (uintptr_t)there.start + mapped, n, 0);
    CHECK(code == 0, "%d", code);
    for (size_t i = low; i < high; i++) {
        unsigned char want = i >= to && i < to + n ? source.start[from + i - to] : CANARY;

        CHECK(target.start[i] == want, "%s of %zu bytes, mapped +%zu, other +%zu: byte %zd is %02x",
              write ? "write" : "read", n, mapped, other, (ssize_t)(i - to), target.start[i]);
    }
}

static void sizes_and_alignments(struct walled there, struct walled here, int write)
{
    static const size_t large[] = {511, 512, 513, 1000, 4095, 4096, 4097};

    noise(write ? here.start : there.start, here.size, 1);
    for (size_t n = 0; n <= 260; n++)
        for (size_t at = 0; at < LINE; at += n % 3 + 1) {
            one(there, here, at, (at * 7 + n) % LINE, n, write);
            one(there, here, there.size - n - at, here.size - n - (at * 5 + n) % LINE, n, write);
        }
    for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++)
        for (size_t at = 0; at < LINE; at += 3) {
            one(there, here, at, 0, large[i], write);
            one(there, here, there.size - large[i] - at, here.size - large[i], large[i], write);
        }
    one(there, here, 0, 0, there.size, write);
}

static void strided(struct walled there, struct walled here, int write)
{
    static const int64_t items[] = {1, 3, 4, 8, 24, 64, 80};
    static const int64_t gaps[] = {0, 1, 20, 60, 100};
    static const int64_t counts[] = {1, 5, 90};

    for (int i = 0; i < 7; i++)
        for (int g = 0; g < 5; g++)
            for (int c = 0; c < 3; c++)
                for (int turned = 0; turned < 2; turned++) {
                    int64_t item = items[i], shape[2] = {3, counts[c]};
                    int64_t inner = item + gaps[g], outer = inner * shape[1] + 4;
                    int64_t m[2] = {outer, inner};
                    int64_t o[2] = {turned ? item : item * shape[1], turned ? item * 3 : item};
                    unsigned char *t = write ? there.start : here.start;
                    int code;

                    noise(write ? here.start : there.start, here.size, (uint32_t)(i + g));
                    memset(t, CANARY, there.size);
                    code = write ? gd_write_nd((uintptr_t)there.start, m, (char *)here.start, o,
                                               shape, 2, (size_t)item, 0)
                                 : gd_read_nd((char *)here.start, o, (uintptr_t)there.start, m,
                                              shape, 2, (size_t)item, 0);
                    CHECK(code == 0, "%d", code);
                    for (int64_t x = 0; x < 3; x++)
                        for (int64_t y = 0; y < shape[1]; y++)
                            CHECK(!memcmp(there.start + x * m[0] + y * m[1],
                                          here.start + x * o[0] + y * o[1], (size_t)item),
                                  "item %lld of %lld bytes, gap %lld", (long long)y,
                                  (long long)item, (long long)gaps[g]);
                    if (write && gaps[g])
                        for (int64_t k = item; k < inner; k++)
                            CHECK(t[k] == CANARY, "gap byte %lld", (long long)k);
                }
}

/* Elements at both ends of the mapping and in between, counted from either end. */
static void gathered(struct walled there, struct walled here)
{
    enum { COUNT = 97 };
    int64_t indices[COUNT], low, high;

    for (size_t itemsize = 1; itemsize <= 24; itemsize++) {
        for (size_t skip = 0; skip < 3; skip++) {
            size_t size = (there.size - skip) / itemsize;
            const unsigned char *from = there.start + skip;
            unsigned char *to = here.start + here.size - COUNT * itemsize;

            noise(there.start, there.size, (uint32_t)(itemsize + skip));
            for (int i = 0; i < COUNT; i++)
                indices[i] = (i * 7919 % (int64_t)size) - (i % 2 ? (int64_t)size : 0);
            indices[0] = (int64_t)size - 1;
            indices[1] = -(int64_t)size;
            CHECK(gd_indices_check(indices, COUNT, size, &low, &high) == -1 && low == 0 &&
                  high == (int64_t)size - 1, "%lld to %lld", (long long)low, (long long)high);
            CHECK(gd_gather_items((char *)to, (uintptr_t)from, size, indices, COUNT, itemsize,
                                  skip ? GD_GUARDED : 0) == 0, "itemsize %zu", itemsize);
            for (int i = 0; i < COUNT; i++) {
                int64_t at = indices[i] + (indices[i] < 0 ? (int64_t)size : 0);

                CHECK(!memcmp(to + i * itemsize, from + at * (int64_t)itemsize, itemsize),
                      "itemsize %zu, skip %zu, element %d", itemsize, skip, i);
            }
            for (int wrong = 0; wrong < 2; wrong++) {
                indices[50] = wrong ? (int64_t)size : -(int64_t)size - 1;
                CHECK(gd_indices_check(indices, COUNT, size, &low, &high) == 50, "which");
                memset(to, CANARY, COUNT * itemsize);
                CHECK(gd_gather_items((char *)to, (uintptr_t)from, size, indices, COUNT, itemsize,
                                      0) == -ERANGE, "outside");
                for (size_t i = 0; i < COUNT * itemsize; i++)
                    CHECK(to[i] == CANARY, "moved all the same");
            }
        }
    }
    indices[0] = 0;
    CHECK(gd_gather_items((char *)there.start + 8, (uintptr_t)there.start, 16, indices, 1, 4, 0) ==
          -EINVAL, "into itself");
}

static void guards(struct walled here)
{
    size_t size = 4 * page;
    int fd = memfd_create("guards", 0);
    int64_t at;
    uint32_t word;

    CHECK(fd >= 0 && !ftruncate(fd, (off_t)size), "memfd: %d", errno);
    at = gd_map(0, size, 1, 1, fd, 0, 0);
    CHECK(at > 0, "gd_map: %lld", (long long)at);
    CHECK(!ftruncate(fd, (off_t)page), "ftruncate: %d", errno);
    for (size_t n = 1; n < 3 * page; n = n * 3 / 2 + 1) {
        uintptr_t to = (uintptr_t)at + page - (n > page ? page : n) + 1;

        CHECK(gd_write(to, (char *)here.start, n, GD_GUARDED) == -EFAULT, "%zu bytes", n);
        CHECK(gd_fault_address() >= at + (int64_t)page, "%llx", (long long)gd_fault_address());
        CHECK(gd_read((char *)here.start, to, n, GD_GUARDED) == -EFAULT, "%zu bytes", n);
    }
    CHECK(gd_wait32((uintptr_t)at + page, 1, -1) == -EFAULT, "wait");
    CHECK(gd_store32((uintptr_t)at, 7, GD_GUARDED) == 0, "store");
    CHECK(gd_load32((uintptr_t)at, &word, GD_GUARDED) == 0 && word == 7, "%u", word);
    CHECK(gd_threads_configure(4, NULL, 0, &always) == 0, "threads");
    for (int i = 0; i < 100; i++) {
        CHECK(gd_write((uintptr_t)at, (char *)here.start, size, GD_GUARDED) == -EFAULT, "threads");
        CHECK(gd_write((uintptr_t)at, (char *)here.start, page, GD_GUARDED) == 0, "threads");
    }
    gd_unmap((uintptr_t)at, size);
    close(fd);
}

#define BIG (300 * 1000 + 17)

static void *copier(void *argument)
{
    unsigned char *from = malloc(BIG), *to = malloc(BIG + LINE);

    noise(from, BIG, (uint32_t)(uintptr_t)argument);
    for (int i = 0; i < 40; i++) {
        memset(to, 0, BIG + LINE);
        CHECK(gd_write((uintptr_t)to + (size_t)i, (char *)from, BIG, i & 1 ? GD_GUARDED : 0) == 0,
              "write");
        CHECK(!memcmp(to + i, from, BIG), "thread %zu, copy %d", (size_t)argument, i);
        CHECK(gd_read((char *)to, (uintptr_t)from, BIG, 0) == 0, "read");
        CHECK(!memcmp(to, from, BIG), "thread %zu, copy %d", (size_t)argument, i);
    }
    free(from);
    free(to);
    return NULL;
}

static void threads(void)
{
    pthread_t handles[3];

    for (int count = 1; count <= 5; count += 2) {
        CHECK(gd_threads_configure(count, NULL, 0, &always) == 0, "configure");
        for (size_t i = 0; i < 3; i++)
            CHECK(!pthread_create(&handles[i], NULL, copier, (void *)(i + 1)), "create");
        for (int i = 0; i < 3; i++)
            pthread_join(handles[i], NULL);
    }
}

int main(int argc, char **argv)
{
    struct walled there, here;
    int only_threads = argc > 1 && !strcmp(argv[1], "threads");

    page = (size_t)sysconf(_SC_PAGESIZE);
    there = walled(16 * 4096);
    here = walled(16 * 4096);
    /* what is looked at first is each instruction set, so: one thread */
    CHECK(gd_threads_configure(1, NULL, 0, &always) == 0, "configure");
    for (int i = 0; i < gd_isa_count() && !only_threads; i++) {
        if (!gd_isa_usable(i)) {
            printf("%-10s not on this processor\n", gd_isa_name(i));
            continue;
        }
        CHECK(gd_isa_select(gd_isa_name(i)) == 0, "%s", gd_isa_name(i));
        cases = 0;
        for (int write = 0; write < 2; write++) {
            sizes_and_alignments(there, here, write);
            strided(there, here, write);
        }
        gathered(there, here);
        printf("%-10s %ld checks\n", gd_isa_name(i), cases);
    }
    CHECK(gd_isa_select(NULL) == 0, "best");
    cases = 0;
    threads();
    printf("%-10s %ld checks\n", "threads", cases);
    if (!only_threads) {
        cases = 0;
        guards(here);
        printf("%-10s %ld checks\n", "guards", cases);
    }
    return 0;
}
