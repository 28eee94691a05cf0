"""Segments that forward passes computed, and the XL cache that they go through on their way to the memory.

An entry is in one place only: in the segment at hand, in the XL cache, or in the memory. It enters the
memory when it leaves the cache (at once where there is none): a joint softmax never attends to it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys and values of the same tokens. Rows are left-aligned; what follows `lengths` is padding.

    Attributes:
        keys: [B, Hkv, T, Dk], normalised, without position, without gradient.
        values: [B, Hkv, T, Dv].
        lengths: B numbers, 0 to T.
    """

    keys: Tensor
    values: Tensor
    lengths: tuple[int, ...]

    def of_rows(self, rows: Sequence[int]) -> Segment:
        """These rows alone, no wider than they need."""
        lengths = tuple(self.lengths[row] for row in rows)
        index, width = list(rows), max(lengths)
        return Segment(self.keys[index][:, :, :width], self.values[index][:, :, :width], lengths)

    def without(self, rows: Sequence[int]) -> Segment:
        """The same with nothing in these rows."""
        return Segment(self.keys, self.values, _zeroed(self.lengths, rows))


@dataclass(frozen=True, slots=True)
class Window:
    """The XL cache of one layer. Rows are right-aligned; what precedes the last `lengths` is padding.

    Attributes:
        keys: [B, Hkv, X, Dk], normalised, without position, without gradient.
        values: [B, Hkv, X, Dv].
        lengths: B numbers, 0 to X.
    """

    keys: Tensor
    values: Tensor
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """X."""
        return self.keys.shape[2]

    def as_segment(self) -> Segment:
        """The same, left-aligned."""
        starts = [self.width - length for length in self.lengths]
        return Segment(
            _runs(self.keys, starts, self.width), _runs(self.values, starts, self.width), self.lengths
        )

    def without(self, rows: Sequence[int]) -> Window | None:
        """The same with nothing in these rows; None if nothing is left."""
        lengths = _zeroed(self.lengths, rows)
        return Window(self.keys, self.values, lengths) if any(lengths) else None


def append(segments: Sequence[Segment]) -> Segment:
    """One segment after the other, without the padding between them."""
    if len(segments) == 1:
        return segments[0]
    lengths = tuple(sum(of_row) for of_row in zip(*(s.lengths for s in segments), strict=True))

    def join(tensors: Sequence[Tensor]) -> Tensor:
        rows, heads, _, dim = tensors[0].shape
        joined = tensors[0].new_zeros((rows, heads, max(lengths), dim))
        for row in range(rows):
            parts = [t[row, :, : s.lengths[row]] for t, s in zip(tensors, segments, strict=True)]
            joined[row, :, : lengths[row]] = torch.cat(parts, dim=1)
        return joined

    return Segment(join([s.keys for s in segments]), join([s.values for s in segments]), lengths)


def slide(window: Window | None, segment: Segment, *, xl_length: int) -> tuple[Window | None, Segment]:
    """Moves a segment through the cache.

    Args:
        window: The cache before; None where it is empty.
        segment: What comes in.
        xl_length: How many tokens the cache holds.

    Returns:
        The cache after, and what left it, oldest first.
    """
    if xl_length == 0:
        return None, segment
    keys, values, width = segment.keys, segment.values, 0
    cached: tuple[int, ...] = (0,) * len(segment.lengths)
    if window is not None:
        keys = torch.cat((window.keys.to(keys), keys), dim=2)
        values = torch.cat((window.values.to(values), values), dim=2)
        cached, width = window.lengths, window.width
    # Right-aligned before left-aligned: what a row has is one run, from first to end.
    first = [width - c for c in cached]
    end = [width + t for t in segment.lengths]
    kept = tuple(min(xl_length, e - f) for f, e in zip(first, end, strict=True))
    gone = tuple(e - f - k for f, e, k in zip(first, end, kept, strict=True))
    leaving = Segment(_runs(keys, first, max(gone)), _runs(values, first, max(gone)), gone)
    if not any(kept):
        return None, leaving
    starts = [e - max(kept) for e in end]
    return Window(_runs(keys, starts, max(kept)), _runs(values, starts, max(kept)), kept), leaving


def _runs(x: Tensor, starts: Sequence[int], width: int) -> Tensor:
    """From each row, `width` positions from its start on: [B, H, S, D] -> [B, H, width, D].

    Positions outside of x become padding.
    """
    if len(set(starts)) == 1 and starts[0] >= 0 and starts[0] + width <= x.shape[2]:
        return x[:, :, starts[0] : starts[0] + width].clone()  # a copy, so that x can be freed
    index = torch.tensor(starts, device=x.device)[:, None] + torch.arange(width, device=x.device)
    index = index.clamp(0, x.shape[2] - 1)[:, None, :, None]
    return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))


def _zeroed(lengths: Sequence[int], rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(0 if row in rows else length for row, length in enumerate(lengths))
