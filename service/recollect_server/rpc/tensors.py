"""Tensors of the wire as arrays of the domain, and back: viewed, not copied, on the way in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Float32, Int64, Room
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.spec import Dtype

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


def dense(argument: str, tensor: pb.Tensor, *, room: Room | None = None) -> DenseArray:
    """A floating-point tensor.

    Args:
        argument: What it is.
        tensor: Of the wire.
        room: Of the request's region, where its bytes may lie; they are copied, since others write there.

    Raises:
        InvalidArgumentError: Unknown dtype, data that does not fill the shape, or bytes beyond the region.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgumentError(
            argument, f"has dtype {dtype_name(tensor.dtype)}; expected float32, float16 or bfloat16"
        )
    size_bytes = _size_bytes(argument, tensor, dtype.itemsize_bytes)
    if tensor.HasField("offset"):
        data: bytes | npt.NDArray[np.uint8] = _copied(argument, tensor, size_bytes, room)
    else:
        data = _filled(argument, tensor, size_bytes)
    raw = np.frombuffer(data, dtype=np.dtype(RAW_TYPES[dtype]).newbyteorder("<"))
    return DenseArray(raw.reshape(tuple(tensor.shape)), dtype)


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
    data = _filled("ids", offsets, _size_bytes("ids", offsets, 4))
    packed = np.frombuffer(data, dtype="<i4").reshape(tuple(offsets.shape))
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
    little = array.raw.astype(array.raw.dtype.newbyteorder("<"), copy=False)
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


def _size_bytes(argument: str, tensor: pb.Tensor, itemsize: int) -> int:
    if len(tensor.shape) > RANK_MAX:
        raise InvalidArgumentError(argument, f"has {len(tensor.shape)} dimensions; {RANK_MAX} are the most")
    if any(not 0 <= size <= SIZE_MAX for size in tensor.shape):
        raise InvalidArgumentError(
            argument, f"has shape {list(tensor.shape)}; sizes are from 0 to {SIZE_MAX}"
        )
    return math.prod(tensor.shape) * itemsize


def _filled(argument: str, tensor: pb.Tensor, size_bytes: int) -> bytes:
    if len(tensor.data) != size_bytes:
        raise InvalidArgumentError(
            argument,
            f"has {len(tensor.data)} bytes of data; shape {list(tensor.shape)} takes {size_bytes}",
        )
    return tensor.data


def _copied(argument: str, tensor: pb.Tensor, size_bytes: int, room: Room | None) -> npt.NDArray[np.uint8]:
    if room is None:
        raise InvalidArgumentError(argument, "has an offset, and the request names no region that it is in")
    start, stop = tensor.offset, tensor.offset + size_bytes
    if tensor.data or not 0 <= start <= stop <= room.memory.size:
        raise InvalidArgumentError(
            argument,
            f"lies at bytes {start} to {stop} of a region of {room.memory.size}, "
            f"with {len(tensor.data)} bytes of data beside it",
        )
    return room.memory[start:stop].copy()


def dtype_name(dtype: int) -> str:
    """What people call a number of the wire's DType; says so if there is no such one."""
    names = pb.DType.DESCRIPTOR.values_by_number
    return names[dtype].name.removeprefix("DTYPE_").lower() if dtype in names else f"number {dtype}"
