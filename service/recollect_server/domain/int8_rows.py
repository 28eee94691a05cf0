"""Integers of 8 bits: a row is D of them, and then the float32 that they are times, its step.

A bank so holds D + 4 bytes of a value in place of 2 D, and queries travel in as many. The largest element of
a row is 127 steps or -127, the others are rounded to the nearest step: none is off by more than half a step,
which is a 254th of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recollect_server.domain.arrays import Float32, RowBytes
from recollect_server.domain.spec import STEP_BYTES

MOST = np.float32(127)

LOWEST = 128
"""Nothing makes -128 here, but whoever sends rows may."""

STEP_MAX = np.float32(float.fromhex("0x1.020406p+121"))
"""The largest of which so many are a number still. The kernels have it, too."""


@dataclass(frozen=True, slots=True)
class Int8Array:
    """Elements [..., D] as rows [..., D + STEP_BYTES]."""

    raw: RowBytes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the elements."""
        return (*self.raw.shape[:-1], self.raw.shape[-1] - STEP_BYTES)

    @property
    def steps(self) -> Float32:
        """What the integers of each row are times, [...]; as it came."""
        return _steps(self.raw)[..., 0]


def pack(values: Float32) -> RowBytes:
    """Values [..., D] as rows [..., D + STEP_BYTES]. The kernels do the same, bit for bit (`rc_to_int8`)."""
    dim = values.shape[-1]
    rows = np.empty((*values.shape[:-1], dim + STEP_BYTES), dtype=np.uint8)
    steps = np.minimum(np.abs(values).max(axis=-1, keepdims=True) / MOST, STEP_MAX)
    with np.errstate(divide="ignore", invalid="ignore"):  # where all is 0, or next to it, so is the step
        counted = np.where(steps > 0, np.rint(values / steps), np.float32(0))
    # A step below the normal numbers is not what it should be: there may be more of them.
    rows[..., :dim] = counted.clip(-MOST, MOST).astype(np.int8).view(np.uint8)
    rows[..., dim:] = steps.astype("<f4").view(np.uint8)
    return rows


def unpack(rows: RowBytes) -> Float32:
    """Rows [..., D + STEP_BYTES] as values [..., D]."""
    dim = rows.shape[-1] - STEP_BYTES
    values: Float32 = rows[..., :dim].view(np.int8).astype(np.float32) * _steps(rows)
    return values


def _steps(rows: RowBytes) -> Float32:
    return np.ascontiguousarray(rows[..., -STEP_BYTES:]).view("<f4").astype(np.float32, copy=False)
