"""Queries as integers of 8 bits: a row is D of them, and then the float32 that they are times, its step.

Half of what float16 takes on the wire. The largest element of a query is 127 steps or -127, the others are
rounded to the nearest step. What that costs of the recall: docs/adr/0034-integers-of-8-bits.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recollect import _rounding
from recollect._rounding import STEP_BYTES
from recollect.errors import InvalidArgumentError

Rows = npt.NDArray[np.uint8]

_MOST = np.float32(127)
_STEP_MAX = np.float32(float.fromhex("0x1.020406p+121"))  # the largest of which so many are a number still


def to_rows(argument: str, values: npt.NDArray[np.float32]) -> Rows:
    """Values [..., D] as rows [..., D + STEP_BYTES].

    Raises:
        InvalidArgumentError: Not all are finite, which integers cannot say.
    """
    rows, are_numbers = _rounding.to_int8(values) or _by_numpy(values)
    if not are_numbers:
        raise InvalidArgumentError(
            f"{argument} holds NaN or infinite values; all must be finite", argument=argument
        )
    return rows


def _by_numpy(values: npt.NDArray[np.float32]) -> tuple[Rows, bool]:
    dim = values.shape[-1]
    rows = np.zeros((*values.shape[:-1], dim + STEP_BYTES), dtype=np.uint8)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        return rows, False
    steps = np.minimum(largest / _MOST, _STEP_MAX)
    with np.errstate(divide="ignore", invalid="ignore"):  # where all is 0, or next to it, so is the step
        counted = np.where(steps > 0, np.rint(values / steps), np.float32(0))
    # A step below the normal numbers is not what it should be: there may be more of them.
    rows[..., :dim] = counted.clip(-_MOST, _MOST).astype(np.int8).view(np.uint8)
    rows[..., dim:] = steps.astype("<f4").view(np.uint8)
    return rows, True
