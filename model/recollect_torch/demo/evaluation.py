"""How well a model predicts documents it never saw, with memories of different sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recollect import Namespace
from recollect_torch import session
from recollect_torch.demo.corpus import Document
from recollect_torch.demo.rows import SEGMENT
from recollect_torch.transformer import MemorizingTransformer

DOCUMENTS = 8
"""Held-out documents that are read, the longest ones, side by side."""


@dataclass(frozen=True, slots=True)
class Score:
    """Bits per byte over everything that was read, and for each document."""

    bits_per_byte: float
    by_document: dict[str, float]
    segments: int
    seconds: float


def evaluate(
    model: MemorizingTransformer,
    documents: Sequence[Document],
    *,
    memory: Namespace | None,
    segments_max: int,
    title: str,
    seconds_max: float = math.inf,
    segments_min: int = 1,
) -> Score:
    """Reads the beginnings of the documents in order and scores every byte.

    Args:
        model: Not changed.
        documents: Longest first; the first `DOCUMENTS` are read, each as far as the shortest of them goes.
        memory: A namespace of the size to be tried, or None.
        segments_max: Segments to read of each document.
        title: Of the progress bar.
        seconds_max: No further segment is begun after this ...
        segments_min: ... once so many are done.

    Returns:
        The score; `segments` says how far it read.
    """
    chosen = documents[:DOCUMENTS]
    device = next(model.parameters()).device
    segments = min(segments_max, *(d.tokens.size // SEGMENT - 1 for d in chosen))
    rows = np.stack([d.tokens[: segments * SEGMENT + 1] for d in chosen]).astype(np.int64)
    tokens = torch.from_numpy(rows).to(device)  # [B, N + 1]
    losses: list[Tensor] = []
    model.eval()
    started = time.monotonic()
    streams = [f"held-out-{row}" for row in range(len(chosen))]
    with session(memory, streams=streams) as s, torch.no_grad():
        s.reset()
        for segment in tqdm(range(segments), desc=title, unit="segment", mininterval=1.0, leave=False):
            first = segment * SEGMENT
            window = tokens[:, first : first + SEGMENT + 1]
            logits = model(window[:, :-1])  # [B, T, 256]
            losses.append(
                F.cross_entropy(logits.transpose(1, 2), window[:, 1:], reduction="none").mean(dim=1)
            )
            s.commit()
            if segment + 1 >= segments_min and time.monotonic() - started > seconds_max:
                break
        if memory is not None:
            memory.evict(streams=streams, all=True)
    by_row = torch.stack(losses).mean(dim=0) / math.log(2)  # [B]
    return Score(
        bits_per_byte=by_row.mean().item(),
        by_document={d.name: bits for d, bits in zip(chosen, by_row.tolist(), strict=True)},
        segments=len(losses),
        seconds=time.monotonic() - started,
    )
