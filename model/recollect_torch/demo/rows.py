"""Long documents as batch rows: each row reads its document in order, segment by segment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recollect_torch.demo.corpus import Document

SEGMENT = 256
"""Tokens (bytes) of a segment, which is all the local context there is."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One segment of every row.

    Attributes:
        ids: int64 [B, T].
        targets: int64 [B, T], the ids one further on.
        started: Rows in which a document starts with this segment.
    """

    ids: Tensor
    targets: Tensor
    started: tuple[int, ...]


class DocumentRows:
    """An endless stream of batches, in which every row reads document after document.

    Long documents come first, since a memory has most to hold there. The seed shuffles them among their
    neighbours in length.

    Args:
        documents: Longest first.
        rows: B.
        seed: Of the order.
    """

    def __init__(self, documents: Sequence[Document], *, rows: int, seed: int) -> None:
        self._documents = [d for d in documents if d.tokens.size > SEGMENT]
        if not self._documents:
            raise ValueError(f"no document is longer than a segment of {SEGMENT} bytes")
        self._shuffle = random.Random(seed)
        self._queue: list[Document] = []
        self._rows = rows
        self._reading: list[tuple[Document, int] | None] = [None] * rows

    def next(self) -> Batch:
        """The next segment of every row."""
        windows, started = [], []
        for row in range(self._rows):
            reading = self._reading[row]
            if reading is None or reading[1] + SEGMENT >= reading[0].tokens.size:
                reading = (self._take(), 0)
                started.append(row)
            document, position = reading
            windows.append(document.tokens[position : position + SEGMENT + 1])
            self._reading[row] = (document, position + SEGMENT)
        tokens = torch.from_numpy(np.stack(windows).astype(np.int64))  # [B, T + 1]
        return Batch(ids=tokens[:, :-1], targets=tokens[:, 1:], started=tuple(started))

    def _take(self) -> Document:
        if not self._queue:
            group = 2 * self._rows
            for first in range(0, len(self._documents), group):
                neighbours = self._documents[first : first + group]
                self._queue += self._shuffle.sample(neighbours, len(neighbours))
        return self._queue.pop(0)
