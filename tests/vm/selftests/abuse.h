/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What a process can do to a mapping, and have the kernel do with it, besides touching it; and files that
 * are passed on. Nothing here is expected to succeed: the kernel must survive it, and stay silent.
 */
#ifndef ABUSE_H
#define ABUSE_H

#include "tap.h"

#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "gpu.h"

/* ---- files that are passed on ---- */

static inline int send_file(int socket, int fd)
{
	char space[CMSG_SPACE(sizeof(int))] = "", byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = space,
				  .msg_controllen = sizeof(space) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(socket, &message, MSG_DONTWAIT) == 1 ? 0 : -1;
}

static inline int receive_file(int socket)
{
	char space[CMSG_SPACE(sizeof(int))] = "", byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = space,
				  .msg_controllen = sizeof(space) };
	int fd = -1;

	if (recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* ---- direct input and output ---- */

static inline int direct_io(void *at, int store)
{
	int fd, r;

	mknod("/tmp/ram", S_IFBLK | 0600, makedev(1, 0)); /* a disk of memory, where the kernel has one */
	fd = open("/tmp/ram", O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		return -1;
	r = store ? pwrite(fd, at, CPU_PAGE, 0) : pread(fd, at, CPU_PAGE, 0);
	close(fd);
	return r;
}

/* ---- io_uring: the mapping as a registered buffer, and as where a read goes ---- */

static inline int through_a_ring(void *at, size_t length, int store)
{
	struct io_uring_params p = { 0 };
	struct iovec whole = { at, length };
	int ring = syscall(SYS_io_uring_setup, 2, &p), r = -1, fd;
	size_t bytes = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
	struct io_uring_sqe *entry;
	uint8_t *queue;

	if (ring < 0)
		return -1;
	syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &whole, 1);
	queue = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	entry = mmap(NULL, p.sq_entries * sizeof(*entry), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	if (queue != MAP_FAILED && (void *)entry != MAP_FAILED && fd >= 0) {
		*entry = (struct io_uring_sqe){ .opcode = store ? IORING_OP_READ : IORING_OP_WRITE, .fd = fd,
						.addr = (uintptr_t)at, .len = CPU_PAGE };
		((uint32_t *)(queue + p.sq_off.array))[0] = 0;
		__atomic_store_n((uint32_t *)(queue + p.sq_off.tail), 1, __ATOMIC_RELEASE);
		r = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	}
	if (queue != MAP_FAILED)
		munmap(queue, bytes);
	if ((void *)entry != MAP_FAILED)
		munmap(entry, p.sq_entries * sizeof(*entry));
	close(fd);
	close(ring);
	return r;
}

/* ---- userfaultfd: memory whose faults a thread of the process serves ---- */

static inline void *serve_faults(void *argument)
{
	int fd = (intptr_t)argument;
	struct uffd_msg message;

	while (read(fd, &message, sizeof(message)) == sizeof(message)) {
		struct uffdio_zeropage zero = {
			.range = { message.arg.pagefault.address & -CPU_PAGE, CPU_PAGE },
		};

		if (message.event == UFFD_EVENT_PAGEFAULT)
			ioctl(fd, UFFDIO_ZEROPAGE, &zero);
	}
	return NULL;
}

/* Register a mapping (which must be refused), or memory of the process. */
static inline int under_userfaultfd(void *at, size_t length)
{
	static pid_t whose;
	static int fd = -1;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (uintptr_t)at, length },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;

	if (whose != getpid()) { /* one a process */
		whose = getpid();
		fd = syscall(SYS_userfaultfd, O_CLOEXEC);
		if (fd >= 0 && (ioctl(fd, UFFDIO_API, &api) ||
				pthread_create(&thread, NULL, serve_faults, (void *)(intptr_t)fd))) {
			close(fd);
			fd = -1;
		}
	}
	return fd < 0 ? -1 : ioctl(fd, UFFDIO_REGISTER, &range);
}

/* ---- all of it ---- */

/* One of these, as @draw says. @own: ordinary memory of the process, of some pages. */
static inline int abuse(uint64_t draw, void **at, size_t length, void *own)
{
	unsigned int store = draw & 1, more = draw >> 8 & 0xff;
	size_t part = CPU_PAGE * ((draw >> 16 & 0xffff) % (length / CPU_PAGE));
	struct iovec here = { (char *)*at + part, CPU_PAGE }, there;
	static char bytes[65536];
	char path[32] = "/proc/self/mem";
	int fd, pipes[2], r = 0, children;
	void *moved;

	there = (struct iovec){ bytes, sizeof(bytes) };
	switch ((draw >> 32) % 11) {
	case 0:
		moved = mremap(*at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
			       mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		if (moved == MAP_FAILED)
			return -1;
		*at = moved;
		return 0;
	case 1:
		return madvise(here.iov_base, CPU_PAGE, more % 26);
	case 2: /* of this process, and of its parent, which forgets its mappings at a fork */
		children = more & 1 ? getppid() : getpid();
		return store ? process_vm_writev(children, &there, 1, &here, 1, 0) :
			       process_vm_readv(children, &there, 1, &here, 1, 0);
	case 3:
		if (more & 1)
			snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
		fd = open(path, O_RDWR | O_CLOEXEC);
		r = store ? pwrite(fd, bytes, 64, (uintptr_t)here.iov_base) :
			    pread(fd, bytes, 64, (uintptr_t)here.iov_base);
		close(fd);
		return r;
	case 4: /* pages of the mapping into a pipe: copied, and by reference */
		if (pipe2(pipes, O_NONBLOCK | O_CLOEXEC))
			return -1;
		r = store ? vmsplice(pipes[1], &here, 1, SPLICE_F_NONBLOCK | (more & SPLICE_F_GIFT)) :
			    write(pipes[1], here.iov_base, 64);
		close(pipes[0]);
		close(pipes[1]);
		return r;
	case 5:
		return mprotect(here.iov_base, CPU_PAGE, more & 7);
	case 6:
		return direct_io(here.iov_base, store);
	case 7:
		return through_a_ring(here.iov_base, CPU_PAGE, store);
	case 8:
		return under_userfaultfd(store ? own : here.iov_base, CPU_PAGE * (1 + more % 4));
	case 9:
		return mlock(here.iov_base, CPU_PAGE);
	case 10:
		return msync(here.iov_base, CPU_PAGE, MS_SYNC);
	}
	return 0;
}

#endif /* ABUSE_H */
