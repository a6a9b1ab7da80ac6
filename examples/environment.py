"""Reinforcement learning: many poles are balanced on carts that live on the GPU, a push at a time.

An action is one byte for each cart. The policy stores them into GPU memory, one call steps all carts,
and what they look like then lies in page-locked memory, where the policy reads it: no copy, no launch.
"""

import time

import numpy as np
from _show import histogram, where

import gpudirect as gd

SOURCE = """
struct cart { float x, v, angle, turn; };

// Barto, Sutton and Anderson's cart-pole, 20 ms a step; a pole that falls stays down
__device__ int step(cart *carts, const signed char *push, cart *seen, int n)
{
    __shared__ int standing;
    if (gd_rank() == 0)
        standing = 0;
    gd_sync();
    for (int i = gd_rank(); i < n; i += gd_size()) {
        cart c = carts[i];
        if (fabsf(c.angle) < 0.21f && fabsf(c.x) < 2.4f) {
            float s = sinf(c.angle), k = cosf(c.angle);
            float pull = (10.0f * push[i] + 0.05f * c.turn * c.turn * s) / 1.1f;
            float turning = (9.8f * s - k * pull) / (0.5f * (4 / 3.0f - 0.1f * k * k / 1.1f));
            float speeding = pull - 0.05f * turning * k / 1.1f;
            c = {c.x + 0.02f * c.v, c.v + 0.02f * speeding, c.angle + 0.02f * c.turn,
                 c.turn + 0.02f * turning};
            atomicAdd(&standing, 1);
        }
        carts[i] = seen[i] = c;
    }
    gd_sync();
    return standing;
}
"""
CART = np.dtype([("x", "f4"), ("v", "f4"), ("angle", "f4"), ("turn", "f4")])
CARTS, STEPS = 64, 300
RNG = np.random.default_rng(3)


def guess(seen):
    return RNG.choice((-1, 1), CARTS)


def balance(seen):
    return np.where(seen["angle"] + 0.3 * seen["turn"] + 0.02 * seen["x"] + 0.05 * seen["v"] > 0, 1, -1)


def episode(svc, policy, start):
    """How many carts stand after each step, and the seconds that each step took."""
    carts, push = gd.asarray(start), gd.zeros(CARTS, "i1")
    seen = gd.pinned(CARTS, CART)
    seen[:] = start
    standing, took = [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        push.write(policy(seen).astype("i1"))
        standing.append(svc.step(carts, push, seen, CARTS))
        took.append(time.perf_counter() - begun)
    return standing, took


def main():
    start = RNG.uniform(-0.05, 0.05, (CARTS, 4)).astype("f4").view(CART)[:, 0]
    with gd.Service(SOURCE, {"step": "block"}) as svc:
        found = {policy.__name__: episode(svc, policy, start) for policy in (guess, balance)}
    print(f"{CARTS} carts, {STEPS} steps of each policy on {where()}")
    for name, (standing, _) in found.items():
        print(f"{name:>8}: " + "".join(" .:-=+*#%@"[9 * n // CARTS] for n in standing[:: STEPS // 60])
              + f" {standing[-1]} of {CARTS} stand at the end")  # fmt: skip
    assert found["guess"][0][-1] == 0 and found["balance"][0][-1] == CARTS
    histogram(found["balance"][1], "A step, policy and all")


if __name__ == "__main__":
    main()
