"""Valid messages of the wire, to be spoilt one field at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recollect.v1 import memory_pb2 as pb

LAYER, HEADS, KEY_DIM, VALUE_DIM, CAPACITY = 3, 2, 4, 3, 16
ROWS, QUERY_HEADS, TOKENS, TOP_K = 2, 4, 3, 5


def tensor(array: NDArray[np.generic], dtype: pb.DType.ValueType = pb.DTYPE_FLOAT32) -> pb.Tensor:
    """A tensor whose bytes are those of the array."""
    return pb.Tensor(data=array.tobytes(), dtype=dtype, shape=array.shape)


def floats(*shape: int, fill: float = 0.5) -> pb.Tensor:
    """float32 of one value."""
    return tensor(np.full(shape, fill, dtype=np.float32))


def spec(**changes: float) -> pb.NamespaceSpec:
    """A namespace of float32."""
    valid = {
        "heads": HEADS,
        "key_dim": KEY_DIM,
        "value_dim": VALUE_DIM,
        "capacity": CAPACITY,
        "dtype": int(pb.DTYPE_FLOAT32),
        **changes,
    }
    made = pb.NamespaceSpec(layers=[LAYER])
    for name, value in valid.items():
        setattr(made, name, value)
    return made


def create(name: str) -> pb.CreateNamespaceRequest:
    """Makes the namespace that the other messages speak of."""
    return pb.CreateNamespaceRequest(name=name, spec=spec())


def add(name: str, *, streams: Sequence[str] = ("a", "b"), tokens: int = TOKENS) -> pb.AddRequest:
    """Adds to two streams."""
    return pb.AddRequest(
        namespace=name,
        layer=LAYER,
        streams=streams,
        keys=floats(len(streams), HEADS, tokens, KEY_DIM),
        values=floats(len(streams), HEADS, tokens, VALUE_DIM),
    )


def search(name: str) -> pb.SearchRequest:
    """Searches two streams."""
    queries = floats(ROWS, QUERY_HEADS, TOKENS, KEY_DIM)
    return pb.SearchRequest(
        namespace=name, layer=LAYER, streams=["a", "b"], queries=queries, top_k=TOP_K, include_keys=True
    )


def attend(name: str) -> pb.AttendRequest:
    """Attends to two streams."""
    queries = floats(ROWS, QUERY_HEADS, TOKENS, KEY_DIM)
    return pb.AttendRequest(
        namespace=name, layer=LAYER, streams=["a", "b"], queries=queries, top_k=TOP_K, scale=0.5
    )


def attend_backward(name: str, ids: pb.EntryIds) -> pb.AttendBackwardRequest:
    """The gradient of `attend`."""
    return pb.AttendBackwardRequest(
        namespace=name,
        layer=LAYER,
        streams=["a", "b"],
        queries=floats(ROWS, QUERY_HEADS, TOKENS, KEY_DIM),
        ids=ids,
        scale=0.5,
        grad_output=floats(ROWS, QUERY_HEADS, TOKENS, VALUE_DIM),
        grad_lse=floats(ROWS, QUERY_HEADS, TOKENS),
    )


def evict(name: str) -> pb.EvictRequest:
    """Evicts the oldest of two streams."""
    return pb.EvictRequest(namespace=name, streams=["a", "b"], oldest=1)
