// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Test of lanes: calls device functions from process context, from a timer, from a tasklet and from
 * an interrupt. See caller.h.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

#include "../compat.h"
#include "../p2pmod-kernel.h"
#include "caller.h"

struct caller {
	struct rw_semaphore lock; /* held for reading over every use of a lane */
	struct p2pmod_lane *lane[CALLER_LANES];
};

/* ---- doing something in another context ---- */

struct job {
	struct timer_list timer;
	struct tasklet_struct tasklet;
	struct completion done;
	bool (*step)(struct job *job); /* does not sleep; true: it is done */
	u32 context;
	bool stop, over;
};

static void job_step(struct job *job)
{
	if (READ_ONCE(job->stop) || job->step(job))
		complete(&job->done);
	else if (job->context == CALLER_TIMER)
		mod_timer(&job->timer, jiffies + 1);
	else
		tasklet_schedule(&job->tasklet);
}

static void job_timer(struct timer_list *timer)
{
	job_step(container_of(timer, struct job, timer));
}

static void job_tasklet(struct tasklet_struct *tasklet)
{
	job_step(container_of(tasklet, struct job, tasklet));
}

static void job_interrupt(void *data)
{
	struct job *job = data;

	job->over = job->step(job);
}

/* Whether the job is over. */
static bool step_now(struct job *job)
{
	int cpu, here = raw_smp_processor_id();

	if (job->context == CALLER_PROCESS)
		return job->step(job);
	for_each_online_cpu(cpu)
		if (cpu != here) /* there it is an interrupt; here it would be a mere call */
			break;
	if (cpu >= nr_cpu_ids)
		return job->step(job);
	smp_call_function_single(cpu, job_interrupt, job, 1);
	return job->over;
}

/* Repeat a step in a context until it is done, or for some time. */
static int job_run(struct job *job, u32 context, u32 timeout_ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(timeout_ms);
	int err = 0;

	job->context = context;
	switch (context) {
	case CALLER_PROCESS:
	case CALLER_INTERRUPT:
		while (!step_now(job)) {
			if (time_after(jiffies, end) || fatal_signal_pending(current))
				return -ETIMEDOUT;
			usleep_range(20, 100);
		}
		return 0;
	case CALLER_TIMER:
	case CALLER_TASKLET:
		break;
	default:
		return -EINVAL;
	}
	init_completion(&job->done);
	timer_setup(&job->timer, job_timer, 0);
	tasklet_setup(&job->tasklet, job_tasklet);
	if (context == CALLER_TIMER)
		mod_timer(&job->timer, jiffies + 1);
	else
		tasklet_schedule(&job->tasklet);
	if (wait_for_completion_killable_timeout(&job->done, msecs_to_jiffies(timeout_ms)) <= 0) {
		WRITE_ONCE(job->stop, true);
		wait_for_completion(&job->done);
		err = -ETIMEDOUT;
	}
	timer_delete_sync(&job->timer);
	tasklet_kill(&job->tasklet);
	return err;
}

/* ---- one call ---- */

struct one {
	struct job job;
	struct p2pmod_lane *lane;
	struct caller_submit *submit;
	struct caller_reply *reply;
	int result;
};

static bool step_submit(struct job *job)
{
	struct one *one = container_of(job, struct one, job);
	struct caller_submit *s = one->submit;

	one->result = p2pmod_lane_submit(one->lane, s->function,
					 s->no_arguments ? NULL : s->arguments, s->bytes,
					 s->unasked ? NULL : &s->sequence);
	return true;
}

static bool step_poll(struct job *job)
{
	struct one *one = container_of(job, struct one, job);
	struct p2pmod_reply reply = {};

	one->result = p2pmod_lane_poll(one->lane, one->reply->sequence, &reply);
	one->reply->status = reply.status;
	one->reply->value = reply.value;
	return true;
}

static int one_call(struct p2pmod_lane *lane, u32 context, struct caller_submit *submit,
		    struct caller_reply *reply)
{
	struct one *one = kzalloc(sizeof(*one), GFP_KERNEL);
	int err;

	if (!one)
		return -ENOMEM;
	one->lane = lane;
	one->submit = submit;
	one->reply = reply;
	one->job.step = submit ? step_submit : step_poll;
	err = job_run(&one->job, context, 10000);
	if (!err)
		err = one->result;
	kfree(one);
	return err;
}

static int do_wait(struct p2pmod_lane *lane, struct caller_reply *r)
{
	struct p2pmod_reply reply = {};
	int err = p2pmod_lane_wait(lane, r->sequence, msecs_to_jiffies(r->timeout_ms), &reply);

	r->status = reply.status;
	r->value = reply.value;
	return err;
}

/* ---- many calls ---- */

#define AHEAD_MOST 256
#define STEP_MOST 64 /* calls of one step: a timer must not take long */

struct flight {
	u32 sequence, status;
	u64 value;
};

struct run {
	struct job job;
	struct p2pmod_lane *lane;
	struct caller_run *told;
	u32 random;
	int err;
	struct flight flight[AHEAD_MOST]; /* those sent and not answered, by sent % AHEAD_MOST */
};

static u32 draw(struct run *run) /* xorshift */
{
	run->random ^= run->random << 13;
	run->random ^= run->random >> 17;
	run->random ^= run->random << 5;
	return run->random;
}

static int send_one(struct run *run)
{
	struct flight *flight = &run->flight[run->told->sent % AHEAD_MOST];
	u32 words[P2PMOD_PACKET_WORDS], saved = run->random, i;
	u16 function = DEVICE_FOLD;
	int err;

	words[0] = draw(run) % (DEVICE_FOLD_MOST + 1);
	for (i = 1; i <= words[0]; i++)
		words[i] = draw(run);
	flight->status = P2PMOD_STATUS_OK;
	flight->value = device_fold(words);
	switch (draw(run) % 16) {
	case 0:
		function = DEVICE_REFUSE;
		flight->status = P2PMOD_STATUS_ARGUMENT;
		break;
	case 1:
		function = DEVICE_FUNCTIONS + draw(run) % 1000;
		flight->status = P2PMOD_STATUS_NO_FUNCTION;
		break;
	case 2:
		function = P2PMOD_FUNCTION_NOTHING;
		flight->value = 0;
		break;
	}
	err = p2pmod_lane_submit(run->lane, function, words, (words[0] + 1) * sizeof(u32),
				 &flight->sequence);
	if (err)
		run->random = saved; /* the same call next time */
	return err;
}

static int fetch_one(struct run *run)
{
	struct flight *flight = &run->flight[run->told->answered % AHEAD_MOST];
	struct p2pmod_reply reply;
	int err = p2pmod_lane_poll(run->lane, flight->sequence, &reply);

	/* where a call failed, the value says more of how: a line, perhaps */
	if (!err && (reply.sequence != flight->sequence || reply.status != flight->status ||
		     (!reply.status && reply.value != flight->value)))
		run->told->wrong++;
	return err;
}

static bool step_run(struct job *job)
{
	struct run *run = container_of(job, struct run, job);
	struct caller_run *told = run->told;
	int i, err = 0;

	for (i = 0; i < STEP_MOST && told->sent < told->calls &&
		    told->sent - told->answered < told->ahead; i++) {
		err = send_one(run);
		if (err)
			break;
		told->sent++;
	}
	if (err == -EAGAIN)
		told->full++;
	else if (err)
		run->err = err;
	for (i = 0; i < STEP_MOST && told->answered < told->sent; i++) {
		err = fetch_one(run);
		if (err)
			break;
		told->answered++;
	}
	if (err && err != -EINPROGRESS && err != -EAGAIN)
		run->err = err;
	return run->err || told->answered == told->calls;
}

static int do_run(struct p2pmod_lane *lane, struct caller_run *told)
{
	struct run *run;
	int err;

	if (!told->ahead || told->ahead > AHEAD_MOST || told->sent || told->answered ||
	    told->wrong || told->full || told->timeout_ms > 600000)
		return -EINVAL;
	run = kzalloc(sizeof(*run), GFP_KERNEL);
	if (!run)
		return -ENOMEM;
	run->job.step = step_run;
	run->lane = lane;
	run->told = told;
	run->random = told->seed | 1;
	err = job_run(&run->job, told->context, told->timeout_ms);
	if (!err)
		err = run->err;
	kfree(run);
	return err;
}

/* ---- the file ---- */

static int do_attach(struct caller *caller, struct caller_attach *a)
{
	struct p2pmod_lane_description description = {
		.packets = a->packets, .replies = a->replies, .slots = a->slots, .first = a->first,
		.told = a->told, .wake = a->wake,
	};
	struct p2pmod_buffer *buffer, *wake = NULL;
	struct p2pmod_lane *lane;
	struct file *filp;

	for (a->lane = 0; a->lane < CALLER_LANES && caller->lane[a->lane]; a->lane++)
		;
	if (a->lane == CALLER_LANES)
		return -EMFILE;
	filp = fget(a->fd);
	if (!filp)
		return -EBADF;
	buffer = p2pmod_get(filp, a->handle);
	if (a->wake_handle)
		wake = p2pmod_get(filp, a->wake_handle);
	fput(filp);
	if (IS_ERR(buffer) || IS_ERR(wake)) {
		if (!IS_ERR(buffer))
			p2pmod_put(buffer);
		if (!IS_ERR_OR_NULL(wake))
			p2pmod_put(wake);
		return IS_ERR(buffer) ? PTR_ERR(buffer) : PTR_ERR(wake);
	}
	description.wake_buffer = wake;
	lane = p2pmod_lane_attach(buffer, &description);
	p2pmod_put(buffer); /* the lane keeps them */
	if (wake)
		p2pmod_put(wake);
	if (IS_ERR(lane))
		return PTR_ERR(lane);
	caller->lane[a->lane] = lane;
	return 0;
}

static struct p2pmod_lane *lane_of(struct caller *caller, u32 lane)
{
	return lane < CALLER_LANES ? caller->lane[lane] : NULL;
}

static int do_detach(struct caller *caller, struct caller_detach *d)
{
	struct p2pmod_lane *lane = lane_of(caller, d->lane);

	if (!lane)
		return -ENOENT;
	d->next = p2pmod_lane_detach(lane);
	caller->lane[d->lane] = NULL;
	return 0;
}

union command {
	u32 lane; /* first in those that use one */
	struct caller_attach attach;
	struct caller_detach detach;
	struct caller_submit submit;
	struct caller_reply reply;
	struct caller_run run;
};

static int use_lane(struct caller *caller, unsigned int cmd, union command *c)
{
	struct p2pmod_lane *lane = lane_of(caller, c->lane);

	if (!lane)
		return -ENOENT;
	switch (cmd) {
	case CALLER_SUBMIT:
		return one_call(lane, c->submit.context, &c->submit, NULL);
	case CALLER_REPLY:
		if (c->reply.wait)
			return do_wait(lane, &c->reply);
		return one_call(lane, c->reply.context, NULL, &c->reply);
	case CALLER_RUN:
		return do_run(lane, &c->run);
	}
	return -ENOTTY;
}

static long caller_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct caller *caller = file->private_data;
	union command command = {};
	int err;

	if (_IOC_TYPE(cmd) != CALLER_MAGIC || _IOC_SIZE(cmd) > sizeof(command))
		return -ENOTTY;
	if (copy_from_user(&command, (void __user *)arg, _IOC_SIZE(cmd)))
		return -EFAULT;
	if (cmd == CALLER_ATTACH || cmd == CALLER_DETACH) {
		down_write(&caller->lock);
		err = cmd == CALLER_ATTACH ? do_attach(caller, &command.attach) :
					     do_detach(caller, &command.detach);
		up_write(&caller->lock);
	} else {
		down_read(&caller->lock);
		err = use_lane(caller, cmd, &command);
		up_read(&caller->lock);
	}
	/* also after an error: it tells how far it came */
	if (copy_to_user((void __user *)arg, &command, _IOC_SIZE(cmd)) && !err)
		err = -EFAULT;
	return err;
}

static int caller_open(struct inode *inode, struct file *file)
{
	struct caller *caller = kzalloc(sizeof(*caller), GFP_KERNEL);

	if (!caller)
		return -ENOMEM;
	init_rwsem(&caller->lock);
	file->private_data = caller;
	return 0;
}

static int caller_release(struct inode *inode, struct file *file)
{
	struct caller *caller = file->private_data;
	int i;

	for (i = 0; i < CALLER_LANES; i++)
		if (caller->lane[i])
			p2pmod_lane_detach(caller->lane[i]);
	kfree(caller);
	return 0;
}

static const struct proc_ops caller_ops = {
	.proc_open = caller_open,
	.proc_release = caller_release,
	.proc_ioctl = caller_ioctl,
};

static int __init caller_init(void)
{
	return proc_create("p2pmod_caller", 0600, NULL, &caller_ops) ? 0 : -ENOMEM;
}

static void __exit caller_exit(void)
{
	remove_proc_entry("p2pmod_caller", NULL);
}

module_init(caller_init);
module_exit(caller_exit);
MODULE_DESCRIPTION("Test of p2pmod's lanes");
MODULE_LICENSE("Dual MIT/GPL");
