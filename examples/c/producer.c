/* SPDX-License-Identifier: MIT */
/*
 * A process of C alone, without CUDA and without Python, that stores frames to GPU memory of another process
 * and calls a function on the GPU with each. producer.py is the other process, and starts this one.
 *
 *     cc -O2 producer.c $(gpudirect config --cflags --libs) -o producer
 *     ./producer TOKEN_OF_FRAMES TOKEN_OF_LANE FRAMES
 */
#include <gpudirect.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND 1000000000ll /* ns */

/* As __device__ float sum(const float *frame, int n) lays its arguments out. */
struct arguments {
    uint64_t frame;
    int n;
};

static int failed(const char *what)
{
    fprintf(stderr, "producer: %s: %s\n", what, gd_attach_message());
    return 1;
}

static int produce(struct gd_attached *frames, struct gd_attached *service, int count)
{
    int sum = gd_attached_find(service, "sum", sizeof(struct arguments));
    int64_t slots, n;
    float *frame;
    uint64_t took = 0;

    if (sum < 0)
        return failed("the function");
    if (frames->ndim != 2 || strcmp(frames->dtype, "<f4") != 0) {
        fprintf(stderr, "producer: frames are two-dimensional and of float32\n");
        return 1;
    }
    slots = frames->shape[0];
    n = frames->shape[1];
    frame = malloc((size_t)n * sizeof(float));
    for (int i = 0; frame && i < count; i++) {
        uint64_t place = (uint64_t)(i % slots * n) * sizeof(float), start;
        struct arguments arguments = {frames->device + place, (int)n};
        struct p2pmod_reply reply;
        float found;

        for (int64_t k = 0; k < n; k++)
            frame[k] = (float)(i + k % 2);
        start = gd_now();
        /* the call fences, so the stores need no fence of their own */
        if (gd_attached_write(frames, place, (const char *)frame, (size_t)n * sizeof(float), GD_NO_FENCE) ||
            gd_attached_call(service, sum, &arguments, sizeof(arguments), 60 * SECOND, &reply)) {
            free(frame);
            return failed("a frame");
        }
        took += gd_now() - start;
        memcpy(&found, &reply.value, sizeof(found));
        if (reply.status != P2PMOD_STATUS_OK || found != (float)(i * n + n / 2)) {
            fprintf(stderr, "producer: frame %d: status %u, sum %g\n", i, reply.status, found);
            free(frame);
            return 1;
        }
    }
    printf("%d frames of %lld floats; a frame, with its call, takes %.2f us\n", count, (long long)n,
           (double)took / count / 1e3);
    free(frame);
    return frame ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct gd_attached *frames = NULL, *service = NULL;
    int code = 1;

    if (argc != 4 || atoi(argv[3]) < 1) {
        fprintf(stderr, "usage: %s TOKEN_OF_FRAMES TOKEN_OF_LANE FRAMES\n", argv[0]);
        return 2;
    }
    if (gd_attach(argv[1], 10 * SECOND, &frames))
        failed("the frames");
    else if (gd_attach(argv[2], 10 * SECOND, &service))
        failed("the service");
    else
        code = produce(frames, service, atoi(argv[3]));
    gd_detach(service);
    gd_detach(frames);
    return code;
}
