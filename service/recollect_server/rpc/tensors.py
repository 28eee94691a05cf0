"""Tensors of the wire as arrays of the domain, and back: viewed, not copied, on the way in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Room
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.int8_rows import Int8Array
from recollect_server.domain.spec import STEP_BYTES, Dtype

Scalar = TypeVar("Scalar", bound=np.generic)

DTYPES = {
    pb.DTYPE_FLOAT32: Dtype.FLOAT32,
    pb.DTYPE_FLOAT16: Dtype.FLOAT16,
    pb.DTYPE_BFLOAT16: Dtype.BFLOAT16,
}
RANK_MAX, SIZE_MAX = 8, 2**31 - 1
"""Of any tensor, so that NumPy is never asked for a shape that it refuses."""

FIRST_ID_MAX = 2**63 - 1 - SIZE_MAX
"""So that an offset of 31 bits cannot carry an id beyond int64."""

NO_ID = np.uint64(2**64 - 1)
"""-1 as an unsigned number."""

WIRE_DTYPES = {dtype: number for number, dtype in DTYPES.items()}

LITTLE_ENDIAN: dict[Dtype, np.dtype[np.float32 | np.float16 | np.uint16]] = {
    Dtype.FLOAT32: np.dtype("<f4"),
    Dtype.FLOAT16: np.dtype("<f2"),
    Dtype.BFLOAT16: np.dtype("<u2"),
}
"""Elements as they travel."""


def dense(argument: str, tensor: pb.Tensor, *, room: Room | None = None) -> DenseArray:
    """A floating-point tensor.

    Args:
        argument: What it is.
        tensor: Of the wire.
        room: Of the request's region, where its bytes may lie; they are copied, since others write there.

    Raises:
        InvalidArgumentError: Unknown dtype, data that does not fill the shape, or bytes beyond the region.
    """
    dtype = _dtype(argument, "has dtype", tensor.dtype)
    return DenseArray(_elements(argument, tensor, LITTLE_ENDIAN[dtype], room=room), dtype)


def queries(tensor: pb.Tensor, *, room: Room | None = None) -> DenseArray | Int8Array:
    """Queries, which may be rows of integers: see `dense`.

    Raises:
        InvalidArgumentError: As `dense`.
    """
    if tensor.dtype != pb.DTYPE_INT8:
        return dense("queries", tensor, room=room)
    if not tensor.shape:
        raise InvalidArgumentError("queries", "has no dimensions; rows of int8 are one at least")
    return Int8Array(_elements("queries", tensor, np.dtype(np.uint8), room=room, more=STEP_BYTES))


def dtype_or_none(argument: str, number: pb.DType.ValueType) -> Dtype | None:
    """The dtype that a call wants; None if it says nothing.

    Raises:
        InvalidArgumentError: It is not one of floating-point numbers.
    """
    if number == pb.DTYPE_UNSPECIFIED:
        return None
    return _dtype(argument, "is", number)


def float32(argument: str, tensor: pb.Tensor) -> Float32:
    """A tensor that has to be float32.

    Raises:
        InvalidArgumentError: It is not, or its data does not fill the shape.
    """
    array = dense(argument, tensor)
    if array.dtype is not Dtype.FLOAT32:
        raise InvalidArgumentError(argument, f"is {array.dtype.value}; expected float32")
    return array.float32()


def entry_ids(ids: pb.EntryIds) -> Int64:
    """Ids int64 [B, Hq, T, K], -1 where there is no entry.

    Raises:
        InvalidArgumentError: Not int32 offsets of four dimensions with one first id per row.
    """
    offsets = ids.offsets
    if offsets.dtype != pb.DTYPE_INT32:
        raise InvalidArgumentError("ids", f"has offsets of dtype {dtype_name(offsets.dtype)}; expected int32")
    packed = _elements("ids", offsets, np.dtype("<i4"))
    if packed.ndim != 4 or len(ids.first_ids) != packed.shape[0]:
        raise InvalidArgumentError(
            "ids",
            f"has offsets of shape {list(packed.shape)} and {len(ids.first_ids)} first_ids; expected "
            "[B, Hq, T, K] and B",
        )
    if any(not 0 <= first <= FIRST_ID_MAX for first in ids.first_ids):
        raise InvalidArgumentError(
            "ids", f"has first_ids {list(ids.first_ids)[:8]}; they are from 0 to {FIRST_ID_MAX}"
        )
    first = np.array(ids.first_ids, dtype=np.int64)[:, None, None, None]
    return np.where(packed >= 0, packed + first, np.int64(-1))


def to_wire(array: DenseArray) -> pb.Tensor:
    """A floating-point tensor for the wire."""
    little = array.raw.astype(LITTLE_ENDIAN[array.dtype], copy=False)
    return pb.Tensor(data=little.tobytes(), dtype=WIRE_DTYPES[array.dtype], shape=array.shape)


def float32_to_wire(array: Float32) -> pb.Tensor:
    """A float32 tensor for the wire."""
    return to_wire(DenseArray(array, Dtype.FLOAT32))


@dataclass(frozen=True, slots=True)
class PackedIds:
    """Ids as int32 offsets [B, Hq, T, K] from the smallest of each row, -1 for none; first_ids [B]."""

    offsets: npt.NDArray[np.int32]
    first_ids: list[int]


def packed_ids(ids: Int64) -> PackedIds:
    """Packs ids [B, Hq, T, K]. Half the bytes of int64.

    A row's ids lie within one bank. Evictions by id can spread them wider than 31 bits only after two
    thousand million further adds, so the spread is checked and not assumed.
    """
    # Without its sign, -1 is larger than any id.
    smallest = ids.reshape(ids.shape[0], -1).view(np.uint64).min(axis=1, initial=NO_ID)
    first = np.where(smallest == NO_ID, 0, smallest).astype(np.int64)
    offsets = np.maximum(ids - first[:, None, None, None], -1)
    if offsets.max(initial=0) > SIZE_MAX:
        raise OverflowError("ids of one row are more than 31 bits apart")
    return PackedIds(offsets.astype("<i4"), first.tolist())


def entry_ids_to_wire(ids: Int64) -> pb.EntryIds:
    """Packed ids [B, Hq, T, K] for the wire."""
    packed = packed_ids(ids)
    tensor = pb.Tensor(data=packed.offsets.tobytes(), dtype=pb.DTYPE_INT32, shape=ids.shape)
    return pb.EntryIds(offsets=tensor, first_ids=packed.first_ids)


def in_room(array: npt.NDArray[np.generic], dtype: pb.DType.ValueType, room: Room) -> pb.Tensor:
    """A tensor for the wire whose bytes lie in a region; they are put there if they do not yet."""
    offset = room.offset_of(array)
    if offset is None:
        little = room.array(array.shape, array.dtype.newbyteorder("<"))
        little[...] = array
        offset = room.offset_of(little)
    return pb.Tensor(dtype=dtype, shape=array.shape, offset=offset)


def _dtype(argument: str, verb: str, number: pb.DType.ValueType) -> Dtype:
    dtype = DTYPES.get(number)
    if dtype is None:
        raise InvalidArgumentError(
            argument, f"{verb} {dtype_name(number)}; expected float32, float16 or bfloat16"
        )
    return dtype


def _elements(
    argument: str, tensor: pb.Tensor, dtype: np.dtype[Scalar], *, room: Room | None = None, more: int = 0
) -> npt.NDArray[Scalar]:
    """`more`: so many elements lie behind each row."""
    # Each look at `data` copies it.
    shape, data = tuple(tensor.shape), tensor.data
    if len(shape) > RANK_MAX:
        raise InvalidArgumentError(argument, f"has {len(shape)} dimensions; {RANK_MAX} are the most")
    # Together, too, also where one of them is 0.
    if shape and not (min(shape) >= 0 and math.prod(filter(None, shape)) <= SIZE_MAX):
        raise InvalidArgumentError(
            argument, f"has shape {list(shape)}; sizes are from 0 to {SIZE_MAX}, and so are their products"
        )
    if more:
        shape = (*shape[:-1], shape[-1] + more)
    expected = math.prod(shape) * dtype.itemsize
    if tensor.HasField("offset") and not data:
        return _copied(argument, tensor.offset, expected, room).view(dtype).reshape(shape)
    if len(data) != expected:
        raise InvalidArgumentError(
            argument, f"has {len(data)} bytes of data; shape {list(tensor.shape)} takes {expected}"
        )
    if tensor.HasField("offset"):
        raise InvalidArgumentError(argument, "has data, and an offset of data elsewhere")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _copied(argument: str, offset: int, size_bytes: int, room: Room | None) -> npt.NDArray[np.uint8]:
    if room is None:
        raise InvalidArgumentError(argument, "has an offset, and the request names no region that it is in")
    end = offset + size_bytes
    if not 0 <= offset <= end <= room.memory.size:
        raise InvalidArgumentError(
            argument, f"lies at bytes {offset} to {end} of a region, of which {room.memory.size} may be used"
        )
    return room.memory[offset:end].copy()


def dtype_name(dtype: int) -> str:
    """What people call a number of the wire's DType; says so if there is no such one."""
    names = pb.DType.DESCRIPTOR.values_by_number
    return names[dtype].name.removeprefix("DTYPE_").lower() if dtype in names else f"number {dtype}"
