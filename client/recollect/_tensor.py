"""Arrays of the user to messages and back: NumPy or torch in, the same out."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from recollect._bits import WIRE_DTYPES, Ids, Wire
from recollect._numpy_arrays import NumpyArray
from recollect._results import DTYPE_NUMBERS, A, Array, Dtype
from recollect.errors import InternalError, InvalidArgumentError
from recollect.v1 import memory_pb2 as pb

if TYPE_CHECKING:
    import torch

A_co = TypeVar("A_co", bound=Array, covariant=True)
Scalar = TypeVar("Scalar", bound=np.generic)

_OFFSETS_MAX = 2**31 - 1
# 2 ** 100 is still a float32. A gradient that is smaller than the inverse is nothing.
_EXPONENT_MAX = 100
# Largest scaled gradient 2 ** -6: leaves float16 room above for the reply, and 18 bits of range below.
_HEADROOM = 6


class UserArray(Protocol[A_co]):
    """One array argument, and how to give results back in its likeness."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def likeness(self) -> Hashable: ...

    def is_widened(self, dtype: Dtype) -> bool: ...

    def to_wire(self, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None) -> Wire: ...

    def to_ids(self) -> Ids: ...

    def magnitudes(self) -> npt.NDArray[np.float32]: ...

    def give_floats(
        self, bits: Wire, dtype: Dtype, exponents: npt.NDArray[np.int32] | None = None
    ) -> A_co: ...

    def give_exact(self, values: npt.NDArray[np.generic]) -> A_co: ...

    def give_rows(self, given: Array, first: int, end: int) -> A_co: ...


def user_array(argument: str, array: A) -> UserArray[A]:
    """Wraps an argument.

    Raises:
        InvalidArgumentError: It is neither a NumPy array nor a torch tensor, or one that cannot be sent.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidArgumentError(
            f"{argument} must be an array without a mask, which would be lost; got a MaskedArray. "
            "Fill it (filled()), or take its data",
            argument=argument,
        )
    if isinstance(array, np.ndarray):
        return cast("UserArray[A]", NumpyArray(argument, array))
    loaded = sys.modules.get("torch")  # never imported here: if it is not loaded, this is no tensor
    if loaded is not None and isinstance(array, loaded.Tensor):
        from recollect._torch_arrays import TorchArray

        return cast("UserArray[A]", TorchArray(argument, cast("torch.Tensor", array)))
    raise InvalidArgumentError(
        f"{argument} must be a NumPy array or a torch tensor, got {type(array).__name__}", argument=argument
    )


def tensor_message(values: npt.NDArray[np.generic], number: pb.DType.ValueType) -> pb.Tensor:
    """Any slice of a wire array as a message: one copy."""
    return pb.Tensor(data=values.tobytes(), dtype=number, shape=values.shape)


def floats_message(bits: Wire, dtype: Dtype) -> pb.Tensor:
    """Wire floats as a message."""
    return tensor_message(bits, DTYPE_NUMBERS[dtype])


def read_floats(what: str, message: pb.Tensor, dtype: Dtype, shape: Sequence[int]) -> Wire:
    """Wire floats of a reply, as a read-only view of it.

    Raises:
        InternalError: The reply has another dtype, shape or length than the request implies.
    """
    wire = WIRE_DTYPES[dtype]
    data = _checked_data(what, message, DTYPE_NUMBERS[dtype], wire.itemsize, shape)
    return np.frombuffer(data, dtype=wire).reshape(shape)


def ids_message(ids: Ids, argument: str = "ids") -> pb.EntryIds:
    """int64 ids [B, Hq, T, K], -1 for none, as offsets from the smallest of each row."""
    rows = ids.reshape(ids.shape[0], -1)
    stored = rows >= 0
    first_ids = np.where(stored, rows, np.iinfo(np.int64).max).min(axis=1)
    first_ids = np.where(stored.any(axis=1), first_ids, 0)
    offsets = np.where(stored, rows - first_ids[:, None], -1)
    if offsets.max(initial=-1) > _OFFSETS_MAX:
        raise InvalidArgumentError(
            f"{argument} of one row must lie within {_OFFSETS_MAX} of each other; got {offsets.max()}",
            argument=argument,
        )
    packed = offsets.astype("<i4").reshape(ids.shape)
    return pb.EntryIds(offsets=tensor_message(packed, pb.DTYPE_INT32), first_ids=first_ids.tolist())


def read_ids(message: pb.EntryIds, shape: Sequence[int]) -> Ids:
    """int64 ids [B, Hq, T, K] of a reply; -1 for none."""
    data = _checked_data("ids", message.offsets, pb.DTYPE_INT32, 4, shape)
    return unpack_ids(np.frombuffer(data, dtype="<i4").reshape(shape), message.first_ids)


def unpack_ids(offsets: npt.NDArray[np.int32], first_ids: Sequence[int]) -> Ids:
    """int64 ids [B, Hq, T, K]; -1 for none.

    Raises:
        InternalError: There is not one first id for each row.
    """
    rows = offsets.shape[0]
    if len(first_ids) != rows:
        raise _bad_reply("ids", f"{len(first_ids)} first_ids", f"{rows}")
    ids = offsets.astype(np.int64)
    ids += np.array(first_ids, dtype=np.int64)[:, None, None, None]
    if offsets.min(initial=0) < 0:
        ids[offsets < 0] = -1
    return ids


def check_header(what: str, message: pb.Tensor, number: pb.DType.ValueType, shape: Sequence[int]) -> None:
    """Checks a tensor whose data comes in chunks.

    Raises:
        InternalError: The reply has another dtype or shape than the request implies, or data.
    """
    _checked_data(what, message, number, 0, shape)


def array_at(
    offset: int, shape: Sequence[int], dtype: np.dtype[Scalar], *, memory: npt.NDArray[np.uint8]
) -> npt.NDArray[Scalar]:
    """An array of a reply that lies in shared memory; a view.

    Raises:
        InternalError: It lies elsewhere.
    """
    end = offset + dtype.itemsize * math.prod(shape)
    if not 0 <= offset <= end <= memory.size:
        raise _bad_reply("array", f"bytes {offset} to {end}", f"some of the {memory.size} that are shared")
    return memory[offset:end].view(dtype).reshape(shape)


def gradient_exponents(
    grad_output: UserArray[Array], grad_lse: UserArray[Array] | None
) -> npt.NDArray[np.int32]:
    """Per query [B, Hq, T], the power of two by which to divide its gradients before they become float16.

    The query gradient is linear in them, so this is exact; without it, small gradients would vanish.
    """
    largest = grad_output.magnitudes()
    if grad_lse is not None:
        largest = np.maximum(largest, np.abs(grad_lse.to_wire("float32")))
    finite = np.isfinite(largest)
    _, exponents = np.frexp(np.where(finite, largest, np.float32(0)))
    scaled = np.clip(exponents + _HEADROOM, -_EXPONENT_MAX, _EXPONENT_MAX)
    return np.where(finite & (largest > 0), scaled, 0).astype(np.int32)


def _checked_data(
    what: str, message: pb.Tensor, number: pb.DType.ValueType, itemsize: int, shape: Sequence[int]
) -> bytes:
    data, length = message.data, itemsize * math.prod(shape)  # each look at `data` copies it
    if message.dtype != number:
        raise _bad_reply(what, f"dtype {message.dtype}", f"{number}")
    if list(message.shape) != list(shape):
        raise _bad_reply(what, f"shape {list(message.shape)}", f"{list(shape)}")
    if len(data) != length:
        raise _bad_reply(what, f"{len(data)} bytes", f"{length}")
    return data


def _bad_reply(what: str, came: str, expected: str) -> InternalError:
    return InternalError(
        f"The server's {what} came with {came}, expected {expected}. "
        "Are client and server of the same version?",
        reason="BAD_REPLY",
    )
