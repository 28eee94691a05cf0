"""What the hardware allows, measured in the run whose figures stand beside it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from recollect_bench.datasets import Floats

BLOCK = 8192
"""Keys of one product: its output is written over and over, so that it need not leave the caches' reach."""

COPIED_BYTES = 64 << 20


def product(queries: Floats, keys: Floats) -> Callable[[], None]:
    """All inner products, and nothing else: what exact search cannot be faster than."""
    out = np.empty((len(queries), min(BLOCK, len(keys))), dtype=np.float32)

    def multiply() -> None:
        for first in range(0, len(keys), BLOCK):
            block = keys[first : first + BLOCK]
            np.matmul(queries, block.T, out=out[:, : len(block)])

    return multiply


def sgemm_gflops(*, queries: int = 512, keys: int = 65_536, dim: int = 64) -> float:
    """The speed of such a product, in 10^9 operations a second."""
    generator = np.random.default_rng(0)
    multiply = product(
        generator.standard_normal((queries, dim), dtype=np.float32),
        generator.standard_normal((keys, dim), dtype=np.float32),
    )
    return 2e-9 * queries * keys * dim / _best(multiply)


def copy_gb_s() -> float:
    """How fast memory is copied, read and written bytes together, in GB a second."""
    source = np.ones(COPIED_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    return 2e-9 * COPIED_BYTES / _best(lambda: np.copyto(target, source))


def _best(call: Callable[[], object], *, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return min(taken)
