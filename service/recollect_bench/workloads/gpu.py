"""Attend on a GPU, against the product rate and the copy bandwidth of the same card in the same run."""

from __future__ import annotations

import importlib.util
import time

import numpy as np

import recollect
from recollect_bench.memory import LAYER
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import alternate

ROWS, HEADS, QUERIES, ENTRIES, DIM, TOP_K = 8, 8, 512, 65_536, 64, 32
GOAL = ">= 0.5"


def run(scale: Scale) -> Outcome:
    """8 rows x 8 heads x 512 queries over 65,536 x 64 float16 per head."""
    if not _has_gpu():
        return Outcome(figures=[Figure("gpu", "attend", "not run", note="no CUDA device here")])
    import torch

    entries = scale.size(ENTRIES)
    generator = np.random.default_rng(scale.seed)
    streams = [f"row-{row}" for row in range(ROWS)]
    with recollect.connect("embedded://", timeout_s=600) as client:
        space = client.create_namespace(
            "gpu", layers=[LAYER], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=entries, dtype="float16"
        )
        block = min(entries, 4096)
        for _ in range(entries // block):
            keys = generator.standard_normal((ROWS, HEADS, block, DIM), dtype=np.float32).astype(np.float16)
            space.add(LAYER, keys, keys, streams=streams)
        asked = torch.randn((ROWS, HEADS, QUERIES, DIM), dtype=torch.float16)
        left = torch.randn((ROWS * HEADS, QUERIES, DIM), dtype=torch.float16, device="cuda")
        right = torch.randn((ROWS * HEADS, DIM, entries), dtype=torch.float16, device="cuda")
        product = torch.empty((ROWS * HEADS, QUERIES, entries), dtype=torch.float16, device="cuda")

        def multiply() -> float:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            torch.bmm(left, right, out=product)
            torch.cuda.synchronize()
            return time.perf_counter() - begun

        times = alternate(
            {
                "ours": lambda: space.attend(LAYER, asked, top_k=TOP_K, streams=streams, with_ids=False),
                "product": multiply,
            },
            rounds=scale.rounds,
            seconds_max=scale.seconds_max,
            warm=3,
        )
    rate = 2e-12 * ROWS * HEADS * QUERIES * entries * DIM / times["product"].median_s
    figure = Figure(
        "gpu",
        f"attend, {ROWS} rows x {HEADS} heads x {QUERIES} queries x {entries:,} x {DIM} float16",
        str(times["ours"]),
        f"the product alone {times['product']}",
        ratio=times["product"].median_s / times["ours"].median_s,
        goal=GOAL,
        limit=f"product {rate:.0f} TFLOP/s, copies {_copy_gb_s():.0f} GB/s, {torch.cuda.get_device_name()}",
    )
    return Outcome(figures=[figure])


def _copy_gb_s() -> float:
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken = []
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return 2e-9 * source.numel() / min(taken)


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
