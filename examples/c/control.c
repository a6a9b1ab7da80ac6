/* SPDX-License-Identifier: MIT */
/*
 * A control loop in C: each step stores the state of a pendulum to GPU memory, calls a function that
 * is resident there with it, and moves the pendulum by the answer. control.py starts it.
 *
 *     cc -O2 -shared -fPIC control.c $(gpudirect config --cflags --libs) -o control.so -lm
 */
#include <gpudirect.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#define STEP 0.01f         /* s */
#define SECOND 1000000000  /* ns */

/* As __device__ float force(const float *state, float limit) lays its arguments out. */
struct arguments {
    uint64_t state;
    float limit;
};

/*
 * lane: lent by a service; force is its function number 0. state: where the two floats of the state
 * (angle, speed) lie in the mapping, and at which address of the device. Returns the angle that is left
 * after `steps` in *angle, and 0 or -errno; took: ns of each step, one after the other.
 */
int control(struct gd_lane *lane, uintptr_t state, uint64_t state_on_device, int steps, float *angle,
            int64_t *took)
{
    struct arguments arguments = {state_on_device, 20};
    float now[2] = {0.5f, 0};

    for (int i = 0; i < steps; i++) {
        uint64_t start = gd_now();
        struct p2pmod_reply reply;
        float force;
        int code;

        /* the call fences, so the stores need none of their own */
        code = gd_write(state, (const char *)now, sizeof(now), GD_NO_FENCE | lane->flags);
        if (!code)
            code = gd_lane_call(lane, 0, (const char *)&arguments, sizeof(arguments), 60ll * SECOND, &reply);
        if (code)
            return code;
        if (reply.status != P2PMOD_STATUS_OK)
            return -EREMOTEIO;
        memcpy(&force, &reply.value, sizeof(force));
        now[1] += STEP * (9.81f * sinf(now[0]) + force);
        now[0] += STEP * now[1];
        took[i] = (int64_t)(gd_now() - start);
    }
    *angle = now[0];
    return 0;
}
