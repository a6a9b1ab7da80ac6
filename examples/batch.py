"""A running batch: page tables and sampling parameters change while steps are queued.

Sixteen sequences are written word by word. Between two steps some of them need a page, end, begin, are
forked (two tables share a page), or get other sampling parameters. ``gd.Inputs`` holds all of that: the
CPU changes single values, and each step reads those that were given to it, two steps ahead.
Here a toy writes the words: a hash of the last words, sampled among the best few.
"""

import time

import numpy as np
from _show import histogram, where

import gpudirect as gd

SOURCE = """
typedef unsigned int u32;

__device__ u32 mixed(u32 x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// one thread a sequence: the word is sampled among the best `top`, and stored where its page table says
__global__ void step(const int *lengths, const int *tables, const int *top, const u32 *seeds,
                     u32 *cache, u32 *words, int sequences, int pages)
{
    int s = threadIdx.x, n = s < sequences ? lengths[s] : 0;
    if (!n)
        return; // nobody writes here now
    const int *table = tables + s * pages;
    u32 last = n > 1 ? cache[table[(n - 2) / 16] * 16 + (n - 2) % 16] : 0, best = 0;
    int pick = mixed(seeds[s] + n) % top[s];
    for (int rank = 0, below = 1 << 24; rank <= pick; rank++, below = best)
        for (best = 0, n = 0; n < 64; n++) { // the next best of 64 words
            u32 score = (mixed(last * 64 + n) >> 14 << 6) | n;
            if (score < (u32)below && score >= best)
                best = score;
        }
    n = lengths[s];
    words[s] = cache[table[(n - 1) / 16] * 16 + (n - 1) % 16] = best % 64;
}
"""
SEQUENCES, PAGES, PAGE, STEPS, AHEAD = 16, 8, 16, 400, 2


def mixed(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def written(values: dict, cache: np.ndarray) -> list[int]:
    """What a step writes, on the CPU; -1 where nobody does."""
    words = []
    for s, n in enumerate(int(n) for n in values["lengths"]):
        if n:
            table = values["tables"][s]
            last = int(cache[table[(n - 2) // PAGE], (n - 2) % PAGE]) if n > 1 else 0
            best = sorted(((mixed(last * 64 + w) >> 14 << 6) | w for w in range(64)), reverse=True)
            word = best[mixed(int(values["seeds"][s]) + n & 0xFFFFFFFF) % int(values["top"][s])] % 64
            cache[table[(n - 1) // PAGE], (n - 1) % PAGE] = word
            words.append(word)
        else:
            words.append(-1)
    return words


class Batch:
    """Who writes where. Its arrays are the inputs themselves."""

    def __init__(self, inputs: gd.Inputs) -> None:
        self.inputs, self.draw = inputs, np.random.default_rng(5)
        self.free = list(range(SEQUENCES * PAGES))
        self.users = np.zeros(SEQUENCES * PAGES, int)

    def page(self) -> int:
        found = self.free.pop(0)
        self.users[found] = 1
        return found

    def end(self, s: int) -> None:
        pages = -(-(int(self.inputs["lengths"][s]) - 1) // PAGE)
        for page in self.inputs["tables"][s, :pages]:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(int(page))
        self.inputs["lengths"][s] = 0

    def advance(self) -> None:
        """The values of the next step."""
        lengths, tables, draw = self.inputs["lengths"], self.inputs["tables"], self.draw
        for s in range(SEQUENCES):
            n = int(lengths[s])
            if n > PAGE * PAGES or (n and draw.random() < 0.01):
                self.end(s)
            elif n > 1 and (n - 1) % PAGE == 0 and draw.random() < 0.3:
                self.fork(s)
        for s in np.flatnonzero((lengths == 0) & (draw.random(SEQUENCES) < 0.2)):
            self.inputs["top"][s], self.inputs["seeds"][s] = draw.integers(1, 6), draw.integers(1 << 31)
            lengths[s] = 1
        for s in np.flatnonzero((lengths > 0) & ((lengths - 1) % PAGE == 0)):
            tables[s, (lengths[s] - 1) // PAGE] = self.page()
        if draw.random() < 0.1:
            self.inputs["top"][draw.integers(SEQUENCES)] = draw.integers(1, 6)  # somebody's temperature

    def fork(self, s: int) -> None:
        """Another sequence goes on from the same words: full pages are shared."""
        idle = np.flatnonzero(self.inputs["lengths"] == 0)
        if len(idle):
            n, to = int(self.inputs["lengths"][s]), idle[0]
            shared = self.inputs["tables"][s, : (n - 1) // PAGE]
            self.inputs["tables"][to, : len(shared)] = shared
            self.users[shared] += 1
            self.inputs["lengths"][to] = n
            self.inputs["top"][to], self.inputs["seeds"][to] = 5, self.draw.integers(1 << 31)


def main():
    inputs = gd.Inputs({"lengths": (SEQUENCES, "i4"), "tables": ((SEQUENCES, PAGES), "i4"),
                        "top": (SEQUENCES, "i4"), "seeds": (SEQUENCES, "u4")}, ahead=AHEAD)  # fmt: skip
    inputs["top"] = 1
    stream, batch = gd.stream(), Batch(inputs)
    cache, words = gd.zeros((SEQUENCES * PAGES, PAGE), "u4"), gd.zeros((STEPS, SEQUENCES), "u4")
    a, kernel = inputs.arrays, gd.kernel(SOURCE, "step")
    plain, want, stored, took = np.zeros((SEQUENCES * PAGES, PAGE), "u4"), [], 0, []
    for i in range(STEPS):
        batch.advance()
        want.append(written(inputs, plain))
        start = time.perf_counter()
        stored += inputs.commit(stream)
        took.append(time.perf_counter() - start)
        inputs.take(stream)
        kernel[1, SEQUENCES, stream](a["lengths"], a["tables"], a["top"], a["seeds"], cache, words[i],
                                     SEQUENCES, PAGES)  # fmt: skip
        inputs["lengths"][inputs["lengths"] > 0] += 1
    stream.synchronize()

    want = np.array(want)
    assert np.array_equal(words.read()[want >= 0], want[want >= 0])
    print(f"{(want >= 0).sum()} words in {STEPS} steps, {AHEAD} ahead, on {where()}")
    print(f"each is what the CPU writes; {stored / STEPS:.0f} of {inputs.nbytes} bytes were stored for a step")
    histogram(took, "Giving a step its values")


if __name__ == "__main__":
    main()
