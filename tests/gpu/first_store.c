/* SPDX-License-Identifier: MIT */
/*
 * Seconds and bytes of resident memory from main() to a store of 4096 bytes to the GPU:
 *     first_store attached TOKEN      attached to another process's memory
 *     first_store cuda                with a CUDA context of its own
 * and nanoseconds of a call of 56 bytes, the median of 5000:
 *     first_store call TOKEN_OF_LANE
 */
#include <gpudirect.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALLS 5000

static long long resident(void)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (!f || fscanf(f, "%*d %lld", &pages) != 1)
        exit(3);
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

static int failed(void)
{
    fprintf(stderr, "%s\n", gd_attach_message());
    return 1;
}

static int attached(const char *token)
{
    struct gd_attached *a;
    char data[4096];

    memset(data, 7, sizeof(data));
    return gd_attach(token, 10000000000, &a) || gd_attached_write(a, 0, data, sizeof(data), 0) ? failed() : 0;
}

#define CALL(name, types, ...)                                                                          \
    do {                                                                                                \
        int (*function) types;                                                                          \
        *(void **)&function = dlsym(cuda, name);                                                        \
        if (!function || function(__VA_ARGS__))                                                         \
            return fprintf(stderr, "%s failed\n", name), 1;                                             \
    } while (0)

static int with_cuda(void)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *context;
    unsigned long long at;
    char data[4096];
    int device;

    memset(data, 7, sizeof(data));
    if (!cuda)
        return fprintf(stderr, "%s\n", dlerror()), 1;
    CALL("cuInit", (unsigned), 0);
    CALL("cuDeviceGet", (int *, int), &device, 0);
    CALL("cuDevicePrimaryCtxRetain", (void **, int), &context, device);
    CALL("cuCtxSetCurrent", (void *), context);
    CALL("cuMemAlloc_v2", (unsigned long long *, size_t), &at, sizeof(data));
    CALL("cuMemcpyHtoD_v2", (unsigned long long, const void *, size_t), at, data, sizeof(data));
    return 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int calls(const char *token)
{
    static uint64_t took[CALLS];
    struct gd_attached *a;
    int first;

    if (gd_attach(token, 10000000000, &a) || (first = gd_attached_find(a, "first", 56)) < 0)
        return failed();
    for (int i = -CALLS / 10; i < CALLS; i++) {
        int64_t arguments[7] = {i, 2, 3, 4, 5, 6, 7};
        struct p2pmod_reply reply;
        uint64_t start = gd_now();

        if (gd_attached_call(a, first, arguments, sizeof(arguments), -1, &reply))
            return failed();
        if ((int64_t)reply.value != i)
            return 2;
        if (i >= 0)
            took[i] = gd_now() - start;
    }
    qsort(took, CALLS, sizeof(took[0]), compare);
    printf("%llu\n", (unsigned long long)took[CALLS / 2]);
    gd_detach(a);
    return 0;
}

int main(int argc, char **argv)
{
    long long before = resident();
    uint64_t start = gd_now();
    int code;

    if (argc == 3 && !strcmp(argv[1], "call"))
        return calls(argv[2]);
    code = argc == 3 && !strcmp(argv[1], "attached") ? attached(argv[2]) : with_cuda();
    if (!code)
        printf("%.9f %lld\n", (double)(gd_now() - start) / 1e9, resident() - before);
    return code;
}
