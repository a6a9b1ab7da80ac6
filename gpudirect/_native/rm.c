/* SPDX-License-Identifier: MIT */
/* A client of the NVIDIA driver that maps one block it was handed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "native.h"
#include "rm.h"

#define CONTROL_NODE "/dev/nvidiactl"
#define FIRST_HANDLE 0x6d000001u

/* words of nvstatuscodes.h */
#define NO_RESOURCES 0x1a
#define NO_MEMORY 0x51

_Static_assert(sizeof(struct gd_rm_allocate) == 32 && sizeof(struct gd_rm_control) == 32 &&
                   sizeof(struct gd_rm_map_memory) == 56 && sizeof(struct gd_rm_device_params) == 56 &&
                   sizeof(struct gd_rm_object_info) == 80 && sizeof(struct gd_rm_import_object) == 20,
               "as the driver has them");

/* status: where the call leaves the driver's own word. 0 or -errno. */
static int issue(struct gd_rm *rm, int fd, unsigned number, void *call, size_t size,
                 const uint32_t *status, const char *doing)
{
    int code;

    rm->doing = doing;
    rm->status = 0;
    do
        code = ioctl(fd, _IOC(_IOC_READ | _IOC_WRITE, 'F', number, size), call) ? -errno : 0;
    while (code == -EINTR);
    if (code || !status || !*status)
        return code;
    rm->status = *status;
    return rm->status == NO_RESOURCES || rm->status == NO_MEMORY ? -ENOMEM : -EIO;
}

static int allocate(struct gd_rm *rm, uint32_t parent, uint32_t kind, void *params, size_t size,
                    uint32_t *made, const char *doing)
{
    struct gd_rm_allocate call = {
        .root = rm->root,
        .parent = parent,
        .created = rm->root ? rm->made++ : 0,
        .kind = kind,
        .params = (uintptr_t)params,
        .params_size = (uint32_t)size,
    };
    int code = issue(rm, rm->control, GD_RM_ALLOCATE, &call, sizeof(call), &call.status, doing);

    *made = call.created;
    return code;
}

static int control(struct gd_rm *rm, uint32_t command, void *params, size_t size, const char *doing)
{
    struct gd_rm_control call = {
        .client = rm->root,
        .object = rm->root,
        .command = command,
        .params = (uintptr_t)params,
        .params_size = (uint32_t)size,
    };

    return issue(rm, rm->control, GD_RM_CONTROL, &call, sizeof(call), &call.status, doing);
}

/* N of the /dev/nvidiaN that belongs to a PCI address, as the driver's /proc tells. */
static int minor_of(struct gd_rm *rm, const char *pci_address)
{
    char path[128] = "/proc/driver/nvidia/gpus/", text[4096], *found;
    size_t n = strlen(path);
    ssize_t got;
    int fd;

    rm->doing = "looking for the GPU in /proc/driver/nvidia/gpus (in a container, pass the driver's /proc "
                "and /dev files through)";
    rm->status = 0;
    for (const char *at = pci_address; *at; at++) {
        char c = *at >= 'A' && *at <= 'F' ? (char)(*at | 32) : *at;

        if (!strchr("0123456789abcdef:.", c) || n > 64)
            return -EPROTO;
        path[n++] = c;
    }
    strcpy(path + n, "/information");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    got = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    found = strstr(text, "Device Minor:");
    return found ? (int)(strtoul(found + strlen("Device Minor:"), NULL, 10) & 0xffff) : -ENOENT;
}

/* A fresh /dev/nvidiaN, tied to the client's control file. */
static int open_gpu(struct gd_rm *rm, int minor)
{
    struct gd_rm_register_file call = {.control_fd = rm->control};
    char path[32];
    int fd, code;

    snprintf(path, sizeof(path), "/dev/nvidia%d", minor);
    rm->doing = "opening the GPU's /dev/nvidia file";
    rm->status = 0;
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    code = issue(rm, fd, GD_RM_REGISTER_FILE, &call, sizeof(call), NULL, "tying the GPU's file to " CONTROL_NODE);
    if (code)
        close(fd);
    return code ? code : fd;
}

static int open_client(struct gd_rm *rm, int exported, int minor)
{
    struct gd_rm_device_params device = {0};
    struct gd_rm_subdevice_params subdevice = {0};
    struct gd_rm_object_info info = {.fd = exported};
    struct gd_rm_import_object import = {.fd = exported, .type = GD_RM_EXPORTED_TYPE};
    int code;

    rm->doing = "opening " CONTROL_NODE;
    rm->control = open(CONTROL_NODE, O_RDWR | O_CLOEXEC);
    if (rm->control < 0)
        return -errno;
    if ((code = allocate(rm, 0, GD_RM_CLASS_ROOT, NULL, 0, &rm->root, "making a client")) ||
        (code = control(rm, GD_RM_EXPORTED_OBJECT_INFO, &info, sizeof(info),
                        "asking about an exported block")))
        return code;
    rm->gpu = open_gpu(rm, minor);
    if (rm->gpu < 0)
        return rm->gpu;
    device.device_id = info.device_instance;
    if ((code = allocate(rm, rm->root, GD_RM_CLASS_DEVICE, &device, sizeof(device), &rm->device,
                         "opening the GPU")) ||
        (code = allocate(rm, rm->device, GD_RM_CLASS_SUBDEVICE, &subdevice, sizeof(subdevice),
                         &rm->subdevice, "opening the GPU's subdevice")))
        return code;
    import.device = import.parent = rm->device;
    import.object = rm->made++;
    code = control(rm, GD_RM_IMPORT_OBJECT, &import, sizeof(import), "importing an exported block");
    rm->memory = import.object;
    return code;
}

static int64_t map_block(struct gd_rm *rm, int minor, uint64_t offset, size_t length, int writable)
{
    struct gd_rm_map_memory call = {
        .client = rm->root,
        .device = rm->subdevice,
        .memory = rm->memory,
        .offset = offset,
        .length = length,
    };
    int64_t base;
    int fd = open_gpu(rm, minor);

    if (fd < 0)
        return fd;
    call.fd = fd;
    base = issue(rm, rm->control, GD_RM_MAP_MEMORY, &call, sizeof(call), &call.status,
                 "mapping through BAR1");
    if (!base) {
        rm->doing = "mapping the GPU's file";
        base = gd_map(0, length, 1, writable, fd, 0, 0);
    }
    close(fd); /* the mapping itself keeps the file open */
    return base;
}

int64_t gd_rm_map(struct gd_rm *rm, int exported, const char *pci_address, uint64_t offset, size_t length,
                  int writable)
{
    int64_t base;
    int minor;

    memset(rm, 0, sizeof(*rm));
    rm->control = rm->gpu = -1;
    rm->made = FIRST_HANDLE;
    minor = minor_of(rm, pci_address);
    if (minor < 0)
        return minor;
    base = open_client(rm, exported, minor);
    if (!base)
        base = map_block(rm, minor, offset, length, writable);
    if (base < 0)
        gd_rm_close(rm);
    return base;
}

void gd_rm_close(struct gd_rm *rm)
{
    if (rm->gpu >= 0)
        close(rm->gpu);
    if (rm->control >= 0)
        close(rm->control); /* with it go the client and all its objects */
    rm->gpu = rm->control = -1;
}
