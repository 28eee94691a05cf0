"""Training goes on from the checkpoint, with a memory or without: the paper's retrofit and its control."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recollect import Namespace
from recollect_torch import Session, session
from recollect_torch.demo.corpus import Document
from recollect_torch.demo.optimizer import Optimizers, clip_gradients
from recollect_torch.demo.rows import SEGMENT, Batch, DocumentRows
from recollect_torch.transformer import MemorizingTransformer

ROWS = 8
"""Documents read side by side, each with a stream of its own."""

READ_FIRST = 32
"""Segments of every document that are read before training begins, so that it begins with memories that
hold something, as they will when the model is used. The control passes over them."""

WARM, DECAY = 0.05, 0.6
"""Shares of a run in which the learning rate goes up, and in which it goes down."""


class Pace(Protocol):
    """Decides, before each step, how large it is, or that the run is over."""

    def __call__(self, step: int) -> float | None:
        """The learning-rate factor of step `step` (from 0); None at the end."""
        ...


def paced_by_clock(seconds: float, *, peak: float) -> Pace:
    """A run that takes so many seconds; its factors follow the time that has passed."""
    started = time.monotonic()

    def pace(step: int) -> float | None:
        done = (time.monotonic() - started) / seconds
        return peak * _shape(done) if done < 1 or step == 0 else None

    return pace


def paced_by_steps(steps: int, *, peak: float) -> Pace:
    """A run of so many steps."""
    return lambda step: peak * _shape(step / steps) if step < steps else None


def paced_like(factors: Sequence[float]) -> Pace:
    """A run of the same steps as another, each of the same size."""
    return lambda step: factors[step] if step < len(factors) else None


def _shape(done: float) -> float:
    return max(0.01, min(1.0, (done + 0.01) / WARM, (1 - done) / DECAY))


@dataclass(slots=True)
class Curve:
    """What a run was like, step by step."""

    bits_per_byte: list[float] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0


def train(
    model: MemorizingTransformer,
    documents: Sequence[Document],
    *,
    memory: Namespace | None,
    pace: Pace,
    seed: int,
    title: str,
    rows: int = ROWS,
) -> Curve:
    """Trains on documents in reading order; with a memory, every row remembers its document.

    Args:
        model: Trained in place.
        documents: Longest first.
        memory: A namespace, or None for the control.
        pace: Number and size of the steps.
        seed: Of the order of documents. The same seed and steps see the same data.
        title: Of the progress bar.
        rows: B.

    Returns:
        The curve.
    """
    batches = DocumentRows(documents, rows=rows, seed=seed)
    curve = Curve()
    optimizers = Optimizers(model)
    model.train()
    started = time.monotonic()
    streams = [f"row-{row}" for row in range(rows)]
    with session(memory, streams=streams) as s, tqdm(desc=title, unit="step", mininterval=1.0) as bar:
        _read_ahead(model, batches, s)
        while (factor := pace(len(curve.factors))) is not None:
            batch = batches.next()
            s.reset(rows=batch.started)
            loss = _loss(model, batch)
            loss.backward()
            s.commit()
            clip_gradients(model)
            optimizers.step(factor)
            curve.factors.append(factor)
            curve.bits_per_byte.append(loss.item() / math.log(2))
            curve.seconds, curve.waited_s = time.monotonic() - started, s.waited_s
            tokens = len(curve.factors) * rows * SEGMENT
            bar.set_postfix_str(_progress(curve, tokens=tokens), refresh=False)
            bar.update()
    return curve


@torch.no_grad()
def _read_ahead(model: MemorizingTransformer, batches: DocumentRows, s: Session) -> None:
    for _ in range(READ_FIRST):
        batch = batches.next()
        if s.memory is not None:
            s.reset(rows=batch.started)
            _loss(model, batch)
            s.commit()


def _loss(model: MemorizingTransformer, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    logits = model(batch.ids.to(device))  # [B, T, 256]
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.to(device).flatten())


def _progress(curve: Curve, *, tokens: int) -> str:
    recent = curve.bits_per_byte[-20:]
    return (
        f"{sum(recent) / len(recent):.3f} bits per byte, {tokens / curve.seconds:,.0f} tokens/s, "
        f"memory {curve.waited_s:.0f} of {curve.seconds:.0f} s"
    )
