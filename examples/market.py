"""Market data to a service: each quote is one store to the GPU, and the answer says whether to trade.

The GPU keeps the prices of all symbols and the weights of a basket. A quote replaces one price; a block
of threads then works out what the basket is worth, and answers how far the index future is from it.
"""

import time

import numpy as np
from _show import histogram, where

import gpudirect as gd

SOURCE = """
struct quote { int symbol; float bid, ask, future; };

__device__ float gap(quote q, float *prices, const float *weights, int n)
{
    __shared__ float worth;
    if (gd_rank() == 0) {
        prices[q.symbol] = 0.5f * (q.bid + q.ask);
        worth = 0;
    }
    gd_sync();
    float own = 0;
    for (int i = gd_rank(); i < n; i += gd_size())
        own += weights[i] * prices[i];
    atomicAdd(&worth, own);
    gd_sync();
    return q.future / worth - 1;
}
"""
QUOTE = np.dtype([("symbol", "i4"), ("bid", "f4"), ("ask", "f4"), ("future", "f4")])
SYMBOLS, QUOTES, WORTH_IT = 500, 1000, 2e-3


def feed(rng):
    """A morning of the exchange: prices that wander, and a future that follows them with noise."""
    prices = rng.uniform(10, 200, SYMBOLS)
    weights = rng.dirichlet(np.ones(SYMBOLS))
    quotes = np.zeros(QUOTES, QUOTE)
    start = prices.copy()
    for k, i in enumerate(rng.integers(SYMBOLS, size=QUOTES)):
        prices[i] *= 1 + 0.01 * rng.standard_normal()
        middle = weights @ prices * (1 + 1e-3 * rng.standard_normal())
        quotes[k] = i, prices[i] * 0.9995, prices[i] * 1.0005, middle
    return start, weights, quotes


def main():
    start, weights, quotes = feed(np.random.default_rng(1))
    prices, of_basket = gd.asarray(start, "f4"), gd.asarray(weights, "f4")
    took, gaps = [], []
    with gd.Service(SOURCE, {"gap": "block"}) as svc:
        for quote in quotes:
            begun = time.perf_counter()
            gaps.append(svc.gap(quote, prices, of_basket, SYMBOLS))
            took.append(time.perf_counter() - begun)
    orders = np.abs(gaps) > WORTH_IT

    seen = start.copy()  # the same on the CPU
    for quote, gap in zip(quotes, gaps, strict=True):
        seen[quote["symbol"]] = (quote["bid"] + quote["ask"]) / 2
        assert abs(quote["future"] / (weights @ seen) - 1 - gap) < 1e-5
    print(f"{QUOTES} quotes of {SYMBOLS} symbols on {where()}")
    print(f"{orders.sum()} gaps were worth an order; every answer agrees with NumPy's")
    histogram(took, "From quote to answer")


if __name__ == "__main__":
    main()
