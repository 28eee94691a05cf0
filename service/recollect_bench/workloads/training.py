"""A training step of the demo's model, its memory behind gRPC or in process. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import recollect
from recollect_bench.memory import server_and_client
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import alternate
from recollect_torch import session
from recollect_torch.demo import checkpoint
from recollect_torch.demo.continuation import READ_FIRST, ROWS
from recollect_torch.demo.corpus import standard_library
from recollect_torch.demo.optimizer import Optimizers, clip_gradients
from recollect_torch.demo.rows import DocumentRows
from recollect_torch.demo.run import CONFIG, TRAINING_CAPACITY
from recollect_torch.transformer import MemorizingTransformer

GOAL = "<= 1.1"


def run(scale: Scale) -> Outcome:
    """Forward, backward, commit and optimiser step over 8 documents with memories of up to 32,768."""
    with recollect.connect("embedded://", timeout_s=600) as inside, server_and_client() as (_, outside):
        steps = {
            "embedded": _training(inside, scale),
            "gRPC": _training(outside, scale),
            "no memory": _training(None, scale),
        }
        for _ in range(max(2, READ_FIRST // scale.shrink)):
            for step in steps.values():
                step()
        times = alternate(steps, rounds=scale.rounds, seconds_max=scale.seconds_max)
    figure = Figure(
        "training",
        f"{ROWS} documents side by side",
        f"gRPC {times['gRPC']}",
        f"embedded {times['embedded']}",
        ratio=times["gRPC"].median_s / times["embedded"].median_s,
        goal=GOAL,
        limit=f"without memory {times['no memory']}",
    )
    return Outcome(figures=[figure])


def _training(client: recollect.Client | None, scale: Scale) -> Callable[[], None]:
    """A model, its documents and its memory; each call is one step."""
    torch.manual_seed(scale.seed)
    model = MemorizingTransformer(CONFIG)
    checkpoint.load(model)
    size = CONFIG.dim // CONFIG.heads
    memory = None
    if client is not None:
        memory = client.create_namespace(
            "training",
            layers=CONFIG.memory_layers,
            heads=CONFIG.heads,
            key_dim=size,
            value_dim=size,
            capacity=TRAINING_CAPACITY,
            dtype="float32",
        )
    batches = DocumentRows(standard_library().train, rows=ROWS, seed=scale.seed)
    optimizers, reading = Optimizers(model), session(memory, streams=[f"row-{row}" for row in range(ROWS)])

    def step() -> None:
        batch = batches.next()
        with reading:
            reading.reset(rows=batch.started)
            loss = F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten())
            loss.backward()
            reading.commit()
        clip_gradients(model)
        optimizers.step(0.15)

    return step
