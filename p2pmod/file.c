// SPDX-License-Identifier: GPL-2.0 OR MIT
/* /dev/p2pmod: open files, ioctls, mappings. */
#include <linux/capability.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/nospec.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "internal.h"

/* ---- an anonymous inode for each open file: its i_mapping is the file's own ---- */

static int p2pmod_init_fs_context(struct fs_context *context)
{
	return init_pseudo(context, 0x70327070) ? 0 : -ENOMEM;
}

static struct file_system_type p2pmod_fs = {
	.name = "p2pmod",
	.owner = THIS_MODULE,
	.init_fs_context = p2pmod_init_fs_context,
	.kill_sb = kill_anon_super,
};

static struct vfsmount *p2pmod_mount;
static int p2pmod_mount_count;

/* ---- files ---- */

static void file_release(struct kref *ref)
{
	struct p2pmod_file *file = container_of(ref, struct p2pmod_file, ref);

	iput(file->inode);
	simple_release_fs(&p2pmod_mount, &p2pmod_mount_count);
	kfree(file);
}

void p2pmod_file_put(struct p2pmod_file *file)
{
	kref_put(&file->ref, file_release);
}

static int p2pmod_open(struct inode *inode, struct file *filp)
{
	struct p2pmod_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	int err;

	if (!file)
		return -ENOMEM;
	err = simple_pin_fs(&p2pmod_fs, &p2pmod_mount, &p2pmod_mount_count);
	if (err)
		goto undo_file;
	file->inode = alloc_anon_inode(p2pmod_mount->mnt_sb);
	err = PTR_ERR_OR_ZERO(file->inode);
	if (err)
		goto undo_mount;
	kref_init(&file->ref);
	init_rwsem(&file->lock);
	xa_init_flags(&file->buffers, XA_FLAGS_ALLOC1);
	file->next_handle = 1;
	filp->private_data = file;
	filp->f_mapping = file->inode->i_mapping; /* so that revoking finds this file's mappings */
	return nonseekable_open(inode, filp);

undo_mount:
	simple_release_fs(&p2pmod_mount, &p2pmod_mount_count);
undo_file:
	kfree(file);
	return err;
}

static int p2pmod_release(struct inode *inode, struct file *filp)
{
	struct p2pmod_file *file = filp->private_data;

	/* mappings hold the file open, so there is none left */
	p2pmod_buffers_drain(file);
	p2pmod_file_put(file);
	return 0;
}

/* ---- ioctls ---- */

static bool show_bus_addresses;
module_param(show_bus_addresses, bool, 0644);
MODULE_PARM_DESC(show_bus_addresses, "Tell bus addresses to every owner, not only CAP_SYS_RAWIO");

static bool may_see_bus_addresses(void)
{
	return show_bus_addresses || capable(CAP_SYS_RAWIO);
}

union command {
	u32 size;
	struct p2pmod_query query;
	struct p2pmod_pin pin;
	struct p2pmod_pages pages;
	struct p2pmod_unpin unpin;
	struct p2pmod_status status;
};

static_assert(sizeof(struct p2pmod_query) == 56);
static_assert(sizeof(struct p2pmod_pin) == 64);
static_assert(sizeof(struct p2pmod_pages) == 32);
static_assert(sizeof(struct p2pmod_unpin) == 8);
static_assert(sizeof(struct p2pmod_status) == 64);

static int do_query(struct p2pmod_file *file, union command *c)
{
	struct p2pmod_query *q = &c->query;

	q->abi_version = P2PMOD_ABI_VERSION;
	q->features = (NV_HAVE_PERSISTENT ? P2PMOD_FEATURE_PERSISTENT : 0) |
		      (may_see_bus_addresses() ? P2PMOD_FEATURE_BUS_ADDRESSES : 0);
	q->max_bytes_total = p2pmod_max_bytes_total;
	q->max_bytes_per_user = p2pmod_max_bytes_per_user;
	q->max_pins_per_user = p2pmod_max_pins_per_user;
	return 0;
}

static int do_pin(struct p2pmod_file *file, union command *c)
{
	return p2pmod_buffer_pin(file, &c->pin);
}

static int do_pages(struct p2pmod_file *file, union command *c)
{
	struct p2pmod_pages *p = &c->pages;
	struct p2pmod_buffer *buffer;
	int err = -EINVAL;

	if (!may_see_bus_addresses())
		return -EPERM;
	/* a reference and no lock: the copy below may fault, and a fault takes the lock */
	buffer = p2pmod_buffer_get(file, p->handle);
	if (!buffer)
		return -ENOENT;
	if (READ_ONCE(buffer->revoked)) {
		err = -ENODEV;
	} else if (p->first <= buffer->pages) {
		p->count = min_t(u64, p->count, buffer->pages - p->first);
		err = copy_to_user(u64_to_user_ptr(p->addresses), buffer->bus + p->first,
				   p->count * sizeof(u64)) ? -EFAULT : 0;
	}
	p2pmod_put(buffer);
	return err;
}

static int do_unpin(struct p2pmod_file *file, union command *c)
{
	return p2pmod_buffer_unpin(file, c->unpin.handle);
}

static int do_status(struct p2pmod_file *file, union command *c)
{
	struct p2pmod_status *s = &c->status;
	struct p2pmod_buffer *buffer;

	down_read(&file->lock);
	buffer = p2pmod_buffer_find(file, s->handle);
	if (buffer) {
		s->state = p2pmod_buffer_state(buffer);
		s->address = buffer->address;
		s->length = buffer->length;
	}
	up_read(&file->lock);
	if (s->handle && !buffer)
		return -ENOENT;
	s->total_bytes = atomic64_read(&p2pmod_count.bytes);
	s->total_pins = atomic64_read(&p2pmod_count.pins);
	return 0;
}

/* Each command with the last field that is read, and the last of its first version. */
static const struct {
	u32 inputs, smallest, size; /* bytes */
	int (*run)(struct p2pmod_file *file, union command *command);
} commands[] = {
#define COMMAND(cmd, type, in, last, fn) \
	[_IOC_NR(cmd) - _IOC_NR(P2PMOD_QUERY)] = { offsetofend(struct type, in), \
		offsetofend(struct type, last), sizeof(struct type), fn }
	COMMAND(P2PMOD_QUERY, p2pmod_query, size, max_bytes_total, do_query),
	COMMAND(P2PMOD_PIN, p2pmod_pin, length, page_count, do_pin),
	COMMAND(P2PMOD_PAGES, p2pmod_pages, addresses, addresses, do_pages),
	COMMAND(P2PMOD_UNPIN, p2pmod_unpin, handle, handle, do_unpin),
	COMMAND(P2PMOD_STATUS, p2pmod_status, handle, total_pins, do_status),
};

static long p2pmod_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct p2pmod_file *file = filp->private_data;
	void __user *user = (void __user *)arg;
	union command command = {};
	u32 size, i = _IOC_NR(cmd) - _IOC_NR(P2PMOD_QUERY);
	int err;

	/* the size is the struct's to say; direction and size in the number are not looked at */
	if (_IOC_TYPE(cmd) != P2PMOD_MAGIC || i >= ARRAY_SIZE(commands))
		return -ENOTTY;
	i = array_index_nospec(i, ARRAY_SIZE(commands));
	if (get_user(size, (u32 __user *)user))
		return -EFAULT;
	if (size < commands[i].smallest)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	err = copy_struct_from_user(&command, commands[i].size, user, size);
	if (err)
		return err;
	/* flags that nobody knows yet, what is reserved, what is to be filled in */
	if (memchr_inv((u8 *)&command + commands[i].inputs, 0, commands[i].size - commands[i].inputs))
		return -EINVAL;
	command.size = size; /* user space may have changed it meanwhile */
	err = commands[i].run(file, &command);
	if (err)
		return err;
	if (copy_to_user(user, &command, min(size, commands[i].size))) {
		if (commands[i].run == do_pin) /* nobody would know the handle */
			p2pmod_buffer_unpin(file, command.pin.handle);
		return -EFAULT;
	}
	return 0;
}

/* What is pinned could not be mapped: offsets have more bits than such a caller's mmap takes. */
static long p2pmod_ioctl32(struct file *filp, unsigned int cmd, unsigned long arg)
{
	return -EOPNOTSUPP;
}

/* ---- mappings ---- */

static u32 handle_of(pgoff_t pgoff)
{
	return (u64)pgoff >> (HANDLE_SHIFT - PAGE_SHIFT);
}

static u64 offset_of(pgoff_t pgoff)
{
	return ((u64)pgoff << PAGE_SHIFT) & ((1ULL << HANDLE_SHIFT) - 1);
}

/* A fault fills what lies around it, so far: most programs touch all they map. One table holds it. */
#define FILL min_t(unsigned long, SZ_2M, PMD_SIZE)

/* From an offset on: bytes that follow each other on the bus, and have one type. */
static u64 stretch(const struct p2pmod_buffer *buffer, u64 offset, u64 most)
{
	u64 i = offset >> GPU_PAGE_SHIFT, n = GPU_PAGE - (offset & (GPU_PAGE - 1));

	for (; buffer->in_one && n < most && buffer->bus[i + 1] == buffer->bus[i] + GPU_PAGE; i++)
		n += GPU_PAGE;
	return min(n, most);
}

/*
 * Pages are put in when they are touched, and only under the lock that revoking takes: what a
 * revocation empties stays empty. (A mapping filled in mmap() can be revoked before it is known to
 * the address space, and then keeps its pages.)
 */
static vm_fault_t p2pmod_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct p2pmod_file *file = vma->vm_file->private_data;
	unsigned long at = vmf->address & ~(FILL - 1), end = min(at + FILL, vma->vm_end), n;
	vm_fault_t result = VM_FAULT_SIGBUS;
	struct p2pmod_buffer *buffer;
	u64 offset, bus;

	if (compat_marked(vmf))
		return VM_FAULT_SIGBUS;
	at = max(at, vma->vm_start);
	offset = offset_of(vma->vm_pgoff) + (at - vma->vm_start); /* all of a mapping is in the buffer */
	down_read(&file->lock);
	buffer = p2pmod_buffer_find(file, handle_of(vma->vm_pgoff));
	if (!buffer || buffer->revoked)
		goto out;
	for (; at < end; at += n, offset += n) {
		bus = buffer->bus[offset >> GPU_PAGE_SHIFT] + (offset & (GPU_PAGE - 1));
		result = vmf_insert_pfn_prot(vma, at, bus >> PAGE_SHIFT, vma->vm_page_prot);
		if (result != VM_FAULT_NOPAGE)
			break;
		n = PAGE_SIZE;
		if (!READ_ONCE(buffer->write_combined))
			continue;
		n = compat_insert_following(vmf, at, stretch(buffer, offset, end - at));
		if (!n) { /* another's reservation has won */
			WRITE_ONCE(buffer->write_combined, false);
			n = PAGE_SIZE;
		}
	}
out:
	up_read(&file->lock);
	return result;
}

/* How many mappings a handle has: it is not given to another buffer before they are gone. */
static void count_mapping(struct vm_area_struct *vma, int change)
{
	struct p2pmod_file *file = vma->vm_file->private_data;
	u32 handle = handle_of(vma->vm_pgoff);
	struct p2pmod_buffer *buffer;
	unsigned long left;

	down_write(&file->lock);
	buffer = xa_load(&file->buffers, handle);
	if (!xa_is_value(buffer)) {
		buffer->maps += change;
	} else { /* unpinned. The entry is there: no allocation, that could fail */
		left = xa_to_value(buffer) + change;
		if (left)
			xa_store(&file->buffers, handle, xa_mk_value(left), GFP_KERNEL);
		else
			xa_erase(&file->buffers, handle);
	}
	up_write(&file->lock);
}

static void p2pmod_vm_open(struct vm_area_struct *vma)
{
	count_mapping(vma, 1);
}

static void p2pmod_vm_close(struct vm_area_struct *vma)
{
	count_mapping(vma, -1);
}

static const struct vm_operations_struct p2pmod_vm_ops = {
	.open = p2pmod_vm_open,
	.close = p2pmod_vm_close,
	.fault = p2pmod_fault,
};

static int p2pmod_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct p2pmod_file *file = filp->private_data;
	u64 offset = offset_of(vma->vm_pgoff), length = vma->vm_end - vma->vm_start;
	struct p2pmod_buffer *buffer;
	int err;

	/*
	 * A private writable mapping of such pages is a BUG in the kernel's copy-on-write. VM_MAYSHARE
	 * is MAP_SHARED; VM_SHARED is missing where the descriptor is not open for writing.
	 */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EACCES;

	down_write(&file->lock);
	buffer = p2pmod_buffer_find(file, handle_of(vma->vm_pgoff));
	err = !buffer ? -ENOENT :
	      buffer->revoked ? -ENODEV :
	      offset >= buffer->span || length > buffer->span - offset ? -EINVAL :
	      p2pmod_buffer_reserve(buffer);
	if (err)
		goto out;
	if (buffer->flags & P2PMOD_PIN_UNCACHED)
		vma->vm_page_prot = compat_uncached(vma->vm_page_prot);
	else if (!buffer->cacheable)
		vma->vm_page_prot = compat_writecombine(vma->vm_page_prot);
	/* else as it is, cached: beside the cached mappings of others no other type is coherent */
	vma->vm_page_prot = compat_decrypted(vma->vm_page_prot);
	vm_flags_init(vma, (vma->vm_flags & ~VM_MAYEXEC) | VM_PFNMAP | VM_IO | VM_DONTEXPAND |
		      VM_DONTDUMP | VM_DONTCOPY); /* the VMA is not attached yet: no lock is needed */
	vma->vm_ops = &p2pmod_vm_ops;
	buffer->maps++;
	atomic64_inc(&p2pmod_count.maps);
out:
	up_write(&file->lock);
	return err;
}

const struct file_operations p2pmod_fops = {
	.owner = THIS_MODULE,
	.open = p2pmod_open,
	.release = p2pmod_release,
	.unlocked_ioctl = p2pmod_ioctl,
	.compat_ioctl = p2pmod_ioctl32,
	.mmap = p2pmod_mmap,
};
