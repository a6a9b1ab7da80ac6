"""An asyncio server in front of a service: a request from the network is a call of a function on the GPU.

Each connection sends lines of two numbers and gets a price back. ``await`` leaves the event loop free
while the GPU works, so the calls of all connections are under way together.
"""

import asyncio
import math
import time

import numpy as np
from _show import histogram, where

import gpudirect as gd

SOURCE = """
// what a call option is worth: a warp adds up 4096 ends of the path, each with its probability
__device__ float price(float spot, float strike)
{
    float sum = 0;
    for (int i = gd_rank(); i < 4096; i += gd_size()) {
        float normal = (i - 2047.5f) * (10.0f / 4096);
        float end = spot * expf(0.2f * normal - 0.02f);
        sum += fmaxf(end - strike, 0.0f) * expf(-0.5f * normal * normal);
    }
    for (int step = 16; step; step /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, step);
    return sum * 0.3989423f * (10.0f / 4096);  // that of thread 0
}
"""
CLIENTS, REQUESTS = 8, 40


def handler(svc):
    async def serve(reader, writer):
        while line := await reader.readline():
            spot, strike = map(float, line.split())
            answer = await svc.submit("price", spot, strike)
            writer.write(f"{answer:.6f}\n".encode())
        writer.close()

    return serve


async def client(port, seed, took):
    """Asks for REQUESTS prices one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for spot, strike in np.random.default_rng(seed).uniform(80, 120, (REQUESTS, 2)):
        begun = time.perf_counter()
        writer.write(f"{spot} {strike}\n".encode())
        answer = float(await reader.readline())
        took.append(time.perf_counter() - begun)
        assert abs(answer - exact(spot, strike)) < 1e-3
    writer.close()


def exact(spot, strike):
    """Black and Scholes' formula: no interest, a volatility of 0.2, a year."""
    d = math.log(spot / strike) / 0.2 + 0.1
    below = [(1 + math.erf(x / math.sqrt(2))) / 2 for x in (d, d - 0.2)]
    return spot * below[0] - strike * below[1]


async def main():
    took = []
    with gd.Service(SOURCE, {"price": "warp"}, lanes=2) as svc:
        server = await asyncio.start_server(handler(svc), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        begun = time.perf_counter()
        await asyncio.gather(*(client(port, seed, took) for seed in range(CLIENTS)))
        passed = time.perf_counter() - begun
        server.close()
    print(f"{CLIENTS} clients, {len(took) / passed:,.0f} answers/s, on {where()}")
    print("every answer agrees with Black and Scholes' formula")
    histogram(took, "From request to answer")


if __name__ == "__main__":
    asyncio.run(main())
