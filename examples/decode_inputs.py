"""The inputs of a decode step: what a server of a language model writes to the GPU for every token.

A decoder (12 layers of width 768, pages of keys and values, a batch of 64) is captured as a CUDA graph.
Before each replay the CPU updates six small tensors: token ids, positions, where to store keys and values,
lengths, adapters, page tables. Ways to do that, side by side, each with the same results bit for bit:

    six copy_, pageable or pinned    a copy for each tensor, as it is written first
    one packed copy                  all of them in one pinned buffer, copied asynchronously
    captured copy                    the same copy as a node of the graph
    page-locked                      the kernels read page-locked host memory
    gpudirect, direct                gd.torch.Inputs(ahead=0): the graph reads what the CPU stores to
    gpudirect, slots                 gd.torch.Inputs(ahead=1): the graph takes its step's slot

A server keeps its values in arrays and changes them in place; so does each way, in memory that it can start
from. `fill` is that; `update` is what brings them to the device. Each way is timed with a wait for every
step, and with one step queued ahead. Needs PyTorch and a GPU.

    python examples/decode_inputs.py [--json FIGURES]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpudirect as gd

BATCH, PAGES, PAGE = 64, 128, 16  # sequences; entries of a page table; tokens a page
SHAPES = {"ids": (BATCH,), "positions": (BATCH,), "stores": (BATCH,), "lengths": (BATCH,),
          "adapters": (BATCH,), "tables": (BATCH, PAGES)}  # fmt: skip
VECTORS = tuple(SHAPES)[:-1]
Step = dict[str, Any]
"""A value for each vector, and what changes in the page tables: rows, columns, pages."""


# -- the model --------------------------------------------------------------------------------


class Decoder:
    """A transformer's decoder with a paged cache, random weights, no training."""

    def __init__(self, torch: Any, device: str, layers: int = 12, width: int = 768, heads: int = 12,
                 words: int = 8192, context: int = 128) -> None:
        self.torch, self.heads, self.context = torch, heads, context
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        draw = torch.Generator(device=device).manual_seed(1)

        def weights(*shape: int) -> Any:
            return torch.randn(*shape, generator=draw, device=device).mul_(shape[0] ** -0.5).to(dtype)

        self.words, self.places = weights(words, width), weights(context, width)
        self.adapters = weights(16, width)
        self.layers = [{"qkv": weights(width, 3 * width), "out": weights(width, width),
                        "up": weights(width, 4 * width), "down": weights(4 * width, width)}
                       for _ in range(layers)]  # fmt: skip
        pages = BATCH * context // PAGE
        self.cache = torch.zeros(layers, 2, pages * PAGE, width, dtype=dtype, device=device)
        self.within = torch.arange(context, device=device)

    def __call__(self, ids: Any, positions: Any, stores: Any, lengths: Any, adapters: Any, tables: Any) -> Any:
        """The logits of the next token of each sequence: (BATCH, words)."""
        torch, width = self.torch, self.words.shape[1]
        normed = torch.nn.functional.layer_norm
        x = self.words[ids] + self.places[positions] + self.adapters[adapters]
        where = tables[:, : self.context // PAGE].long()[:, :, None] * PAGE
        where = (where + torch.arange(PAGE, device=ids.device)).flatten(1)  # tokens of each sequence
        seen = (self.within < lengths[:, None])[:, None, None, :]
        for weights, cache in zip(self.layers, self.cache, strict=True):
            q, k, v = (normed(x, (width,)) @ weights["qkv"]).chunk(3, -1)
            cache[0].index_copy_(0, stores.long(), k)
            cache[1].index_copy_(0, stores.long(), v)
            k, v = (c[where].view(BATCH, self.context, self.heads, -1).transpose(1, 2) for c in cache)
            q = q.view(BATCH, 1, self.heads, -1).transpose(1, 2)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + mixed.transpose(1, 2).reshape(BATCH, width) @ weights["out"]
            x = x + torch.nn.functional.gelu(normed(x, (width,)) @ weights["up"]) @ weights["down"]
        return normed(x, (width,)) @ self.words.t()


def schedule(steps: int, context: int = 128, words: int = 8192) -> list[Step]:
    """What a scheduler hands out for each step: sequences grow by a token, get a page when they need one,
    end, and others begin in their place."""
    draw = np.random.default_rng(7)
    pages = context // PAGE
    lengths = draw.integers(0, context - 1, BATCH)
    free = [int(p) for p in draw.permutation(BATCH * pages)]
    tables = np.zeros((BATCH, PAGES), "i8")
    for row, length in enumerate(lengths):
        for column in range(length // PAGE + 1):
            tables[row, column] = free.pop()
    every = np.indices((BATCH, pages)).reshape(2, -1)
    changes = [(*every, tables[:, :pages].ravel())]  # all of them at first
    found = []
    for _ in range(steps):
        at = tables[np.arange(BATCH), lengths // PAGE] * PAGE + lengths % PAGE
        found.append({
            "ids": draw.integers(0, words, BATCH).astype("i4"), "positions": lengths.astype("i4"),
            "stores": at.astype("i4"), "lengths": (lengths + 1).astype("i4"),
            "adapters": draw.integers(0, 16, BATCH).astype("i4"),
            "tables": tuple(np.concatenate([c[i] for c in changes]) for i in range(3)),
        })  # fmt: skip
        changes = [(np.zeros(0, int),) * 3]
        lengths = lengths + 1
        for row in np.flatnonzero((lengths % PAGE == 0) | (lengths >= context - 1)):
            if lengths[row] >= context - 1:
                free.extend(int(p) for p in tables[row, : lengths[row] // PAGE + 1])
                lengths[row] = 0
            tables[row, lengths[row] // PAGE] = page = free.pop(0)
            changes.append(([row], [lengths[row] // PAGE], [page]))
    return found


def put(seen: dict[str, np.ndarray], step: Step) -> None:
    """A step's values in arrays that hold those of the step before."""
    for name in VECTORS:
        seen[name][...] = step[name]
    put_pages(seen, step)


def put_pages(seen: dict[str, np.ndarray], step: Step) -> None:
    """What changed in the page tables."""
    rows, columns, pages = step["tables"]
    if len(rows):
        seen["tables"][rows, columns] = pages


# -- ways to update ---------------------------------------------------------------------------


class Way:
    """One way: tensors that the graph reads, and how they get a step's values."""

    name = ""

    def __init__(self, torch: Any, model: Decoder) -> None:
        self.torch, self.model = torch, model
        self.sides = 1
        self.prepare()
        # capturing runs nothing, but what it needs must have run once
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                model(**self.tensors(0))
        torch.cuda.current_stream().wait_stream(side)
        self.graphs, self.logits = [], []
        for number in range(self.sides):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.begin(number)
                self.logits.append(model(**self.tensors(number)))
            self.graphs.append(graph)
        self.ends = [torch.cuda.Event() for _ in range(2)]
        self.number = 0

    def prepare(self) -> None: ...

    def begin(self, side: int) -> None:
        """Captured before the model."""

    def tensors(self, side: int) -> dict[str, Any]:
        raise NotImplementedError

    def fill(self, step: Step, before: Step | None) -> None:
        """The values, in memory that this way starts from; ``before`` is the step before, if any."""
        raise NotImplementedError

    def update(self) -> None:
        """From there to the device."""

    def step(self, step: Step, before: Step | None) -> tuple[float, float]:
        """Fill, update and replay; the seconds of the first two."""
        self.number += 1
        # what this side's buffers were used for must be over: two steps ago
        self.ends[self.number % 2].synchronize()
        start = time.perf_counter()
        self.fill(step, before)
        filled = time.perf_counter()
        self.update()
        updated = time.perf_counter()
        self.graphs[self.number % 2 % self.sides].replay()
        self.ends[self.number % 2].record()
        return filled - start, updated - filled

    @property
    def last(self) -> Any:
        """The logits of the last step."""
        return self.logits[self.number % 2 % self.sides]

    def previous(self) -> Any:
        """Reached when the step before the last is over."""
        return self.ends[(self.number + 1) % 2]


class Copies(Way):
    """A copy for each tensor."""

    name = "six copy_, pageable"

    def prepare(self) -> None:
        self.there = {n: self.torch.zeros(s, dtype=self.torch.int32, device="cuda") for n, s in SHAPES.items()}
        self.seen = {n: np.zeros(s, "i4") for n, s in SHAPES.items()}

    def tensors(self, side: int) -> dict[str, Any]:
        return self.there

    def fill(self, step: Step, before: Step | None) -> None:
        put(self.seen, step)

    def update(self) -> None:
        for name, tensor in self.there.items():
            tensor.copy_(self.torch.from_numpy(self.seen[name]))


class PinnedCopies(Way):
    """A copy for each tensor, from pinned memory: two sets of it, since copies are still on their way."""

    name = "six copy_, pinned"

    def prepare(self) -> None:
        zeros, kind = self.torch.zeros, self.torch.int32
        self.there = {n: zeros(s, dtype=kind, device="cuda") for n, s in SHAPES.items()}
        self.staged = [{n: zeros(s, dtype=kind, pin_memory=True) for n, s in SHAPES.items()}
                       for _ in range(2)]  # fmt: skip
        self.seen = [{n: t.numpy() for n, t in staged.items()} for staged in self.staged]

    def tensors(self, side: int) -> dict[str, Any]:
        return self.there

    def fill(self, step: Step, before: Step | None) -> None:
        seen = self.seen[self.number % 2]
        if before is not None:
            put_pages(seen, before)  # which the other buffer has
        put(seen, step)

    def update(self) -> None:
        staged = self.staged[self.number % 2]
        for name, tensor in self.there.items():
            tensor.copy_(staged[name], non_blocking=True)


def packed(buffer: Any) -> dict[str, Any]:
    """The six, one after the other, in one flat buffer of int32."""
    found, at = {}, 0
    for name, shape in SHAPES.items():
        found[name] = buffer[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    return found


TOTAL = sum(math.prod(s) for s in SHAPES.values())


class PackedCopy(PinnedCopies):
    """All in one pinned buffer, one asynchronous copy."""

    name = "one packed copy"

    def prepare(self) -> None:
        torch = self.torch
        self.all = torch.zeros(TOTAL, dtype=torch.int32, device="cuda")
        self.there = packed(self.all)
        self.staged = [torch.zeros(TOTAL, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self.seen = [packed(s.numpy()) for s in self.staged]

    def update(self) -> None:
        self.all.copy_(self.staged[self.number % 2], non_blocking=True)


class CapturedCopy(PackedCopy):
    """The copy is a node of the graph: a graph for each of two pinned buffers."""

    name = "captured copy"

    def prepare(self) -> None:
        super().prepare()
        self.sides = 2

    def begin(self, side: int) -> None:
        self.all.copy_(self.staged[side], non_blocking=True)

    def update(self) -> None: ...


class PageLocked(PackedCopy):
    """The kernels read page-locked host memory: a graph for each of two buffers."""

    name = "page-locked"

    def prepare(self) -> None:
        super().prepare()
        self.sides = 2
        self.read = [packed(self.torch.as_tensor(OnTheDevice(s), device="cuda")) for s in self.staged]

    def tensors(self, side: int) -> dict[str, Any]:
        return self.read[side]

    def update(self) -> None: ...


class OnTheDevice:
    """Page-locked memory as the device sees it: at the same address."""

    def __init__(self, staged: Any) -> None:
        self.__cuda_array_interface__ = {"shape": tuple(staged.shape), "typestr": "<i4", "version": 2,
                                         "data": (staged.data_ptr(), False)}  # fmt: skip


class Direct(Way):
    """The graph reads the memory that the CPU stores to."""

    name, ahead = "gpudirect, direct", 0

    def prepare(self) -> None:
        fields = {n: (s, self.torch.int32) for n, s in SHAPES.items()}
        self.inputs = gd.torch.Inputs(fields, ahead=self.ahead)
        self.seen = dict(self.inputs)

    def begin(self, side: int) -> None:
        self.inputs.take()

    def tensors(self, side: int) -> dict[str, Any]:
        return dict(self.inputs.tensors)

    def fill(self, step: Step, before: Step | None) -> None:
        put(self.seen, step)

    def update(self) -> None:
        self.inputs.commit()  # with replay() it is one call; here each is timed by itself


class Slots(Direct):
    """The graph takes its step's slot."""

    name, ahead = "gpudirect, slots", 1


WAYS: tuple[type[Way], ...] = (Copies, PinnedCopies, PackedCopy, CapturedCopy, PageLocked, Direct, Slots)


# -- what is measured -------------------------------------------------------------------------


def results(torch: Any, way: Way, steps: list[Step], ahead: bool) -> Any:
    """The logits of every step: (steps, BATCH, words)."""
    way.model.cache.zero_()
    torch.cuda.synchronize()
    found = []
    for before, step in zip([None, *steps], steps, strict=False):
        way.step(step, before)
        found.append(way.last.clone())
        if not ahead:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return torch.stack(found)


def timed(torch: Any, way: Way, steps: list[Step], ahead: bool) -> dict[str, float]:
    """Medians in microseconds: of filling, of an update, and of a whole step."""
    fills, updates, wholes = [], [], []
    torch.cuda.synchronize()
    for before, step in zip([None, *steps], steps, strict=False):
        start = time.perf_counter()
        fill, update = way.step(step, before)
        if ahead:
            way.previous().synchronize()
        else:
            torch.cuda.current_stream().synchronize()
        wholes.append(time.perf_counter() - start)
        fills.append(fill)
        updates.append(update)
    torch.cuda.synchronize()
    skip = len(steps) // 10
    return {name: 1e6 * statistics.median(found[skip:])
            for name, found in (("fill_us", fills), ("update_us", updates), ("step_us", wholes))}  # fmt: skip


def replay_alone(torch: Any, way: Way, count: int) -> float:
    """Microseconds of replay and wait, with nothing updated."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        way.graphs[0].replay()
        torch.cuda.current_stream().synchronize()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def compare(torch: Any, layers: int, checked: int, measured: int) -> dict[str, Any]:
    """Every way, checked against the first and timed in turns, so that all meet the same machine."""
    model = Decoder(torch, "cuda", layers)
    ways = [make(torch, model) for make in WAYS]
    steps = schedule(max(checked, measured))
    expected = results(torch, ways[0], steps[:checked], ahead=False)
    figures: dict[str, Any] = {"ways": {w.name: {} for w in ways}}
    for way in ways:
        for ahead in (False, True):
            same = torch.equal(results(torch, way, steps[:checked], ahead), expected)
            figures["ways"][way.name]["equal" + (" ahead" if ahead else "")] = same
            if not same:
                raise SystemExit(f"{way.name}, {'one ahead' if ahead else 'waiting'}: another result")
    rounds: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(5):
        for way in ways:
            for ahead in (False, True):
                rounds.setdefault((way.name, ahead), []).append(timed(torch, way, steps[:measured], ahead))
    for (name, ahead), found in rounds.items():
        key = "ahead" if ahead else "waiting"
        figures["ways"][name][key] = {k: statistics.median(f[k] for f in found) for k in found[0]}
    figures["replay_alone_us"] = replay_alone(torch, ways[0], measured)
    return figures


def table(figures: dict[str, Any]) -> str:
    """For people: microseconds, and what a step saves beside six copies from pinned memory."""
    base = figures["ways"]["six copy_, pinned"]
    lines = [f"{'':22} {'waiting for each step':>42}   {'one step ahead':>42}",
             f"{'us':22}" + f"{'fill':>8} {'update':>8} {'step':>9} {'saved':>8} {'share':>6}   " * 2]
    for name, way in figures["ways"].items():
        cells = ""
        for key in ("waiting", "ahead"):
            found = way[key]
            saved = base[key]["step_us"] - found["step_us"]
            cells += (f"{found['fill_us']:8.2f} {found['update_us']:8.2f} {found['step_us']:9.2f} {saved:8.2f} "
                      f"{saved / base[key]['step_us']:6.1%}   ")  # fmt: skip
        lines.append(f"{name:22}{cells}")
    lines.append(f"{'replay and wait alone':22}{'':>17} {figures['replay_alone_us']:9.2f}")
    ratio = base["waiting"]["update_us"] / figures["ways"]["gpudirect, slots"]["waiting"]["update_us"]
    lines.append(f"updates: gpudirect, slots is {ratio:.1f} times faster than six copy_ from pinned memory")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--checked", type=int, default=48, help="steps whose results are compared")
    parser.add_argument("--measured", type=int, default=300, help="steps of each of five rounds")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("decode_inputs needs PyTorch: pip install torch", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("decode_inputs needs a GPU: PyTorch sees none", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    with torch.inference_mode():
        figures = compare(torch, options.layers, options.checked, options.measured)
    figures["about"] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                        "layers": options.layers, "width": 768, "batch": BATCH,
                        "bytes": 4 * TOTAL, "bridge": gd.zeros(1).bridge}  # fmt: skip
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
