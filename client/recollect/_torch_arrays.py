"""A user's torch tensor, to and from the wire. Imported only after the user has passed one."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from recollect._bits import WIRE_DTYPES, Ids, Wire
from recollect._numpy_arrays import out_of_range
from recollect._results import Array, Dtype
from recollect.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
else:
    torch = sys.modules["torch"]  # the tensor came from there: no import of our own

_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class TorchArray:
    """One argument that is a torch tensor, on any device. Implements `recollect._tensor.UserArray`.

    Gradients are not followed: memory takes none, and the gradient of queries is a call of its own.
    """

    def __init__(self, argument: str, tensor: torch.Tensor) -> None:
        if tensor.layout != torch.strided or tensor.is_meta:
            raise InvalidArgumentError(
                f"{argument} must be a dense tensor with values; got {tensor.layout} on {tensor.device}",
                argument=argument,
            )
        self._argument = argument
        self._tensor = tensor.detach().resolve_neg()  # NumPy has no views that are to be negated
        self.shape: tuple[int, ...] = tuple(tensor.shape)

    @property
    def likeness(self) -> Hashable:
        """What results take after."""
        return self._tensor.dtype, self._tensor.device

    def is_widened(self, dtype: Dtype) -> bool:
        """Whether results of that dtype become float32 on this machine's processor."""
        of_processor = self._tensor.device.type == "cpu"
        return of_processor and dtype != "float32" and self._tensor.dtype == torch.float32

    def _floats(self) -> torch.Tensor:
        if self._tensor.dtype not in _FLOATS:
            raise InvalidArgumentError(
                f"{self._argument} must have dtype float16, bfloat16, float32 or float64 (torch), "
                f"got {self._tensor.dtype}",
                argument=self._argument,
            )
        return self._tensor

    def to_wire(self, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None) -> Wire:
        """Converts on the tensor's device, then copies from there."""
        values = self._floats()
        if exponents is not None:
            values = _scaled(values, -exponents)
        converted = values.to(_DTYPES[dtype])
        if converted.dtype != values.dtype and bool(torch.isinf(converted).any()):
            largest = values.abs().nan_to_num(nan=0.0, posinf=float("inf")).max().item()
            raise out_of_range(self._argument, str(values.dtype), dtype, float(largest))
        if dtype == "bfloat16":
            return _to_numpy(converted.contiguous().view(torch.int16)).view(WIRE_DTYPES[dtype])
        return _to_numpy(converted).astype(WIRE_DTYPES[dtype], copy=False)

    def to_ids(self) -> Ids:
        """The tensor as int64 on the CPU."""
        if self._tensor.dtype not in _INTEGERS:
            raise InvalidArgumentError(
                f"{self._argument} must have dtype int64, got {self._tensor.dtype}", argument=self._argument
            )
        return cast("Ids", _to_numpy(self._tensor.to(torch.int64)))

    def magnitudes(self) -> npt.NDArray[np.float32]:
        """The largest absolute value of each last axis."""
        return cast("npt.NDArray[np.float32]", _to_numpy(self._floats().abs().amax(dim=-1).float()))

    def give_floats(
        self, bits: Wire, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None
    ) -> torch.Tensor:
        """Values from the wire on this tensor's device, in its dtype, times 2 ** exponents if given."""
        received = (
            _from_numpy(bits.view("<i2")).view(torch.bfloat16) if dtype == "bfloat16" else _from_numpy(bits)
        )
        received = received.to(self._tensor.device)  # before the dtype: fewer bytes to a device
        if exponents is not None:
            received = _scaled(received, exponents)
        return received.to(self._tensor.dtype)

    def give_exact(self, values: npt.NDArray[np.generic]) -> torch.Tensor:
        """float32 scores or int64 ids on this tensor's device."""
        return _from_numpy(values).to(self._tensor.device)

    def give_rows(self, given: Array, first: int, end: int) -> torch.Tensor:
        """Rows of what was given, without the others in memory."""
        return cast("torch.Tensor", given)[first:end].clone()


def _scaled(values: torch.Tensor, exponents: npt.NDArray[np.int32]) -> torch.Tensor:
    factors = torch.from_numpy(np.ldexp(np.float32(1), exponents[..., None])).to(values.device)
    return values.float() * factors


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    return tensor.cpu().numpy()


def _from_numpy(values: npt.NDArray[np.generic]) -> torch.Tensor:
    # torch has no read-only tensors, and what was received is read-only.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
