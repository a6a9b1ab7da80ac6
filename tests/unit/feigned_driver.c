/* SPDX-License-Identifier: MIT */
/*
 * The NVIDIA driver's user-space interface, as far as one block is mapped through it: put in front of a
 * program by LD_PRELOAD. It is as strict as that driver about who made what, and a "block" is a memfd.
 * FEIGNED_FAIL=WHAT=STATUS refuses one step: root, info, device, subdevice, import, map.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../gpudirect/_native/rm.h"

#define ROOT 0xc1d00001u
#define INFORMATION "/proc/driver/nvidia/gpus/0000:c1:00.0/information"
#define CODE(number, type) _IOC(_IOC_READ | _IOC_WRITE, 'F', number, sizeof(type))
#define INVALID 0x1f

static int control = -1, gpus[8], gpu_count, block = -1, armed = -1;
static uint32_t device, subdevice, memory;
static uint64_t from, bytes;

static int is_gpu(int fd)
{
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i] == fd)
            return 1;
    return 0;
}

static uint32_t refused(const char *what)
{
    const char *fail = getenv("FEIGNED_FAIL");
    size_t n = strlen(what);

    return fail && !strncmp(fail, what, n) && fail[n] == '=' ? strtoul(fail + n + 1, NULL, 0) : 0;
}

int open(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    va_list rest;
    int mode, fd;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "open");
    if (!strcmp(path, INFORMATION)) {
        fd = memfd_create("information", MFD_CLOEXEC);
        dprintf(fd, "Model: \t\t Feigned\nDevice Minor: \t 3\n");
        lseek(fd, 0, SEEK_SET);
        return fd;
    }
    if (!strcmp(path, "/dev/nvidiactl"))
        return control = memfd_create("nvidiactl", MFD_CLOEXEC);
    if (!strcmp(path, "/dev/nvidia3"))
        return memfd_create("nvidia3", MFD_CLOEXEC);
    if (!strncmp(path, "/dev/nvidia", 11) || !strncmp(path, "/proc/driver/nvidia", 19)) {
        errno = ENOENT;
        return -1;
    }
    return next(path, flags, mode);
}

static void allocate(struct gd_rm_allocate *call)
{
    struct gd_rm_device_params *params = (struct gd_rm_device_params *)(uintptr_t)call->params;

    if (call->kind == GD_RM_CLASS_ROOT && !call->root && !call->parent && !call->params) {
        call->created = ROOT;
        call->status = refused("root");
    } else if (call->kind == GD_RM_CLASS_DEVICE && call->root == ROOT && call->parent == ROOT && gpu_count &&
               call->params_size == 56 && params->device_id == 5 && !device) {
        device = call->created;
        call->status = refused("device");
    } else if (call->kind == GD_RM_CLASS_SUBDEVICE && call->root == ROOT && call->parent == device &&
               call->params_size == 4 && call->created != device) {
        subdevice = call->created;
        call->status = refused("subdevice");
    } else {
        call->status = INVALID;
    }
}

static void command(struct gd_rm_control *call)
{
    void *params = (void *)(uintptr_t)call->params;
    struct gd_rm_object_info *info = params;
    struct gd_rm_import_object *import = params;

    if (call->client != ROOT || call->object != ROOT) {
        call->status = INVALID;
    } else if (call->command == GD_RM_EXPORTED_OBJECT_INFO && call->params_size == 80) {
        info->device_instance = 5;
        call->status = refused("info");
    } else if (call->command == GD_RM_IMPORT_OBJECT && call->params_size == 20 && device &&
               import->type == 1 && import->device == device && import->parent == device &&
               import->object != device && import->object != subdevice) {
        block = fcntl(import->fd, F_DUPFD_CLOEXEC, 0);
        memory = import->object;
        call->status = refused("import");
    } else {
        call->status = INVALID;
    }
}

static void map_memory(struct gd_rm_map_memory *call)
{
    if (call->client != ROOT || call->device != subdevice || call->memory != memory || !is_gpu(call->fd) ||
        (call->offset | call->length) & 4095) {
        call->status = INVALID;
        return;
    }
    from = call->offset;
    bytes = call->length;
    armed = call->fd;
    call->status = refused("map");
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    void *call;

    va_start(rest, request);
    call = va_arg(rest, void *);
    va_end(rest);
    if (request == CODE(GD_RM_REGISTER_FILE, struct gd_rm_register_file) && *(int *)call == control) {
        gpus[gpu_count++ % 8] = fd;
        return 0;
    }
    if (fd == control && request == CODE(GD_RM_ALLOCATE, struct gd_rm_allocate))
        return allocate(call), 0;
    if (fd == control && request == CODE(GD_RM_CONTROL, struct gd_rm_control))
        return command(call), 0;
    if (fd == control && request == CODE(GD_RM_MAP_MEMORY, struct gd_rm_map_memory))
        return map_memory(call), 0;
    errno = ENOTTY;
    return -1;
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "mmap");
    if (fd < 0 || fd != armed)
        return next(at, length, protection, flags, fd, offset);
    armed = -1; /* one mapping each */
    if (length != bytes || offset) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    at = next(at, length, protection, flags, block, (off_t)from);
    close(block); /* the next client imports its own */
    device = subdevice = memory = 0;
    gpu_count = 0;
    return at;
}
