"""A user's NumPy array, to and from the wire."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import numpy as np
import numpy.typing as npt

from recollect._bits import LARGEST, Floats, Ids, Wire, from_bits, has_infinite, to_bits, to_float32
from recollect._results import Array, Dtype
from recollect.errors import InvalidArgumentError

_FLOAT_BYTES = (2, 4, 8)


class NumpyArray:
    """One argument that is a NumPy array. Implements `recollect._tensor.UserArray`."""

    def __init__(self, argument: str, array: npt.NDArray[np.generic]) -> None:
        self._argument = argument
        self._array = array
        self.shape: tuple[int, ...] = array.shape

    @property
    def likeness(self) -> Hashable:
        """What results take after."""
        return self._array.dtype

    def is_widened(self, dtype: Dtype) -> bool:
        """Whether results of that dtype become float32 on this machine's processor."""
        return dtype != "float32" and self._array.dtype == np.float32

    def floats(self) -> Floats:
        """The array, if its dtype is one that can travel."""
        dtype = self._array.dtype
        if dtype.kind != "f" or dtype.itemsize not in _FLOAT_BYTES:
            raise InvalidArgumentError(
                f"{self._argument} must have dtype float16, float32 or float64 (NumPy), got {dtype}",
                argument=self._argument,
            )
        return cast("Floats", self._array)

    def to_wire(self, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None) -> Wire:
        """Converts, after a division by 2 ** exponents (one for each last axis) if given."""
        values = self.floats()
        if exponents is not None:
            values = np.ldexp(values.astype(np.float32, copy=False), -exponents[..., None])
        bits = to_bits(values, dtype)
        if values.dtype != bits.dtype and has_infinite(bits, dtype):
            raise out_of_range(self._argument, values.dtype.name, dtype, float(np.nanmax(np.abs(values))))
        return bits

    def to_ids(self) -> Ids:
        """The array as int64; a view where it is."""
        if self._array.dtype.kind not in "iu":
            raise InvalidArgumentError(
                f"{self._argument} must have dtype int64, got {self._array.dtype}", argument=self._argument
            )
        return self._array.astype(np.int64, copy=False)

    def magnitudes(self) -> npt.NDArray[np.float32]:
        """The largest absolute value of each last axis."""
        largest: npt.NDArray[np.float32] = np.abs(self.floats().astype(np.float32, copy=False)).max(axis=-1)
        return largest

    def give_floats(
        self, bits: Wire, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[np.generic]:
        """Values from the wire in this array's dtype, multiplied by 2 ** exponents if given."""
        values = from_bits(bits, dtype)
        if exponents is not None:
            values = np.ldexp(values.astype(np.float32, copy=False), exponents[..., None])
        if values.dtype == self._array.dtype:
            return _read_only(values)
        if values.dtype == np.float16 and self._array.dtype == np.float32:
            return _read_only(to_float32(values.astype(np.float16, copy=False)))
        with np.errstate(over="ignore", under="ignore"):
            return _read_only(values.astype(self._array.dtype))

    def give_exact(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """float32 scores or int64 ids, whose dtype stays."""
        return _read_only(values)

    def give_rows(self, given: Array, first: int, end: int) -> npt.NDArray[np.generic]:
        """Rows of what was given, without the others in memory."""
        return _read_only(cast("npt.NDArray[np.generic]", given)[first:end].copy())


def out_of_range(argument: str, source: str, dtype: Dtype, largest: float) -> InvalidArgumentError:
    """The error for values that are finite in the user's dtype and not in the namespace's, or not at all."""
    if np.isinf(largest):
        return InvalidArgumentError(
            f"{argument} holds infinite values; all must be finite", argument=argument
        )
    return InvalidArgumentError(
        f"{argument} holds {largest:g} ({source}), beyond the largest {dtype} value, {LARGEST[dtype]:g}: it "
        f"would be infinite. The namespace stores {dtype}: scale the values, or make it with another dtype",
        argument=argument,
        reason="OUT_OF_RANGE",
    )


def _read_only(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    # A view of a received message cannot be written to; so that this does not depend on dtypes and on how
    # a call was split, no result can.
    values.flags.writeable = False
    return values
