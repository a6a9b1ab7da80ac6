/* SPDX-License-Identifier: MIT */
/*
 * The device's driver, called through functions whose addresses the device handed over. This file
 * knows their types (CUDA driver API: cuMemcpyHtoD, cuMemcpyDtoH, cuStreamSynchronize,
 * cuPointerGetAttribute, cuLaunchKernel, cuLaunchCooperativeKernel, cuStreamQuery, cuEventCreate,
 * cuMemCreate, cuMemRelease, cuMemAddressReserve, cuMemAddressFree, cuMemMap, cuMemUnmap, cuMemSetAccess,
 * cuEventDestroy, cuEventRecord, cuEventQuery, cuStreamWaitEvent, cuStreamWaitValue32,
 * cuStreamIsCapturing, cuCtxGetCurrent, cuCtxPushCurrent, cuCtxPopCurrent,
 * cuThreadExchangeStreamCaptureMode) and nothing else of CUDA.
 */
#include <errno.h>
#include <sched.h>
#include <time.h>

#include "native.h"
#include "relax.h"

typedef int copy_in_function(uint64_t to, const void *from, size_t n);
typedef int copy_out_function(void *to, uint64_t from, size_t n);
typedef int settle_function(void *stream);
typedef int attribute_function(void *value, int which, uint64_t address);
typedef int launch_function(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                            unsigned by, unsigned bz, unsigned shared, void *stream,
                            void **parameters, void **extra);
typedef int launch_cooperative_function(void *function, unsigned gx, unsigned gy, unsigned gz,
                                        unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                        void *stream, void **parameters);
typedef int query_function(void *stream);
typedef int event_new_function(void **event, unsigned flags);
typedef int event_free_function(void *event);
typedef int event_record_function(void *event, void *stream);
typedef int event_query_function(void *event);
typedef int capturing_function(void *stream, int *status);
typedef int stream_wait_function(void *stream, void *event, unsigned flags);
typedef int stream_wait_word_function(void *stream, uint64_t address, uint32_t value, unsigned flags);
typedef int capture_mode_function(int *mode);
typedef int memory_create_function(uint64_t *handle, size_t size, const void *properties,
                                   unsigned long long flags);
typedef int memory_release_function(uint64_t handle);
typedef int memory_reserve_function(uint64_t *address, size_t size, size_t alignment, uint64_t at,
                                    unsigned long long flags);
typedef int memory_unreserve_function(uint64_t address, size_t size);
typedef int memory_map_function(uint64_t address, size_t size, size_t offset, uint64_t handle,
                                unsigned long long flags);
typedef int memory_unmap_function(uint64_t address, size_t size);
typedef int memory_access_function(uint64_t address, size_t size, const void *access, size_t count);
typedef int current_function(void **context);
typedef int push_function(void *context);
typedef int pop_function(void **context);

#define MEMORY_TYPE 2 /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE */
#define TYPE_HOST 1   /* CU_MEMORYTYPE_HOST; memory that CUDA does not know gives an error */
/* CU_LAUNCH_PARAM_END, _BUFFER_POINTER, _BUFFER_SIZE */
#define PARAM_END ((void *)0)
#define PARAM_BUFFER ((void *)1)
#define PARAM_SIZE ((void *)2)
#define NOT_READY 600  /* CUDA_ERROR_NOT_READY */
#define NO_TIMING 2    /* CU_EVENT_DISABLE_TIMING */
#define AT_LEAST 0     /* CU_STREAM_WAIT_VALUE_GEQ */
#define RELAXED 2      /* CU_STREAM_CAPTURE_MODE_RELAXED */
#define MOST_PARAMETERS 32

#define CALL(name) ((name##_function *)(uintptr_t)driver->name)
#define POINTER(number) ((void *)(uintptr_t)(number))

static int enter(const struct gd_driver *driver, int *entered)
{
    void *now = NULL;
    int code = CALL(current)(&now);

    *entered = 0;
    if (code || (uintptr_t)now == driver->context)
        return code;
    code = CALL(push)(POINTER(driver->context));
    *entered = !code;
    return code;
}

static void leave(const struct gd_driver *driver, int entered)
{
    void *ignored;

    if (entered)
        CALL(pop)(&ignored);
}

/* Evaluates the call with the driver's context current. */
#define WITHIN(CALLED)                                                                            \
    int entered, code = enter(driver, &entered);                                                  \
                                                                                                  \
    if (code)                                                                                     \
        return code;                                                                              \
    code = CALLED;                                                                                \
    leave(driver, entered);                                                                       \
    return code

int gd_driver_copy_in(const struct gd_driver *driver, uint64_t to, const char *from, size_t n)
{
    WITHIN(CALL(copy_in)(to, from, n));
}

int gd_driver_copy_out(const struct gd_driver *driver, char *to, uint64_t from, size_t n)
{
    WITHIN(CALL(copy_out)(to, from, n));
}

int gd_driver_settle(const struct gd_driver *driver, uint64_t stream)
{
    WITHIN(CALL(settle)(POINTER(stream)));
}

/*
 * Waits. The driver's own (cuStreamSynchronize, cuEventSynchronize) see no signal until they are over,
 * so these ask again and again instead, and come back with -EAGAIN now and then, for Python to look at
 * its signals. The pause between two questions is a small part of what was waited for already: short
 * waits lose nothing by it, other threads get at the driver, and long ones sleep.
 */
#define BRIEF 200000    /* ns: so long a stream itself is asked; then an event in it is waited for */
#define AWAKE 10000000  /* ns waited for: from then on the processor is given up */
#define PATIENT 100000  /* ns waited for: from then on it is offered to others */
#define PART 64         /* a pause is this part of what was waited for */
#define LONGEST 1000000 /* ns: no pause is longer */

/* A pause after so many ns of waiting; whether a signal ended it. */
static int pause_after(uint64_t waited)
{
    uint64_t pause = waited / PART, now = gd_now(), until = now + pause;

    if (waited >= AWAKE) {
        struct timespec sleep = {0, (long)(pause < LONGEST ? pause : LONGEST)};

        return nanosleep(&sleep, NULL) && errno == EINTR;
    }
    if (waited >= PATIENT)
        sched_yield();
    do
        gd_relax();
    while (gd_now() < until);
    return 0;
}

/* Until the stream or event is done, or `most` ns more have passed, or a signal came: -EAGAIN. */
static int ask(const struct gd_driver *driver, uint64_t of, int event, uint64_t waited, uint64_t most)
{
    uint64_t start = gd_now(), spent;
    int code;

    for (;;) {
        code = event ? CALL(event_query)(POINTER(of)) : CALL(query)(POINTER(of));
        if (code != NOT_READY)
            return code;
        spent = gd_now() - start;
        if (spent >= most || pause_after(waited + spent))
            return -EAGAIN;
    }
}

int gd_driver_synchronize(const struct gd_driver *driver, uint64_t stream, struct gd_work *work)
{
    uint64_t mark = work ? gd_work_mark(work) : 0;
    int entered, code = enter(driver, &entered);

    if (!code) {
        code = ask(driver, stream, 0, 0, BRIEF);
        leave(driver, entered);
    }
    if (work && code != -EAGAIN) /* after an error too: what failed has been told, and runs no more */
        gd_work_settle(work, mark);
    return code;
}

int gd_driver_wait_event(const struct gd_driver *driver, uint64_t event, uint64_t waited)
{
    WITHIN(ask(driver, event, 1, waited, GD_WAIT_PIECE));
}

static int memory_type(const struct gd_driver *driver, const void *ordinary, unsigned *type)
{
    WITHIN(CALL(attribute)(type, MEMORY_TYPE, (uintptr_t)ordinary));
}

int gd_driver_pinned(const struct gd_driver *driver, const void *ordinary)
{
    unsigned type = 0;

    return !memory_type(driver, ordinary, &type) && type == TYPE_HOST;
}

static int launch(const struct gd_driver *driver, uint64_t function, const struct gd_grid *grid,
                  uint64_t stream, void **extra)
{
    const uint32_t *g = grid->grid, *b = grid->block;

    WITHIN(CALL(launch)(POINTER(function), g[0], g[1], g[2], b[0], b[1], b[2], grid->shared,
                        POINTER(stream), NULL, extra));
}

int gd_driver_launch(const struct gd_driver *driver, uint64_t function, const struct gd_grid *grid,
                     uint64_t stream, const char *arguments, size_t n, struct gd_work *work)
{
    void *extra[] = {PARAM_BUFFER, (void *)(uintptr_t)arguments, PARAM_SIZE, &n, PARAM_END};
    int code;

    if (work)
        gd_work_begin(work);
    gd_fence(); /* the kernel sees what was stored before */
    code = launch(driver, function, grid, stream, extra);
    if (work)
        gd_work_queued(work);
    return code;
}

int gd_driver_launch_cooperative(const struct gd_driver *driver, uint64_t function,
                                 const struct gd_grid *grid, uint64_t stream, char *arguments,
                                 const uint32_t *offsets, unsigned count)
{
    void *parameters[MOST_PARAMETERS];
    const uint32_t *g = grid->grid, *b = grid->block;

    if (count > MOST_PARAMETERS)
        return -E2BIG;
    for (unsigned i = 0; i < count; i++)
        parameters[i] = arguments + offsets[i];
    gd_fence();
    WITHIN(CALL(launch_cooperative)(POINTER(function), g[0], g[1], g[2], b[0], b[1], b[2],
                                    grid->shared, POINTER(stream), parameters));
}

int gd_driver_thread(const struct gd_driver *driver)
{
    int mode = RELAXED, code = CALL(push)(POINTER(driver->context));

    return code ? code : CALL(capture_mode)(&mode);
}

int gd_driver_query(const struct gd_driver *driver, uint64_t stream)
{
    int entered, code = enter(driver, &entered);

    if (code)
        return code;
    code = CALL(query)(POINTER(stream));
    leave(driver, entered);
    return code == NOT_READY ? -EAGAIN : code;
}

int gd_driver_ready(const struct gd_driver *driver, uint64_t stream)
{
    int status = 0, entered, code = enter(driver, &entered);

    if (code)
        return code;
    code = CALL(capturing)(POINTER(stream), &status); /* to ask further would end the capture */
    if (!code)
        code = status ? -EBUSY : CALL(query)(POINTER(stream));
    leave(driver, entered);
    return code == NOT_READY ? -EAGAIN : code;
}

int gd_driver_event_new(const struct gd_driver *driver, uint64_t *event)
{
    void *made = NULL;
    int entered, code = enter(driver, &entered);

    if (code)
        return code;
    code = CALL(event_new)(&made, NO_TIMING);
    leave(driver, entered);
    *event = (uintptr_t)made;
    return code;
}

int gd_driver_event_free(const struct gd_driver *driver, uint64_t event)
{
    WITHIN(CALL(event_free)(POINTER(event)));
}

int gd_driver_event_record(const struct gd_driver *driver, uint64_t event, uint64_t stream)
{
    WITHIN(CALL(event_record)(POINTER(event), POINTER(stream)));
}

int gd_driver_stream_wait(const struct gd_driver *driver, uint64_t stream, uint64_t event)
{
    WITHIN(CALL(stream_wait)(POINTER(stream), POINTER(event), 0));
}

int gd_driver_stream_wait_word(const struct gd_driver *driver, uint64_t stream, uint64_t address,
                               uint32_t value)
{
    WITHIN(CALL(stream_wait_word)(POINTER(stream), address, value, AT_LEAST));
}

/* What of memory was made, taken apart again in reverse order; 0 stands for what was not made. */
static void take_apart(const struct gd_driver *driver, uint64_t address, size_t size, uint64_t handle,
                       int mapped)
{
    if (mapped)
        CALL(memory_unmap)(address, size);
    if (address)
        CALL(memory_unreserve)(address, size);
    CALL(memory_release)(handle);
}

static int put_together(const struct gd_driver *driver, size_t size, size_t granularity,
                        uint64_t *address, uint64_t *handle)
{
    int code = CALL(memory_create)(handle, size, driver->memory_properties, 0), mapped = 0;

    if (code)
        return code;
    *address = 0;
    code = CALL(memory_reserve)(address, size, granularity, 0, 0);
    if (!code) {
        code = CALL(memory_map)(*address, size, 0, *handle, 0);
        mapped = !code;
    }
    if (!code)
        code = CALL(memory_access)(*address, size, driver->memory_access_of, 1);
    if (code)
        take_apart(driver, *address, size, *handle, mapped);
    return code;
}

/* While a stream is captured somewhere in the process, the driver minds memory calls otherwise. */
int gd_driver_memory_new(const struct gd_driver *driver, size_t size, size_t granularity,
                         uint64_t *address, uint64_t *handle)
{
    int mode = RELAXED, entered, code = enter(driver, &entered);

    if (code)
        return code;
    CALL(capture_mode)(&mode);
    code = put_together(driver, size, granularity, address, handle);
    CALL(capture_mode)(&mode);
    leave(driver, entered);
    return code;
}

int gd_driver_memory_free(const struct gd_driver *driver, uint64_t address, size_t size, uint64_t handle)
{
    int mode = RELAXED, entered, code = enter(driver, &entered);

    if (code)
        return code;
    CALL(capture_mode)(&mode);
    take_apart(driver, address, size, handle, 1);
    CALL(capture_mode)(&mode);
    leave(driver, entered);
    return 0;
}
