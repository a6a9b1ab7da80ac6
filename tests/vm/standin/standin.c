// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Stand-in for nvidia.ko: see standin.h. It behaves as the real driver does where a client can tell:
 * one lock is held around the free callbacks and taken by get_pages and put_pages; the page table
 * is poisoned and freed after the callback; put_pages of a table that is gone returns 0; persistent
 * pins have no callback and keep the memory.
 *
 * Built as "NVIDIA" (STANDIN_PROPRIETARY) it exports plain symbols, otherwise GPL-only ones.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#ifdef STANDIN_NV_P2P_OWN
#include "../../../p2pmod/nv-p2p-own.h"
#else
#include <nv-p2p.h>
#endif
#include "standin.h"

#ifdef STANDIN_PROPRIETARY
#define EXPORT(symbol) EXPORT_SYMBOL(symbol)
#define LICENSE "NVIDIA"
#else
#define EXPORT(symbol) EXPORT_SYMBOL_GPL(symbol)
#define LICENSE "Dual MIT/GPL"
#endif

#define PAGE64 ((u64)STANDIN_PAGE_SIZE)
#define FIRST_VA 0x500000000000ULL

/* Version 2.0 appends flags; the header this is built with may be older. */
struct table {
	u32 version;
	u32 page_size;
	struct nvidia_p2p_page **pages;
	u32 entries;
	u8 *gpu_uuid;
	u32 flags;
};

struct allocation {
	struct list_head entry;
	struct kref ref; /* the open file, and every persistent pin */
	pid_t owner;     /* thread group that allocated it */
	u64 va, length;
	bool freed;
	struct list_head pins;
	u32 page[]; /* which 64 KiB of the BAR each page is */
};

struct pin {
	struct list_head entry; /* in the allocation, unless it was revoked */
	struct allocation *allocation;
	struct table *table;
	void (*callback)(void *data);
	void *data;
	bool persistent;
};

/* stands for the resource manager's lock: over callbacks, get_pages and put_pages */
static DEFINE_MUTEX(rm_lock);
static LIST_HEAD(allocations);
static LIST_HEAD(tables); /* pins that clients hold */
static unsigned long *used;
static u64 bar, bar_pages, pages_free, next_va = FIRST_VA, next_page, pins_held;

static u32 version = 0x00010002;
module_param(version, uint, 0644);
static u64 fail_next, delay_pin, delay_callback, cacheable, early_callback;

/* ---- allocations ---- */

static void allocation_free(struct kref *ref)
{
	struct allocation *a = container_of(ref, struct allocation, ref);
	u64 i;

	for (i = 0; i < a->length / PAGE64; i++)
		clear_bit(a->page[i], used);
	pages_free += a->length / PAGE64;
	kvfree(a);
}

static void table_free(struct table *table)
{
	u32 i;

	for (i = 0; i < table->entries; i++) {
		memset(table->pages[i], 0x5a, sizeof(*table->pages[i]));
		kfree(table->pages[i]);
	}
	kvfree(table->pages);
	memset(table, 0x5a, sizeof(*table));
	kfree(table);
}

/* Take the pins back, with the lock held as the real driver does. */
static void revoke(struct allocation *a)
{
	struct pin *pin, *next;

	lockdep_assert_held(&rm_lock);
	list_for_each_entry_safe(pin, next, &a->pins, entry) {
		if (pin->persistent)
			continue;
		list_del(&pin->entry);
		if (delay_callback)
			msleep(delay_callback);
		pin->callback(pin->data);
		table_free(pin->table);
		pins_held--;
		kfree(pin);
	}
}

static void release(struct allocation *a)
{
	mutex_lock(&rm_lock);
	if (!a->freed) {
		a->freed = true;
		list_del(&a->entry);
		revoke(a);
	}
	mutex_unlock(&rm_lock);
}

/* A page that is free, in an order that leaves no two neighbours together. */
static u32 take_page(void)
{
	do {
		next_page = (next_page + 1021) % bar_pages;
		if (next_page == 0 || test_bit(next_page, used))
			next_page = (next_page + 1) % bar_pages;
	} while (test_bit(next_page, used));
	set_bit(next_page, used);
	return next_page;
}

static struct allocation *find(u64 va, u64 length)
{
	struct allocation *a;

	list_for_each_entry(a, &allocations, entry)
		if (a->owner == current->tgid && va >= a->va && length <= a->length &&
		    va - a->va <= a->length - length)
			return a;
	return NULL;
}

static struct allocation *allocate(struct standin_alloc *arg)
{
	u64 n = arg->length / PAGE64, i;
	struct allocation *a, *other;

	if (!n || arg->length % PAGE64 || arg->va % PAGE64 || arg->flags)
		return ERR_PTR(-EINVAL);
	if (n > bar_pages)
		return ERR_PTR(-ENOMEM);
	a = kvzalloc(struct_size(a, page, n), GFP_KERNEL);
	if (!a)
		return ERR_PTR(-ENOMEM);
	mutex_lock(&rm_lock);
	if (n > pages_free) {
		mutex_unlock(&rm_lock);
		kvfree(a);
		return ERR_PTR(-ENOMEM);
	}
	if (!arg->va) {
		arg->va = next_va;
		next_va += arg->length;
	}
	list_for_each_entry(other, &allocations, entry)
		if (other->owner == current->tgid && arg->va < other->va + other->length &&
		    other->va < arg->va + arg->length) {
			mutex_unlock(&rm_lock);
			kvfree(a);
			return ERR_PTR(-EEXIST);
		}
	kref_init(&a->ref);
	INIT_LIST_HEAD(&a->pins);
	a->owner = current->tgid;
	a->va = arg->va;
	a->length = arg->length;
	pages_free -= n;
	for (i = 0; i < n; i++)
		a->page[i] = take_page();
	list_add(&a->entry, &allocations);
	mutex_unlock(&rm_lock);
	return a;
}

/* ---- nv-p2p ---- */

static struct table *make_table(struct allocation *a, u64 va, u64 length)
{
	struct table *table = kzalloc(sizeof(*table), GFP_KERNEL);
	u32 n = length / PAGE64, i;

	if (!table)
		return NULL;
	table->pages = kvcalloc(n, sizeof(*table->pages), GFP_KERNEL);
	if (!table->pages)
		goto fail;
	for (i = 0; i < n; i++) {
		table->pages[i] = kzalloc(sizeof(**table->pages), GFP_KERNEL);
		if (!table->pages[i])
			goto fail;
		table->entries = i + 1;
		table->pages[i]->physical_address = bar + a->page[(va - a->va) / PAGE64 + i] * PAGE64;
	}
	table->version = version;
	table->page_size = 1; /* 64 KiB */
	if (version >= 0x00020000)
		table->flags = cacheable ? 1 : 0;
	else
		table->flags = 0x5a5a5a5a; /* not there in this version: must not be read */
	return table;
fail:
	while (table->pages && table->entries--)
		kfree(table->pages[table->entries]);
	kvfree(table->pages);
	kfree(table);
	return NULL;
}

static int pin_pages(u64 va, u64 length, struct nvidia_p2p_page_table **result,
		     void (*callback)(void *data), void *data, bool persistent)
{
	struct allocation *a;
	struct pin *pin;
	int err = -EINVAL;

	if (!length || va % PAGE64 || length % PAGE64 || (!persistent && !callback))
		return -EINVAL;
	mutex_lock(&rm_lock);
	if (fail_next) {
		err = -(int)fail_next;
		fail_next = 0;
		*result = (void *)0x5a5a5a5a5a5a5a5aULL; /* the real one leaves it dangling */
		goto out;
	}
	a = find(va, length);
	if (!a)
		goto out;
	err = -ENOMEM;
	pin = kzalloc(sizeof(*pin), GFP_KERNEL);
	if (!pin)
		goto out;
	pin->table = make_table(a, va, length);
	if (!pin->table) {
		kfree(pin);
		goto out;
	}
	pin->allocation = a;
	pin->callback = callback;
	pin->data = data;
	pin->persistent = persistent;
	list_add(&pin->entry, &a->pins);
	if (persistent)
		kref_get(&a->ref);
	pins_held++;
	*result = (struct nvidia_p2p_page_table *)pin->table;
	err = 0;
out:
	mutex_unlock(&rm_lock);
	return err;
}

static int revoke_thread(void *data)
{
	struct allocation *a = data;

	mutex_lock(&rm_lock);
	if (!a->freed)
		revoke(a);
	kref_put(&a->ref, allocation_free);
	mutex_unlock(&rm_lock);
	module_put(THIS_MODULE);
	return 0;
}

struct later {
	struct allocation *allocation;
	u64 ms;
};

static int later_thread(void *data)
{
	struct later *later = data;
	struct allocation *a = later->allocation;

	msleep(later->ms);
	kfree(later);
	return revoke_thread(a);
}

/* Revoke from another thread; the thread keeps the allocation and this module. */
static int revoke_later(struct allocation *a, u64 ms)
{
	struct later *later = kmalloc(sizeof(*later), GFP_KERNEL);
	struct task_struct *thread;

	if (!later)
		return -ENOMEM;
	later->allocation = a;
	later->ms = ms;
	kref_get(&a->ref);
	__module_get(THIS_MODULE);
	thread = kthread_create(later_thread, later, "standin-revoke");
	if (IS_ERR(thread)) {
		module_put(THIS_MODULE);
		mutex_lock(&rm_lock);
		kref_put(&a->ref, allocation_free);
		mutex_unlock(&rm_lock);
		kfree(later);
		return PTR_ERR(thread);
	}
	wake_up_process(thread);
	return 0;
}

int nvidia_p2p_get_pages(uint64_t token, uint32_t va_space, uint64_t va, uint64_t length,
			 struct nvidia_p2p_page_table **table, void (*callback)(void *data),
			 void *data)
{
	struct allocation *a;
	int err = pin_pages(va, length, table, callback, data, false);

	if (err)
		return err;
	if (early_callback) {
		/* the callback waits for us: it must come from elsewhere, and before we return */
		early_callback = 0;
		mutex_lock(&rm_lock);
		a = find(va, length);
		mutex_unlock(&rm_lock);
		if (a)
			revoke_later(a, 0);
		msleep(20);
	}
	if (delay_pin)
		msleep(delay_pin);
	return 0;
}
EXPORT(nvidia_p2p_get_pages);

static int unpin_pages(u64 va, struct nvidia_p2p_page_table *table, bool persistent)
{
	struct allocation *a, *freed = NULL;
	struct pin *pin;
	int found = 0;

	mutex_lock(&rm_lock);
	list_for_each_entry(a, &allocations, entry)
		list_for_each_entry(pin, &a->pins, entry)
			if (pin->table == (struct table *)table && pin->persistent == persistent) {
				found = 1;
				goto out;
			}
	list_for_each_entry(pin, &tables, entry)
		if (pin->table == (struct table *)table) {
			found = 1;
			break;
		}
out:
	if (found) {
		list_del(&pin->entry);
		table_free(pin->table);
		if (persistent)
			freed = pin->allocation;
		kfree(pin);
		pins_held--;
	}
	if (freed)
		kref_put(&freed->ref, allocation_free);
	mutex_unlock(&rm_lock);
	/* the real driver answers 0 also where the callback has taken the table already */
	return persistent && !found ? -EINVAL : 0;
}

int nvidia_p2p_put_pages(uint64_t token, uint32_t va_space, uint64_t va,
			 struct nvidia_p2p_page_table *table)
{
	return unpin_pages(va, table, false);
}
EXPORT(nvidia_p2p_put_pages);

int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *table)
{
	return 0; /* as in the real driver: it frees the table itself after the callback */
}
EXPORT(nvidia_p2p_free_page_table);

#ifdef NVIDIA_P2P_CAP_GET_PAGES_PERSISTENT_API
int nvidia_p2p_get_pages_persistent(uint64_t va, uint64_t length,
				    struct nvidia_p2p_page_table **table, uint32_t flags)
{
	if (flags & ~1u)
		return -EINVAL;
	return pin_pages(va, length, table, NULL, NULL, true);
}
EXPORT(nvidia_p2p_get_pages_persistent);

int nvidia_p2p_put_pages_persistent(uint64_t va, struct nvidia_p2p_page_table *table,
				    uint32_t flags)
{
	return unpin_pages(va, table, true);
}
EXPORT(nvidia_p2p_put_pages_persistent);
#endif

/* ---- /dev/nvidia-standin ---- */

static int standin_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL;
	return 0;
}

/* Persistent pins of a freed allocation hang on a list of their own until they are put. */
static void orphan(struct allocation *a)
{
	mutex_lock(&rm_lock);
	list_splice_init(&a->pins, &tables);
	kref_put(&a->ref, allocation_free);
	mutex_unlock(&rm_lock);
}

static int standin_release(struct inode *inode, struct file *file)
{
	struct allocation *a = file->private_data;

	if (a) {
		release(a);
		orphan(a);
	}
	return 0;
}

static int control(struct allocation *a, struct standin_control *c)
{
	switch (c->op) {
	case STANDIN_FAIL_NEXT:
		fail_next = c->value;
		return 0;
	case STANDIN_DELAY_PIN:
		delay_pin = c->value;
		return 0;
	case STANDIN_DELAY_CALLBACK:
		delay_callback = c->value;
		return 0;
	case STANDIN_VERSION:
		version = c->value;
		return 0;
	case STANDIN_CACHEABLE:
		cacheable = c->value;
		return 0;
	case STANDIN_EARLY_CALLBACK:
		early_callback = c->value;
		return 0;
	case STANDIN_REVOKE:
		if (!a)
			return -EINVAL;
		if (c->value)
			return revoke_later(a, c->value);
		mutex_lock(&rm_lock);
		if (!a->freed)
			revoke(a);
		mutex_unlock(&rm_lock);
		return 0;
	}
	return -EINVAL;
}

static long standin_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct allocation *a = file->private_data;
	struct standin_alloc alloc;
	struct standin_control c;
	struct standin_query query = { .size = sizeof(query) };

	switch (cmd) {
	case STANDIN_ALLOC:
		if (a)
			return -EBUSY;
		if (copy_from_user(&alloc, user, sizeof(alloc)))
			return -EFAULT;
		a = allocate(&alloc);
		if (IS_ERR(a))
			return PTR_ERR(a);
		file->private_data = a;
		return copy_to_user(user, &alloc, sizeof(alloc)) ? -EFAULT : 0;
	case STANDIN_FREE:
		if (!a)
			return -EINVAL;
		release(a);
		return 0;
	case STANDIN_CONTROL:
		if (copy_from_user(&c, user, sizeof(c)))
			return -EFAULT;
		return control(a, &c);
	case STANDIN_QUERY:
		mutex_lock(&rm_lock);
		query.version = version;
		query.total = bar_pages * PAGE64;
		query.free = pages_free * PAGE64;
		query.pins = pins_held;
		mutex_unlock(&rm_lock);
		return copy_to_user(user, &query, sizeof(query)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}

/* The GPU's own view: its page tables, not BAR1; the memory outlives it only while pinned. */
static vm_fault_t standin_fault(struct vm_fault *vmf)
{
	struct allocation *a = vmf->vma->vm_file->private_data;
	u64 offset = (u64)vmf->pgoff << PAGE_SHIFT;
	u64 address;

	if (!a || offset >= a->length)
		return VM_FAULT_SIGBUS;
	address = bar + a->page[offset / PAGE64] * PAGE64 + offset % PAGE64;
	return vmf_insert_pfn(vmf->vma, vmf->address, address >> PAGE_SHIFT);
}

static const struct vm_operations_struct standin_vm_ops = {
	.fault = standin_fault,
};

static int standin_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct allocation *a = file->private_data;
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT;

	if (!a || !(vma->vm_flags & VM_SHARED) || offset > a->length ||
	    vma->vm_end - vma->vm_start > a->length - offset)
		return -EINVAL;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_init(vma, vma->vm_flags | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTCOPY);
#else
	vma->vm_flags |= VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTCOPY;
#endif
	vma->vm_ops = &standin_vm_ops;
	return 0;
}

static const struct file_operations standin_fops = {
	.owner = THIS_MODULE,
	.open = standin_open,
	.release = standin_release,
	.unlocked_ioctl = standin_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = standin_mmap,
};

static struct miscdevice standin_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "nvidia-standin",
	.fops = &standin_fops,
	.mode = 0666,
};

static struct pci_dev *pci;

static int __init standin_init(void)
{
	int err;

	pci = pci_get_device(0x1af4, 0x1110, NULL); /* QEMU's ivshmem-plain */
	if (!pci)
		return -ENODEV;
	bar = pci_resource_start(pci, 2);
	bar_pages = pci_resource_len(pci, 2) / PAGE64;
	pages_free = bar_pages;
	used = kvcalloc(BITS_TO_LONGS(bar_pages), sizeof(long), GFP_KERNEL);
	err = used ? misc_register(&standin_device) : -ENOMEM;
	if (err) {
		kvfree(used);
		pci_dev_put(pci);
	}
	return err;
}

static void __exit standin_exit(void)
{
	misc_deregister(&standin_device);
	kvfree(used);
	pci_dev_put(pci);
}

module_init(standin_init);
module_exit(standin_exit);
MODULE_DESCRIPTION("Stand-in for the NVIDIA driver in gpudirect's lab");
MODULE_LICENSE(LICENSE);
