// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Example: a kernel thread that schedules GPU work by priority over two lanes of a resident kernel.
 *
 * Urgent calls go at once. Bulk calls go one after the other, and only while no urgent call is
 * queued or under way: so an urgent call never finds the GPU busy with more than the one bulk call
 * that was there before it.
 *
 * A process that started the resident kernel opens /proc/p2pmod_priority and writes, a line each:
 *
 *   lane urgent|bulk FD HANDLE PACKETS SLOTS REPLIES     attach: see p2pmod_lane_description
 *   call urgent|bulk COUNT FUNCTION WORD                 queue COUNT calls with one argument
 *
 * Reading shows how far each class has come. Closing the file stops the thread and detaches.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "../p2pmod-kernel.h"

enum { URGENT, BULK, CLASSES };
static const char * const names[CLASSES] = { "urgent", "bulk" };

struct class {
	struct p2pmod_lane *lane;
	u32 function, word;              /* of the calls that are queued */
	u32 queued, answered, failed;
	u32 first, flying;               /* sent and not answered: @flying numbers from @first on */
	int error;                       /* the lane's end */
};

struct scheduler {
	struct mutex lock;               /* all below */
	struct class class[CLASSES];
	struct task_struct *thread;
	wait_queue_head_t wake;
};

/* ---- the thread ---- */

static bool send(struct class *c)
{
	u32 sequence;
	int err = p2pmod_lane_submit(c->lane, c->function, &c->word, sizeof(c->word), &sequence);

	if (!err) {
		if (!c->flying++)
			c->first = sequence;
		c->queued--;
	} else if (err != -EAGAIN) { /* -EAGAIN: a full ring, which empties by itself */
		c->error = err;
	}
	return !err;
}

static bool fetch(struct class *c)
{
	struct p2pmod_reply reply;
	int err = p2pmod_lane_poll(c->lane, c->first, &reply);

	if (!err) {
		c->first++;
		c->flying--;
		c->answered++;
		c->failed += reply.status != P2PMOD_STATUS_OK;
	} else if (err != -EINPROGRESS) {
		c->error = err;
	}
	return !err;
}

static bool busy(const struct class *c)
{
	return !c->error && (c->queued || c->flying);
}

static bool work_left(struct scheduler *s)
{
	return busy(&s->class[URGENT]) || busy(&s->class[BULK]);
}

/* One decision; whether anything moved. */
static bool schedule_step(struct scheduler *s)
{
	struct class *urgent = &s->class[URGENT], *bulk = &s->class[BULK];
	bool moved = false;

	if (busy(urgent) && urgent->flying)
		moved |= fetch(urgent);
	if (busy(bulk) && bulk->flying)
		moved |= fetch(bulk);
	if (busy(urgent) && urgent->queued)
		moved |= send(urgent);
	else if (!busy(urgent) && busy(bulk) && !bulk->flying)
		moved |= send(bulk);
	return moved;
}

static int scheduler_thread(void *data)
{
	struct scheduler *s = data;
	bool moved;

	while (!kthread_should_stop()) {
		wait_event_interruptible(s->wake, kthread_should_stop() || work_left(s));
		mutex_lock(&s->lock);
		moved = schedule_step(s);
		mutex_unlock(&s->lock);
		if (!moved)
			usleep_range(20, 50);
	}
	return 0;
}

/* ---- /proc/p2pmod_priority ---- */

static int attach(struct class *c, u32 fd, u32 handle, u64 packets, u32 slots, u64 replies)
{
	struct p2pmod_lane_description description = {
		.packets = packets, .replies = replies, .slots = slots, .first = 1,
	};
	struct file *filp = fget(fd);
	struct p2pmod_buffer *buffer;
	struct p2pmod_lane *lane;

	if (!filp)
		return -EBADF;
	buffer = p2pmod_get(filp, handle);
	fput(filp);
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	lane = p2pmod_lane_attach(buffer, &description);
	p2pmod_put(buffer); /* the lane keeps it */
	if (!IS_ERR(lane))
		c->lane = lane;
	return PTR_ERR_OR_ZERO(lane);
}

static int command(struct scheduler *s, const char *text)
{
	u32 fd, handle, slots, count, function, word;
	u64 packets, replies;
	struct class *c;
	char name[8];

	if (sscanf(text, "%*s %7s", name) != 1)
		return -EINVAL;
	if (!strcmp(name, names[URGENT]))
		c = &s->class[URGENT];
	else if (!strcmp(name, names[BULK]))
		c = &s->class[BULK];
	else
		return -EINVAL;
	if (sscanf(text, "lane %*s %u %u %llu %u %llu", &fd, &handle, &packets, &slots, &replies) == 5)
		return c->lane ? -EBUSY : attach(c, fd, handle, packets, slots, replies);
	if (sscanf(text, "call %*s %u %u %u", &count, &function, &word) != 3 || function > U16_MAX)
		return -EINVAL;
	if (!c->lane)
		return -ENXIO;
	if (c->error)
		return c->error;
	if (c->queued)
		return -EBUSY; /* calls of one kind at a time, to keep the example short */
	c->function = function;
	c->word = word;
	c->queued = count;
	return 0;
}

static ssize_t priority_write(struct file *file, const char __user *user, size_t size, loff_t *pos)
{
	struct scheduler *s = ((struct seq_file *)file->private_data)->private;
	char text[128] = {};
	int err;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, user, size))
		return -EFAULT;
	mutex_lock(&s->lock);
	err = command(s, text);
	mutex_unlock(&s->lock);
	wake_up(&s->wake);
	return err ? err : size;
}

static int priority_show(struct seq_file *out, void *unused)
{
	struct scheduler *s = out->private;
	int i;

	mutex_lock(&s->lock);
	seq_puts(out, "class    queued  in flight  answered  failed  error\n");
	for (i = 0; i < CLASSES; i++)
		seq_printf(out, "%-6s %8u %10u %9u %7u %6d\n", names[i], s->class[i].queued,
			   s->class[i].flying, s->class[i].answered, s->class[i].failed,
			   s->class[i].error);
	mutex_unlock(&s->lock);
	return 0;
}

static int priority_open(struct inode *inode, struct file *file)
{
	struct scheduler *s = kzalloc(sizeof(*s), GFP_KERNEL);
	int err;

	if (!s)
		return -ENOMEM;
	mutex_init(&s->lock);
	init_waitqueue_head(&s->wake);
	s->thread = kthread_run(scheduler_thread, s, "p2pmod-priority");
	err = PTR_ERR_OR_ZERO(s->thread);
	if (err)
		goto free;
	err = single_open(file, priority_show, s);
	if (!err)
		return 0;
	kthread_stop(s->thread);
free:
	kfree(s);
	return err;
}

static int priority_release(struct inode *inode, struct file *file)
{
	struct scheduler *s = ((struct seq_file *)file->private_data)->private;
	int i;

	kthread_stop(s->thread); /* nobody uses the lanes after this */
	for (i = 0; i < CLASSES; i++)
		if (s->class[i].lane)
			p2pmod_lane_detach(s->class[i].lane);
	kfree(s);
	return single_release(inode, file);
}

static const struct proc_ops priority_ops = {
	.proc_open = priority_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_write = priority_write,
	.proc_release = priority_release,
};

static int __init priority_init(void)
{
	return proc_create("p2pmod_priority", 0600, NULL, &priority_ops) ? 0 : -ENOMEM;
}

static void __exit priority_exit(void)
{
	remove_proc_entry("p2pmod_priority", NULL);
}

module_init(priority_init);
module_exit(priority_exit);
MODULE_DESCRIPTION("Example: GPU work scheduled by priority from inside the kernel");
MODULE_LICENSE("Dual MIT/GPL");
