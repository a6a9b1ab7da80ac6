// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Stand-in for nvidia.ko (standin.h): /dev/nvidia-standin, and loading. Below it stands a model of
 * the resource manager (rm.c), on which nv-p2p rests: the driver's own nv-p2p.c (glue.c), or ours
 * (layer.c).
 *
 * Built as "NVIDIA" (STANDIN_PROPRIETARY) it exports plain symbols, otherwise GPL-only ones.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "rm.h"

/* An open file: one allocation. */
static int standin_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL;
	return 0;
}


static struct rm_memory *memory_of(struct file *file)
{
	return (void *)((unsigned long)file->private_data & ~1ul);
}

static void release(struct file *file)
{
	unsigned long there = (unsigned long)file->private_data;

	if (there && !(there & 1)) {
		file->private_data = (void *)(there | 1);
		rm_release((void *)there);
	}
}

static int standin_release(struct inode *inode, struct file *file)
{
	if (!file->private_data)
		return 0;
	release(file);
	rm_forget(memory_of(file));
	return 0;
}

static long allocate(struct file *file, struct standin_alloc __user *user)
{
	struct standin_alloc alloc;
	struct rm_memory *m;

	if (file->private_data)
		return -EBUSY;
	if (copy_from_user(&alloc, user, sizeof(alloc)))
		return -EFAULT;
	m = alloc.flags == STANDIN_NEIGHBOUR ? rm_join(alloc.va) : rm_allocate(&alloc);
	if (IS_ERR(m))
		return PTR_ERR(m);
	file->private_data = m;
	return copy_to_user(user, &alloc, sizeof(alloc)) ? -EFAULT : 0;
}

static long standin_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct standin_query query = { .size = sizeof(query) };
	struct standin_control c;

	switch (cmd) {
	case STANDIN_ALLOC:
		return allocate(file, user);
	case STANDIN_FREE:
		if (!file->private_data)
			return -EINVAL;
		release(file);
		return 0;
	case STANDIN_CONTROL:
		if (copy_from_user(&c, user, sizeof(c)))
			return -EFAULT;
		return rm_control(memory_of(file), &c);
	case STANDIN_QUERY:
		rm_query(&query);
		return copy_to_user(user, &query, sizeof(query)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}

/* The GPU's own view: its page tables, not BAR1; the memory outlives it only while pinned. */
static vm_fault_t standin_fault(struct vm_fault *vmf)
{
	struct rm_memory *m = memory_of(vmf->vma->vm_file);
	u64 bus;

	if (!m || rm_bus(m, (u64)vmf->pgoff << PAGE_SHIFT, &bus))
		return VM_FAULT_SIGBUS;
	return vmf_insert_pfn(vmf->vma, vmf->address, bus >> PAGE_SHIFT);
}

static const struct vm_operations_struct standin_vm_ops = {
	.fault = standin_fault,
};

static int standin_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct rm_memory *m = memory_of(file);
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT;

	if (!m || !(vma->vm_flags & VM_SHARED) || offset > rm_length(m) ||
	    vma->vm_end - vma->vm_start > rm_length(m) - offset)
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
	err = rm_init(pci_resource_start(pci, 2), pci_resource_len(pci, 2));
	if (err)
		goto undo_pci;
	err = layer_init();
	if (err)
		goto undo_rm;
	err = misc_register(&standin_device);
	if (err)
		goto undo_layer;
	return 0;
undo_layer:
	layer_exit();
undo_rm:
	rm_exit();
undo_pci:
	pci_dev_put(pci);
	return err;
}

static void __exit standin_exit(void)
{
	misc_deregister(&standin_device);
	layer_exit();
	rm_exit();
	pci_dev_put(pci);
}

module_init(standin_init);
module_exit(standin_exit);
MODULE_DESCRIPTION("Stand-in for the NVIDIA driver in gpudirect's lab");
#ifdef STANDIN_PROPRIETARY
MODULE_LICENSE("NVIDIA");
#else
MODULE_LICENSE("Dual MIT/GPL");
#endif
