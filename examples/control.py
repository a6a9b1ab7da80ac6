"""A control loop with a deadline: a ball is held in the air by a magnet, and the GPU decides the current.

Every 2 ms the ball's height is measured and the controller, a resident function on the GPU, is called.
An answer that comes later than the deadline is of no use. The histogram shows how often that happens.
"""

import time

from _show import histogram, where

import gpudirect as gd

SOURCE = """
struct controller { float before, sum; };

__device__ float current(controller *c, float height, float wanted)
{
    float error = wanted - height, change = error - c->before;
    c->before = error;
    c->sum += error;
    return 220 * error + 10000 * change + 0.2f * c->sum;
}
"""
PERIOD, ROUNDS = 2e-3, 500  # seconds
WANTED = 0.5  # metres


class Ball:
    """Falls by itself; the higher it is, the harder the magnet above it pulls (1/s^2 a metre)."""

    def __init__(self) -> None:
        self.height, self.speed = 0.45, 0.0

    def move(self, current: float) -> None:
        for _ in range(10):
            self.speed += (20 * (self.height - WANTED) + current) * PERIOD / 10
            self.height += self.speed * PERIOD / 10


def main():
    ball, current, took, heights = Ball(), 0.0, [], []
    memory = gd.zeros(2)  # of the controller
    deadline = 0.1 if gd.device().emulated else 1e-3  # an emulated GPU is one process among others
    with gd.Service(SOURCE, ["current"], nap_after=None) as svc:
        svc.current(memory, WANTED, WANTED)  # once, so that everything is awake
        due = time.perf_counter()
        for _ in range(ROUNDS):
            while time.perf_counter() < due:
                pass
            begun = time.perf_counter()
            answer = svc.current(memory, ball.height, WANTED)
            took.append(time.perf_counter() - begun)
            if took[-1] <= deadline:
                current = answer  # a late one is thrown away: the magnet goes on as it was
            ball.move(current)
            heights.append(ball.height)
            due = max(due + PERIOD, begun + took[-1])
    print(f"{ROUNDS} rounds of {PERIOD * 1e3:.0f} ms on {where()}")
    marks = (abs(h - WANTED) for h in heights[:: ROUNDS // 60])
    print("off by " + "".join(" .:-=+*#%@"[min(9, int(200 * m))] for m in marks) + " of 50 mm and more (@)")
    assert abs(heights[-1] - WANTED) < 5e-3, "the ball fell"
    histogram(took, "From measurement to answer", deadline)


if __name__ == "__main__":
    main()
