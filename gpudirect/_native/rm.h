/* SPDX-License-Identifier: MIT */
/*
 * The NVIDIA driver's own user-space interface, as far as somebody needs it who was handed a descriptor of
 * device memory: what gpudirect/bridges/rm_client.py does, which tells where the calls are published.
 */
#ifndef GPUDIRECT_NATIVE_RM_H
#define GPUDIRECT_NATIVE_RM_H

#include <stddef.h>
#include <stdint.h>

#define GD_RM_CLASS_ROOT 0x41
#define GD_RM_CLASS_DEVICE 0x80
#define GD_RM_CLASS_SUBDEVICE 0x2080
#define GD_RM_EXPORTED_OBJECT_INFO 0x3d08
#define GD_RM_IMPORT_OBJECT 0x3d06
#define GD_RM_EXPORTED_TYPE 1

#define GD_RM_ALLOCATE 0x2b
struct gd_rm_allocate {
    uint32_t root, parent, created, kind;
    uint64_t params;
    uint32_t params_size, status;
};

#define GD_RM_CONTROL 0x2a
struct gd_rm_control {
    uint32_t client, object, command, flags;
    uint64_t params;
    uint32_t params_size, status;
};

#define GD_RM_MAP_MEMORY 0x4e
struct gd_rm_map_memory {
    uint32_t client, device, memory;
    uint64_t offset, length, linear;
    uint32_t status, flags;
    int32_t fd;
};

#define GD_RM_REGISTER_FILE 201
struct gd_rm_register_file {
    int32_t control_fd;
};

struct gd_rm_device_params {
    uint32_t device_id, client_share, target_client, target_device, flags;
    uint64_t va_space_size, va_start, va_limit;
    uint32_t va_mode;
};

struct gd_rm_subdevice_params {
    uint32_t subdevice_id;
};

struct gd_rm_object_info {
    int32_t fd;
    uint32_t device_instance, gpu_instance;
    uint16_t max_objects;
    uint8_t metadata[64];
};

struct gd_rm_import_object {
    int32_t fd;
    uint32_t type, device, parent, object;
};

/* A mapping, and the client whose it is: one each, which the driver frees with its files. */
struct gd_rm {
    int control, gpu; /* descriptors; -1: not open */
    uint32_t root, device, subdevice, memory, made;
    uint32_t status;   /* the driver's own word for what failed; 0: it was the system */
    const char *doing; /* what failed */
};

/*
 * Map whole pages of a block that a descriptor names. pci_address: of its GPU. The address, or -errno with
 * `status` and `doing`; nothing is open or mapped then.
 */
int64_t gd_rm_map(struct gd_rm *rm, int exported, const char *pci_address, uint64_t offset, size_t length,
                  int writable);
/* Let go of it, after gd_unmap(). */
void gd_rm_close(struct gd_rm *rm);

#endif
