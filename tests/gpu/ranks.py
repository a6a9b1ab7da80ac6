"""One of two processes that reduce over two GPUs beside services: run by test_all_reduce.py.

    python ranks.py BACKEND RANK FILE SERVICES LOAD SLICE

BACKEND: "nccl", or "gloo" (without a GPU, to try this program itself). FILE: where the two meet. LOAD: "idle"
but awake, "napping", or "calls" from a thread without pause. Prints one JSON object: seconds of each operation
beside services, and then alone.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import statistics
import sys
import threading
import time

import gpudirect as gd

faulthandler.dump_traceback_later(150, exit=True)  # only a hang takes so long

SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ unsigned block_rank(unsigned *out) { out[gd_rank()] = gd_rank(); return gd_size(); }
"""
TEAMS = ({"add": "thread"}, {"add": "thread", "block_rank": "block"}, {"add": "grid"})
SMALL, LARGE = 1 << 10, 16 << 20  # elements of 4 bytes


def main() -> None:
    import torch
    import torch.distributed as dist

    backend, rank, file, services, load, slice = sys.argv[1:7]
    on_gpu, number = backend == "nccl", int(rank)
    gd.use(device=f"cuda:{number}" if on_gpu else "emulated")
    where = f"cuda:{number}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(number)
    nap_after = 2e-3 if load == "napping" else None
    started = [gd.Service(SOURCE, teams, lanes=2, slice=float(slice), nap_after=nap_after, lifetime=140).start()
               for teams in TEAMS[: int(services)]]  # fmt: skip
    courier = gd.Courier().start() if len(started) > 1 else None
    end, calls = threading.Event(), [0]

    def call() -> None:
        while not end.is_set():
            for service in started:
                assert service.call("add", calls[0], 1, lane=1, timeout=60) == calls[0] + 1
                calls[0] += 1

    caller = threading.Thread(target=call)
    if load == "calls":
        caller.start()

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def reduce(elements: int, rounds: int) -> list[float]:
        """Seconds of an all-reduce and the wait for it: the median and the worst."""
        times = []
        for n in range(rounds):
            x = torch.full((elements,), float(number + n), device=where)
            wait()
            start = time.perf_counter()
            dist.all_reduce(x)
            wait()
            times.append(time.perf_counter() - start)
            assert bool((x == 1 + 2 * n).all()), f"round {n}: {x[:4]}"
        return [statistics.median(times), max(times)]

    found: dict[str, object] = {}
    start = time.perf_counter()
    dist.init_process_group(backend, init_method=f"file://{file}", rank=number, world_size=2,
                            timeout=datetime.timedelta(seconds=120))  # fmt: skip
    found["first"] = reduce(SMALL, 1)[0]
    found["first, and what came before it"] = time.perf_counter() - start
    for name, elements, rounds in (("small", SMALL, 200), ("large", LARGE if on_gpu else SMALL, 20)):
        found[name] = reduce(elements, rounds)
    end.set()
    if load == "calls":
        caller.join()
    for service in started:
        assert service.call("add", 2, 3, timeout=60) == 5
        service.stop()
    if courier:
        courier.stop()
    dist.barrier()
    for name, elements, rounds in (("small", SMALL, 200), ("large", LARGE if on_gpu else SMALL, 20)):
        found[f"{name}, alone"] = reduce(elements, rounds)
    found["calls"] = calls[0]
    dist.destroy_process_group()
    print(json.dumps(found))


main()
