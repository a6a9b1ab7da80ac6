/* SPDX-License-Identifier: MIT */
/*
 * Loaded before everything else (LD_PRELOAD), this library counts what the runtime asks of the system and
 * of NVIDIA's driver, and has the n-th of these calls fail. It also is that driver, as far as calls without
 * a kernel's work go: libcuda (memory is memfds, kernels do nothing), the device files of the bridge rm,
 * the module of the bridge p2pmod, libgdrapi. It is strict: what is given back twice, or while it is
 * mapped, is refused; and it says at any time what it still holds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../p2pmod/p2pmod.h"

#define REAL(name) real(#name)
#define MOST 4096
#define PAGE 65536 /* of the GPU */

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found)
        abort();
    return found;
}

/* -- counting --------------------------------------------------------------------------------- */

enum kind {
    SYSTEM,
    STATUS
}; /* how a call fails: by errno and an unknown code, or for want of room */

static atomic_int armed;
static atomic_long counted;
static long wanted;
static enum kind how;
static const char *failed;

/* From now on, have the n-th call fail; none where n is 0. */
void faults_arm(long n, int kind)
{
    counted = 0;
    wanted = n;
    how = kind;
    failed = NULL;
    armed = 1;
}

/* The calls since; *what is the one that failed, NULL where none did. */
long faults_disarm(const char **what)
{
    armed = 0;
    *what = failed;
    return counted;
}

/* Whether code of ours, or Python's on its behalf, calls: NVRTC and others have faults of their own. */
static int is_ours(const void *caller)
{
    Dl_info found;

    return dladdr(caller, &found) && found.dli_fname &&
           (strstr(found.dli_fname, "python") || strstr(found.dli_fname, "gpudirect")) &&
           !strstr(found.dli_fname, "/nvidia/");
}

static int fails(const char *name)
{
    if (!armed || atomic_fetch_add(&counted, 1) + 1 != wanted)
        return 0;
    failed = name;
    return 1;
}

#define SYSTEM_FAILS(name, number)                                                                 \
    do {                                                                                           \
        if (is_ours(__builtin_return_address(0)) && fails(name)) {                                 \
            errno = number;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

/* -- what it holds ---------------------------------------------------------------------------- */

struct memory { /* index + 1 is its handle */
    int fd, references;
    size_t size;
};

struct range {
    uint64_t address;
    size_t size;
    int memory;
};

struct object { /* of rm: a device, a subdevice, memory; or a pin of p2pmod or gdrdrv */
    unsigned handle;
    int fd; /* of memory, else -1 */
    int64_t offset;
};

enum file { NONE, CONTROL, DEVICE, MODULE, DMABUF };

static struct {
    enum file kind;
    int fd;         /* what a mapping of it shows, -1: nothing */
    int64_t offset; /* and from where on */
} files[MOST];

static struct memory memories[MOST];
static struct range ranges[MOST];
static struct object objects[MOST], pins[MOST];
static uint64_t mapped[MOST]; /* bus addresses of rm */
static struct {
    uint64_t address;
    size_t size;
} host[MOST], registered[MOST];
static uint64_t tokens[3][MOST]; /* streams, events, modules */
static int contexts, depth;
static unsigned next_handle = 1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define COUNT(table, used)                                                                         \
    ({                                                                                             \
        long found_ = 0;                                                                           \
        for (int i = 0; i < MOST; i++)                                                             \
            found_ += !!(table[i] used);                                                           \
        found_;                                                                                    \
    })

/* What is not given back yet, in words. */
void faults_held(char *words, size_t n)
{
    pthread_mutex_lock(&lock);
    snprintf(words, n,
             "memory %ld, addresses %ld, mapped ranges %ld, objects %ld, mappings %ld, pins %ld, "
             "page-locked %ld, registered %ld, streams %ld, events %ld, modules %ld, contexts %d, "
             "entered %d",
             COUNT(memories, .references), COUNT(ranges, .size), COUNT(ranges, .memory),
             COUNT(objects, .handle), COUNT(mapped, ), COUNT(pins, .handle), COUNT(host, .size),
             COUNT(registered, .size), COUNT(tokens[0], ), COUNT(tokens[1], ), COUNT(tokens[2], ),
             contexts, depth);
    pthread_mutex_unlock(&lock);
}

#define FREE(table, used)                                                                          \
    ({                                                                                             \
        int at_ = 0;                                                                               \
        while (at_ < MOST && (table[at_] used))                                                    \
            at_++;                                                                                 \
        if (at_ == MOST)                                                                           \
            abort();                                                                               \
        at_;                                                                                       \
    })

static struct range *range_of(uint64_t address)
{
    for (int i = 0; i < MOST; i++)
        if (ranges[i].size && address - ranges[i].address < ranges[i].size)
            return &ranges[i];
    return NULL;
}

static int duplicate(int fd)
{
    return ((int (*)(int, int, ...))REAL(fcntl))(fd, F_DUPFD_CLOEXEC, 0);
}

static int close_really(int fd)
{
    return ((int (*)(int))REAL(close))(fd);
}

static void *map_really(void *at, size_t n, int protection, int flags, int fd, int64_t offset)
{
    return ((void *(*)(void *, size_t, int, int, int, off_t))REAL(mmap))(at, n, protection, flags,
                                                                         fd, offset);
}

static void drop(int memory)
{
    struct memory *m = &memories[memory - 1];

    if (!--m->references)
        close_really(m->fd);
}

/* -- the system -------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) int open_file(const char *path, int flags, int mode,
                                                           const char *name)
{
    enum file kind = !strcmp(path, "/dev/nvidiactl")     ? CONTROL
                     : !strncmp(path, "/dev/nvidia", 11) ? DEVICE
                     : strstr(path, "/feigned/p2pmod")   ? MODULE
                                                         : NONE;
    int fd;

    SYSTEM_FAILS(name, EMFILE);
    fd = ((int (*)(const char *, int, int))REAL(open64))(kind ? "/dev/null" : path, flags, mode);
    if (fd >= 0 && fd < MOST && kind) {
        files[fd].kind = kind;
        files[fd].fd = -1;
    }
    return fd;
}

#define MODE                                                                                       \
    ({                                                                                             \
        va_list more_;                                                                             \
        va_start(more_, flags);                                                                    \
        int mode_ = flags & (O_CREAT | O_TMPFILE) ? va_arg(more_, int) : 0;                        \
        va_end(more_);                                                                             \
        mode_;                                                                                     \
    })

int open(const char *path, int flags, ...)
{
    return open_file(path, flags, MODE, "open");
}

int open64(const char *path, int flags, ...)
{
    return open_file(path, flags, MODE, "open");
}

int access(const char *path, int mode)
{
    if (!strncmp(path, "/dev/nvidia", 11))
        return 0;
    return ((int (*)(const char *, int))REAL(access))(path, mode);
}

int close(int fd)
{
    if (fd >= 0 && fd < MOST && files[fd].kind) {
        pthread_mutex_lock(&lock);
        if (files[fd].kind == CONTROL) /* the driver frees a client with its file */
            for (int i = 0; i < MOST; i++) {
                if (objects[i].handle && objects[i].fd >= 0)
                    close_really(objects[i].fd);
                objects[i].handle = 0;
                mapped[i] = 0;
            }
        if (files[fd].fd >= 0)
            close_really(files[fd].fd);
        files[fd].kind = NONE;
        pthread_mutex_unlock(&lock);
    }
    return close_really(fd);
}

static inline __attribute__((always_inline)) void *map(void *at, size_t n, int protection,
                                                       int flags, int fd, int64_t offset)
{
    /* without a place and a file it is Python's own memory, or a thread's stack */
    if (at || fd >= 0 || protection != (PROT_READ | PROT_WRITE))
        if (is_ours(__builtin_return_address(0)) && fails("mmap")) {
            errno = ENOMEM;
            return MAP_FAILED;
        }
    if (fd >= 0 && fd < MOST && files[fd].kind == MODULE) {
        struct object *pin = NULL;

        for (int i = 0; i < MOST; i++)
            if (pins[i].handle == offset >> 32)
                pin = &pins[i];
        if (!pin || !pin->handle) {
            errno = ENODEV;
            return MAP_FAILED;
        }
        return map_really(at, n, protection, flags, pin->fd, pin->offset + (offset & 0xffffffff));
    }
    if (fd >= 0 && fd < MOST && files[fd].kind)
        return map_really(at, n, protection, flags, files[fd].fd, files[fd].offset + offset);
    return map_really(at, n, protection, flags, fd, offset);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    return map(at, n, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    return map(at, n, protection, flags, fd, offset);
}

int memfd_create(const char *name, unsigned flags)
{
    SYSTEM_FAILS("memfd_create", EMFILE);
    return ((int (*)(const char *, unsigned))REAL(memfd_create))(name, flags);
}

int ftruncate64(int fd, off_t size)
{
    SYSTEM_FAILS("ftruncate", ENOSPC);
    return ((int (*)(int, off_t))REAL(ftruncate64))(fd, size);
}

int ftruncate(int fd, off_t size)
{
    SYSTEM_FAILS("ftruncate", ENOSPC);
    return ((int (*)(int, off_t))REAL(ftruncate64))(fd, size);
}

static inline __attribute__((always_inline)) int control(int fd, int command, void *argument)
{
    SYSTEM_FAILS("fcntl", EMFILE);
    return ((int (*)(int, int, ...))REAL(fcntl))(fd, command, argument);
}

#define ARGUMENT                                                                                   \
    ({                                                                                             \
        va_list more_;                                                                             \
        va_start(more_, command);                                                                  \
        void *argument_ = va_arg(more_, void *);                                                   \
        va_end(more_);                                                                             \
        argument_;                                                                                 \
    })

int fcntl(int fd, int command, ...)
{
    return control(fd, command, ARGUMENT);
}

int fcntl64(int fd, int command, ...)
{
    return control(fd, command, ARGUMENT);
}

int socket(int domain, int type, int protocol)
{
    SYSTEM_FAILS("socket", EMFILE);
    return ((int (*)(int, int, int))REAL(socket))(domain, type, protocol);
}

/* -- the driver's own interface, of the bridge rm ---------------------------------------------- */

struct rm_allocate {
    unsigned root, parent, new, kind;
    uint64_t params;
    unsigned size, status;
};

struct rm_control {
    unsigned client, object, command, flags;
    uint64_t params;
    unsigned size, status;
};

struct rm_map {
    unsigned client, device, memory;
    uint64_t offset, length, linear;
    unsigned status, flags;
    int fd;
};

struct rm_unmap {
    unsigned client, device, memory, pad;
    uint64_t linear;
    unsigned status, flags;
};

struct rm_free {
    unsigned root, parent, object, status;
};

struct rm_import {
    int fd;
    unsigned type, device, parent, object;
};

#define NO_ROOM 0x51
#define NOT_FOUND 0x57

static struct object *object_of(unsigned handle)
{
    for (int i = 0; i < MOST; i++)
        if (handle && objects[i].handle == handle)
            return &objects[i];
    return NULL;
}

static void object_new(unsigned handle, int fd)
{
    int i = FREE(objects, .handle);

    objects[i].handle = handle;
    objects[i].fd = fd;
}

static unsigned rm_call(unsigned number, void *argument)
{
    struct object *object;

    if (number == 0x2B) {
        struct rm_allocate *call = argument;

        if (!call->parent) {
            call->new = next_handle++;
            return 0; /* the client, which goes with its file */
        }
        object_new(call->new, -1);
    } else if (number == 0x2A && ((struct rm_control *)argument)->command == 0x3D06) {
        struct rm_import *call = (void *)(uintptr_t)((struct rm_control *)argument)->params;

        object_new(call->object, duplicate(call->fd));
    } else if (number == 0x4E) {
        struct rm_map *call = argument;
        int i = FREE(mapped, );

        object = object_of(call->memory);
        if (!object || call->fd < 0 || call->fd >= MOST || files[call->fd].kind != DEVICE)
            return NOT_FOUND;
        files[call->fd].fd = duplicate(object->fd);
        files[call->fd].offset = (int64_t)call->offset;
        call->linear = mapped[i] = 0x380000000000 + (uint64_t)next_handle++ * PAGE;
    } else if (number == 0x4F) {
        for (int i = 0; i < MOST; i++)
            if (mapped[i] == ((struct rm_unmap *)argument)->linear) {
                mapped[i] = 0;
                return 0;
            }
        return NOT_FOUND;
    } else if (number == 0x29) {
        object = object_of(((struct rm_free *)argument)->object);
        if (!object)
            return NOT_FOUND;
        if (object->fd >= 0)
            close_really(object->fd);
        object->handle = 0;
    }
    return 0;
}

/* Where each call's answer stands; a tie of two files has none. */
static unsigned *rm_status(unsigned number, void *argument)
{
    switch (number) {
    case 0x2B:
        return &((struct rm_allocate *)argument)->status;
    case 0x2A:
        return &((struct rm_control *)argument)->status;
    case 0x4E:
        return &((struct rm_map *)argument)->status;
    case 0x4F:
        return &((struct rm_unmap *)argument)->status;
    case 0x29:
        return &((struct rm_free *)argument)->status;
    }
    return NULL;
}

static const char *rm_name(unsigned number)
{
    return number == 0x29 ? "rm: free" : number == 0x4F ? "rm: unmap" : "rm: ioctl";
}

/* -- p2pmod ------------------------------------------------------------------------------------ */

static struct object *pin_new(uint64_t address, uint64_t end)
{
    struct range *range = range_of(address);
    struct object *pin;

    if (!range || !range->memory || end > range->address + range->size)
        return NULL;
    pin = &pins[FREE(pins, .handle)];
    pin->handle = next_handle++;
    pin->fd = duplicate(memories[range->memory - 1].fd);
    pin->offset = (int64_t)((address & ~(uint64_t)(PAGE - 1)) - range->address);
    return pin;
}

static int pin_free(unsigned handle)
{
    for (int i = 0; i < MOST; i++)
        if (handle && pins[i].handle == handle) {
            close_really(pins[i].fd);
            pins[i].handle = 0;
            return 0;
        }
    return EINVAL;
}

static int module_call(unsigned long command, void *argument)
{
    if (command == P2PMOD_QUERY) {
        ((struct p2pmod_query *)argument)->abi_version = P2PMOD_ABI_VERSION;
        ((struct p2pmod_query *)argument)->features = P2PMOD_FEATURE_BUS_ADDRESSES;
    } else if (command == P2PMOD_PIN) {
        struct p2pmod_pin *call = argument;
        struct object *pin = pin_new(call->address, call->address + call->length);

        if (!pin)
            return EINVAL;
        call->handle = pin->handle;
        call->map_offset = (uint64_t)pin->handle << 32;
        call->lead = call->address % PAGE;
        call->page_count = (call->lead + call->length + PAGE - 1) / PAGE;
        call->map_length = call->page_count * PAGE;
    } else if (command == P2PMOD_STATUS) {
        ((struct p2pmod_status *)argument)->state = P2PMOD_STATE_WRITE_COMBINED;
    } else if (command == P2PMOD_PAGES) {
        struct p2pmod_pages *call = argument;

        for (uint64_t i = 0; i < call->count; i++)
            ((uint64_t *)(uintptr_t)call->addresses)[i] = 0x380000000000 + i * PAGE;
    } else if (command == P2PMOD_UNPIN) {
        return pin_free(((struct p2pmod_unpin *)argument)->handle);
    } else {
        return ENOTTY;
    }
    return 0;
}

int ioctl(int fd, unsigned long command, ...)
{
    void *argument = ARGUMENT;
    enum file kind = fd >= 0 && fd < MOST ? files[fd].kind : NONE;
    unsigned number = command & 0xff,
             *status = kind == CONTROL ? rm_status(number, argument) : NULL;
    int code = 0;

    if (!kind)
        return ((int (*)(int, unsigned long, ...))REAL(ioctl))(fd, command, argument);
    if (fails(kind != MODULE            ? rm_name(number)
              : command == P2PMOD_UNPIN ? "p2pmod: unpin"
                                        : "p2pmod: ioctl")) {
        if (status && how == STATUS) {
            *status = NO_ROOM;
            return 0;
        }
        errno = how == STATUS ? ENOMEM : EIO;
        return -1;
    }
    pthread_mutex_lock(&lock);
    if (kind == MODULE)
        code = module_call(command, argument);
    else if (status)
        *status = rm_call(number, argument);
    pthread_mutex_unlock(&lock);
    errno = code;
    return code ? -1 : 0;
}

/* -- libgdrapi --------------------------------------------------------------------------------- */

typedef struct {
    unsigned long h;
} gdr_handle;

#define GDR_FAILS(name)                                                                            \
    do {                                                                                           \
        if (fails(name))                                                                           \
            return how == STATUS ? ENOMEM : EIO;                                                   \
    } while (0)

void *gdr_open(void)
{
    return fails("gdr_open") ? NULL : (void *)&pins;
}

int gdr_close(void *g)
{
    (void)g;
    return 0;
}

int gdr_pin_buffer(void *g, unsigned long address, size_t n, uint64_t token, uint32_t space,
                   gdr_handle *handle)
{
    struct object *pin;

    (void)g, (void)token, (void)space;
    GDR_FAILS("gdr_pin_buffer");
    pthread_mutex_lock(&lock);
    pin = pin_new(address, address + n);
    if (pin)
        handle->h = pin->handle;
    pthread_mutex_unlock(&lock);
    return pin ? 0 : EINVAL;
}

int gdr_unpin_buffer(void *g, gdr_handle handle)
{
    int code;

    (void)g;
    GDR_FAILS("gdr_unpin_buffer");
    pthread_mutex_lock(&lock);
    code = pin_free((unsigned)handle.h);
    pthread_mutex_unlock(&lock);
    return code;
}

int gdr_map(void *g, gdr_handle handle, void **at, size_t n)
{
    (void)g;
    GDR_FAILS("gdr_map");
    for (int i = 0; i < MOST; i++)
        if (pins[i].handle == handle.h) {
            *at =
                map_really(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, pins[i].fd, pins[i].offset);
            return *at == MAP_FAILED ? errno : 0;
        }
    return EINVAL;
}

int gdr_unmap(void *g, gdr_handle handle, void *at, size_t n)
{
    (void)g, (void)handle;
    GDR_FAILS("gdr_unmap");
    return munmap(at, n);
}

void gdr_runtime_get_version(int *major, int *minor)
{
    *major = 2;
    *minor = 5;
}

/* -- libcuda ----------------------------------------------------------------------------------- */

#define INVALID 1
#define NO_MEMORY 2
#define DESTROYED 400
#define UNKNOWN 999

#define CUDA_FAILS(name)                                                                           \
    do {                                                                                           \
        if (fails(name))                                                                           \
            return how == STATUS ? NO_MEMORY : UNKNOWN;                                            \
    } while (0)
#define LOCKED(expression)                                                                         \
    do {                                                                                           \
        int code_;                                                                                 \
        CUDA_FAILS(__func__);                                                                      \
        pthread_mutex_lock(&lock);                                                                 \
        code_ = (expression);                                                                      \
        pthread_mutex_unlock(&lock);                                                               \
        return code_;                                                                              \
    } while (0)
#define GIVEN(place, value) (*(place) = (value), 0)

static __thread uint64_t current;

int cuInit(unsigned flags)
{
    (void)flags;
    CUDA_FAILS(__func__);
    return 0;
}

int cuDriverGetVersion(int *version)
{
    LOCKED(GIVEN(version, 13030));
}
int cuDeviceGetCount(int *count)
{
    LOCKED(GIVEN(count, 1));
}
int cuDeviceGet(int *device, int ordinal)
{
    LOCKED(ordinal ? 101 : GIVEN(device, 0));
}
int cuDeviceGetName(char *name, int n, int device)
{
    (void)device;
    LOCKED((snprintf(name, n, "Feigned GPU"), 0));
}
int cuDeviceGetUuid(char *uuid, int device)
{
    (void)device;
    LOCKED((memset(uuid, 7, 16), 0));
}
int cuDeviceGetUuid_v2(char *uuid, int device)
{
    return cuDeviceGetUuid(uuid, device);
}
int cuDeviceGetPCIBusId(char *address, int n, int device)
{
    (void)device;
    LOCKED((snprintf(address, n, "0000:01:00.0"), 0));
}
int cuDeviceGetAttribute(int *value, int which, int device)
{
    (void)device;
    LOCKED(GIVEN(value, which == 75 ? 9 : which == 118 ? 100 : which != 76));
}
int cuDevicePrimaryCtxRetain(uint64_t *context, int device)
{
    (void)device;
    LOCKED((contexts++, GIVEN(context, 0xC0DE)));
}
int cuDevicePrimaryCtxRelease_v2(int device)
{
    (void)device;
    LOCKED(contexts ? (contexts--, 0) : INVALID);
}
int cuDevicePrimaryCtxRelease(int device)
{
    return cuDevicePrimaryCtxRelease_v2(device);
}
int cuCtxGetCurrent(uint64_t *context)
{
    LOCKED(GIVEN(context, current));
}
int cuCtxPushCurrent(uint64_t context)
{
    LOCKED((depth++, GIVEN(&current, context)));
}
int cuCtxPopCurrent(uint64_t *context)
{
    LOCKED((depth--, *context = current, GIVEN(&current, 0)));
}
int cuCtxPushCurrent_v2(uint64_t context)
{
    return cuCtxPushCurrent(context);
}
int cuCtxPopCurrent_v2(uint64_t *context)
{
    return cuCtxPopCurrent(context);
}
int cuCtxSynchronize(void)
{
    LOCKED(0);
}
int cuThreadExchangeStreamCaptureMode(int *mode)
{
    (void)mode;
    LOCKED(0);
}

int cuGetErrorString(int code, const char **words)
{
    *words = code == NO_MEMORY ? "out of memory" : "something";
    return 0;
}
int cuGetErrorName(int code, const char **words)
{
    return cuGetErrorString(code, words);
}

int cuMemGetAllocationGranularity(size_t *n, const void *properties, int which)
{
    (void)properties, (void)which;
    LOCKED(GIVEN(n, 2 << 20));
}

int cuMemGetInfo(size_t *free, size_t *total)
{
    LOCKED((*free = 1 << 30, GIVEN(total, 1 << 30)));
}
int cuMemGetInfo_v2(size_t *free, size_t *total)
{
    return cuMemGetInfo(free, total);
}

static int memory_new(uint64_t *handle, size_t n)
{
    int i = FREE(memories, .references);

    memories[i].fd = ((int (*)(const char *, unsigned))REAL(memfd_create))("feigned", MFD_CLOEXEC);
    if (memories[i].fd < 0 || ((int (*)(int, off_t))REAL(ftruncate64))(memories[i].fd, (off_t)n))
        return NO_MEMORY;
    memories[i].size = n;
    memories[i].references = 1;
    *handle = (uint64_t)i + 1;
    return 0;
}

static struct memory *memory_of(uint64_t handle)
{
    return handle && handle <= MOST && memories[handle - 1].references ? &memories[handle - 1]
                                                                       : NULL;
}

int cuMemCreate(uint64_t *handle, size_t n, const void *properties, unsigned long long flags)
{
    (void)properties, (void)flags;
    LOCKED(memory_new(handle, n));
}
int cuMemRelease(uint64_t handle)
{
    LOCKED(memory_of(handle) ? (drop((int)handle), 0) : INVALID);
}
int cuMemRetainAllocationHandle(uint64_t *handle, uint64_t address)
{
    struct range *range;

    LOCKED(
        !(range = range_of(address)) || !range->memory
            ? INVALID
            : (memories[range->memory - 1].references++, GIVEN(handle, (uint64_t)range->memory)));
}

static int reserve(uint64_t *address, size_t n)
{
    size_t most = 2 << 20;
    char *p =
        map_really(NULL, n + most, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t lead = -(uintptr_t)p & (most - 1);
    int i = FREE(ranges, .size);

    if (p == MAP_FAILED)
        return NO_MEMORY;
    if (lead)
        munmap(p, lead);
    munmap(p + lead + n, most - lead);
    ranges[i] = (struct range){(uintptr_t)p + lead, n, 0};
    *address = ranges[i].address;
    return 0;
}

static struct range *whole(uint64_t address, size_t n)
{
    struct range *range = range_of(address);

    return range && range->address == address && range->size == n ? range : NULL;
}

static int unreserve(struct range *range)
{
    if (!range || range->memory)
        return INVALID;
    munmap((void *)(uintptr_t)range->address, range->size);
    range->size = 0;
    return 0;
}

int cuMemAddressReserve(uint64_t *address, size_t n, size_t alignment, uint64_t at,
                        unsigned long long flags)
{
    (void)alignment, (void)at, (void)flags;
    LOCKED(reserve(address, n));
}
int cuMemAddressFree(uint64_t address, size_t n)
{
    LOCKED(unreserve(whole(address, n)));
}
int cuMemMap(uint64_t address, size_t n, size_t offset, uint64_t handle, unsigned long long flags)
{
    struct range *range;

    (void)offset, (void)flags;
    LOCKED(!(range = whole(address, n)) || range->memory || !memory_of(handle)
               ? INVALID
               : (memories[handle - 1].references++, GIVEN(&range->memory, (int)handle)));
}
int cuMemUnmap(uint64_t address, size_t n)
{
    struct range *range;

    LOCKED(!(range = whole(address, n)) || !range->memory
               ? INVALID
               : (drop(range->memory), GIVEN(&range->memory, 0)));
}
int cuMemSetAccess(uint64_t address, size_t n, const void *access, size_t count)
{
    (void)access, (void)count;
    LOCKED(whole(address, n) ? 0 : INVALID);
}
int cuMemGetAddressRange(uint64_t *base, size_t *n, uint64_t address)
{
    struct range *range;

    LOCKED(!(range = range_of(address)) || !range->memory
               ? INVALID
               : (*base = range->address, GIVEN(n, range->size)));
}
int cuMemGetAddressRange_v2(uint64_t *base, size_t *n, uint64_t address)
{
    return cuMemGetAddressRange(base, n, address);
}
int cuMemExportToShareableHandle(int *fd, uint64_t handle, int type, unsigned long long flags)
{
    (void)type, (void)flags;
    LOCKED(memory_of(handle) ? GIVEN(fd, duplicate(memories[handle - 1].fd)) : INVALID);
}

static int dmabuf(int *fd, uint64_t address)
{
    struct range *range = range_of(address);

    if (!range || !range->memory)
        return INVALID;
    *fd = duplicate(memories[range->memory - 1].fd);
    if (*fd < 0 || *fd >= MOST)
        return UNKNOWN;
    files[*fd].kind = DMABUF;
    files[*fd].fd = duplicate(*fd);
    files[*fd].offset = (int64_t)(address - range->address);
    return 0;
}

int cuMemGetHandleForAddressRange(void *fd, uint64_t address, size_t n, int type,
                                  unsigned long long flags)
{
    (void)n, (void)type, (void)flags;
    LOCKED(dmabuf(fd, address));
}

static int move(uint64_t device, void *ordinary, size_t n, int inward)
{
    struct range *range = range_of(device);
    off_t at;

    if (!range || !range->memory || n > range->size - (device - range->address))
        return INVALID;
    at = (off_t)(device - range->address);
    if (inward)
        return pwrite(memories[range->memory - 1].fd, ordinary, n, at) == (ssize_t)n ? 0 : UNKNOWN;
    return pread(memories[range->memory - 1].fd, ordinary, n, at) == (ssize_t)n ? 0 : UNKNOWN;
}

int cuMemcpyHtoD(uint64_t to, const void *from, size_t n)
{
    LOCKED(move(to, (void *)from, n, 1));
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n)
{
    return cuMemcpyHtoD(to, from, n);
}
int cuMemcpyDtoH(void *to, uint64_t from, size_t n)
{
    LOCKED(move(from, to, n, 0));
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n)
{
    return cuMemcpyDtoH(to, from, n);
}
int cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t n, uint64_t stream)
{
    (void)stream;
    LOCKED(move(to, (void *)from, n, 1));
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, uint64_t stream)
{
    return cuMemcpyHtoDAsync(to, from, n, stream);
}
int cuMemcpyDtoHAsync(void *to, uint64_t from, size_t n, uint64_t stream)
{
    (void)stream;
    LOCKED(move(from, to, n, 0));
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, uint64_t stream)
{
    return cuMemcpyDtoHAsync(to, from, n, stream);
}

static int fill(uint64_t to, unsigned char value, size_t n)
{
    void *values = malloc(n);
    int code;

    memset(values, value, n);
    code = move(to, values, n, 1);
    free(values);
    return code;
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, uint64_t stream)
{
    (void)stream;
    LOCKED(fill(to, value, n));
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t n, uint64_t stream)
{
    (void)stream;
    LOCKED(fill(to, (unsigned char)value, 4 * n)); /* tests fill with one byte again and again */
}

static int host_new(void **p, size_t n)
{
    int i = FREE(host, .size);

    *p = map_really(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    host[i].address = (uintptr_t)*p;
    host[i].size = n;
    return *p == MAP_FAILED ? NO_MEMORY : 0;
}

int cuMemHostAlloc(void **p, size_t n, unsigned flags)
{
    (void)flags;
    LOCKED(host_new(p, n));
}

static int host_free(void *p)
{
    for (int i = 0; i < MOST; i++)
        if (host[i].size && host[i].address == (uintptr_t)p) {
            munmap(p, host[i].size);
            host[i].size = 0;
            return 0;
        }
    return INVALID;
}

int cuMemFreeHost(void *p)
{
    LOCKED(host_free(p));
}
int cuMemHostRegister(void *p, size_t n, unsigned flags)
{
    int i;

    (void)flags;
    LOCKED((i = FREE(registered, .size), registered[i].address = (uintptr_t)p,
            registered[i].size = n, 0));
}
int cuMemHostRegister_v2(void *p, size_t n, unsigned flags)
{
    return cuMemHostRegister(p, n, flags);
}

static int unregister(void *p)
{
    for (int i = 0; i < MOST; i++)
        if (registered[i].size && registered[i].address == (uintptr_t)p)
            return GIVEN(&registered[i].size, 0);
    return INVALID;
}

int cuMemHostUnregister(void *p)
{
    LOCKED(unregister(p));
}
int cuMemHostGetDevicePointer(uint64_t *there, void *p, unsigned flags)
{
    (void)flags;
    LOCKED(GIVEN(there, (uintptr_t)p));
}
int cuMemHostGetDevicePointer_v2(uint64_t *there, void *p, unsigned flags)
{
    return cuMemHostGetDevicePointer(there, p, flags);
}

static int memory_type(unsigned *type, uint64_t address)
{
    for (int i = 0; i < MOST; i++)
        if (address - host[i].address < host[i].size ||
            address - registered[i].address < registered[i].size)
            return GIVEN(type, 1);
    return range_of(address) ? GIVEN(type, 2) : INVALID;
}

int cuPointerGetAttribute(void *value, int which, uint64_t address)
{
    LOCKED(which == 2 ? memory_type(value, address) : INVALID);
}
int cuPointerSetAttribute(const void *value, int which, uint64_t address)
{
    (void)value, (void)which;
    LOCKED(range_of(address) ? 0 : INVALID);
}
int cuFlushGPUDirectRDMAWrites(int target, int scope)
{
    (void)target, (void)scope;
    LOCKED(0);
}

static int token_new(int which, uint64_t *token)
{
    int i = FREE(tokens[which], );

    *token = tokens[which][i] = 0x1000 + (uint64_t)next_handle++;
    return 0;
}

static uint64_t *token_of(int which, uint64_t token)
{
    for (int i = 0; i < MOST; i++)
        if (token && tokens[which][i] == token)
            return &tokens[which][i];
    return NULL;
}

static int token_free(int which, uint64_t token)
{
    uint64_t *found = token_of(which, token);

    return found ? GIVEN(found, 0) : DESTROYED;
}

#define STREAM_IS(stream) ((stream) < 3 || token_of(0, stream) ? 0 : DESTROYED)
#define EVENT_IS(event) (token_of(1, event) ? 0 : DESTROYED)

int cuStreamCreate(uint64_t *stream, unsigned flags)
{
    (void)flags;
    LOCKED(token_new(0, stream));
}
int cuStreamDestroy(uint64_t stream)
{
    LOCKED(token_free(0, stream));
}
int cuStreamDestroy_v2(uint64_t stream)
{
    return cuStreamDestroy(stream);
}
int cuStreamQuery(uint64_t stream)
{
    LOCKED(STREAM_IS(stream));
}
int cuStreamSynchronize(uint64_t stream)
{
    LOCKED(STREAM_IS(stream));
}
int cuStreamIsCapturing(uint64_t stream, int *status)
{
    LOCKED((*status = 0, STREAM_IS(stream)));
}
int cuStreamWaitEvent(uint64_t stream, uint64_t event, unsigned flags)
{
    (void)flags;
    LOCKED(STREAM_IS(stream) ? DESTROYED : EVENT_IS(event));
}
int cuStreamWaitValue32(uint64_t stream, uint64_t address, uint32_t value, unsigned flags)
{
    (void)address, (void)value, (void)flags;
    LOCKED(STREAM_IS(stream));
}
int cuStreamWaitValue32_v2(uint64_t stream, uint64_t address, uint32_t value, unsigned flags)
{
    return cuStreamWaitValue32(stream, address, value, flags);
}
int cuEventCreate(uint64_t *event, unsigned flags)
{
    (void)flags;
    LOCKED(token_new(1, event));
}
int cuEventDestroy(uint64_t event)
{
    LOCKED(token_free(1, event));
}
int cuEventDestroy_v2(uint64_t event)
{
    return cuEventDestroy(event);
}
int cuEventRecord(uint64_t event, uint64_t stream)
{
    LOCKED(EVENT_IS(event) ? DESTROYED : STREAM_IS(stream));
}
int cuEventQuery(uint64_t event)
{
    LOCKED(EVENT_IS(event));
}
int cuEventElapsedTime(float *ms, uint64_t from, uint64_t to)
{
    LOCKED((*ms = 1, EVENT_IS(from) ? DESTROYED : EVENT_IS(to)));
}
int cuEventElapsedTime_v2(float *ms, uint64_t from, uint64_t to)
{
    return cuEventElapsedTime(ms, from, to);
}

int cuModuleLoadData(uint64_t *module, const void *image)
{
    (void)image;
    LOCKED(token_new(2, module));
}
int cuModuleUnload(uint64_t module)
{
    LOCKED(token_free(2, module));
}
int cuModuleGetFunction(uint64_t *function, uint64_t module, const char *name)
{
    (void)name;
    LOCKED(token_of(2, module) ? GIVEN(function, module + 1) : INVALID);
}
int cuFuncLoad(uint64_t function)
{
    (void)function;
    LOCKED(0);
}
int cuLaunchKernel(uint64_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, uint64_t stream, void **parameters,
                   void **extra)
{
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared;
    (void)parameters, (void)extra;
    LOCKED(STREAM_IS(stream));
}
int cuLaunchCooperativeKernel(uint64_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, uint64_t stream,
                              void **parameters)
{
    return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, NULL);
}

int cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t n, uint64_t stream)
{
    void *values = malloc(n);
    int code;

    (void)stream;
    CUDA_FAILS(__func__);
    pthread_mutex_lock(&lock);
    code = move(from, values, n, 0);
    code = code ? code : move(to, values, n, 1);
    pthread_mutex_unlock(&lock);
    free(values);
    return code;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, uint64_t stream)
{
    return cuMemcpyDtoDAsync(to, from, n, stream);
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found)
{
    (void)version, (void)flags;
    CUDA_FAILS("cuGetProcAddress");
    *function =
        !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : dlsym(RTLD_DEFAULT, name);
    if (found)
        *found = *function ? 0 : 1;
    return *function ? 0 : 500;
}
