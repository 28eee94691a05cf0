"""How a large call becomes several under the server's limits, and several answers one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from recollect._results import Limits
from recollect.errors import InvalidArgumentError

Scalar = TypeVar("Scalar", bound=np.generic)

# Beside a message's tensors the server takes as much more (memory.proto, Limits).
_BESIDE_BYTES_MAX = 64 * 1024
# Tags, lengths and shapes of a message with a handful of tensors, and the few scalar fields.
_ENVELOPE_BYTES = 512
# Per row: its stream's tag and length, and up to three int64 as varints.
_ROW_BYTES = 40


@dataclass(frozen=True, slots=True)
class Part:
    """Some batch rows and some tokens of a call."""

    rows: slice
    tokens: slice


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What one token of one row weighs, on the way up and on the way down."""

    up: int
    down: int


def split_grid(
    rows: int,
    tokens: int,
    weight: TokenBytes,
    *,
    names: Sequence[str],
    namespace: str,
    limits: Limits,
    hint: str,
    down_bytes_max: int | None = None,
) -> list[Part]:
    """Parts of at most `limits`, each near the same size: whole rows if one fits, else pieces of a row.

    Parts of the same rows follow each other, in the order of their tokens.

    Args:
        rows: B.
        tokens: T.
        weight: Of one token of one row, all heads.
        names: The rows' streams; their lengths count.
        namespace: Its name; its length counts.
        limits: The server's.
        hint: What to do if a single token is too large.
        down_bytes_max: Of an answer that is streamed; None: it is a message like the question.

    Raises:
        InvalidArgumentError: One token alone is beyond the limit.
    """
    token_bytes = max(weight.up, weight.down)
    row_bytes = _ROW_BYTES + max(len(name.encode()) for name in names)
    rows_cap = min(rows, limits.rows_max or rows)
    tokens_cap = min(tokens, limits.tokens_max or tokens)
    if limits.message_bytes_max:
        tensors = limits.message_bytes_max
        beside = _BESIDE_BYTES_MAX - _ENVELOPE_BYTES - len(namespace.encode())
        budgets = [(tensors, weight.up), (down_bytes_max or tensors, weight.down)]
        rows_fit = min(room // max(tokens_cap * each, 1) for room, each in budgets)
        if rows_fit < 1:
            rows_fit = 1
            tokens_cap = min(tokens_cap, *(room // max(each, 1) for room, each in budgets))
        rows_cap = min(rows_cap, rows_fit, max(1, beside // row_bytes))
    if tokens_cap < 1:
        raise InvalidArgumentError(
            f"one token of one row is {token_bytes} bytes in this call and cannot be split; the server takes "
            f"messages of at most {limits.message_bytes_max} bytes. {hint}",
            reason="MESSAGE_TOO_LARGE",
        )
    token_slices = even_slices(tokens, tokens_cap)
    return [Part(row, token) for row in even_slices(rows, rows_cap) for token in token_slices]


def even_slices(length: int, size_max: int) -> list[slice]:
    """Consecutive slices of at most `size_max` that cover `length`, as few and as even as possible."""
    if length <= size_max:
        return [slice(0, length)]
    count = -(-length // size_max)
    bounds = [length * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


class Assembly(Generic[Scalar]):
    """Puts the arrays [rows, heads, tokens, ...] of parts together. A single part is kept as it is."""

    def __init__(self, parts: Sequence[Part], shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> None:
        self._parts = parts
        self._shape = shape
        self._dtype = dtype
        self._whole: npt.NDArray[Scalar] | None = None

    def shape_of(self, index: int) -> tuple[int, ...]:
        """The shape that part `index` must have."""
        part = self._parts[index]
        rows, tokens = part.rows.stop - part.rows.start, part.tokens.stop - part.tokens.start
        return (rows, self._shape[1], tokens, *self._shape[3:])

    def put(self, index: int, array: npt.NDArray[Scalar]) -> None:
        """Takes the array of part `index`."""
        if len(self._parts) == 1:
            self._whole = array
            return
        if self._whole is None:
            self._whole = np.empty(self._shape, self._dtype)
        part = self._parts[index]
        self._whole[part.rows, :, part.tokens] = array

    @property
    def whole(self) -> npt.NDArray[Scalar]:
        """The array of the whole call, after every part was put."""
        assert self._whole is not None
        return self._whole


class RowSequences:
    """Collects next_sequences [B]: of the parts of a row, the last one's count."""

    def __init__(self, parts: Sequence[Part], rows: int) -> None:
        self._parts = parts
        self._latest = [0] * rows
        self._from_token = [-1] * rows

    def put(self, index: int, sequences: Sequence[int]) -> None:
        """Takes those of part `index`; parts may come in any order."""
        part = self._parts[index]
        for row, sequence in zip(range(part.rows.start, part.rows.stop), sequences, strict=True):
            if part.tokens.start > self._from_token[row]:
                self._from_token[row] = part.tokens.start
                self._latest[row] = sequence

    @property
    def latest(self) -> tuple[int, ...]:
        """One for each row."""
        return tuple(self._latest)
