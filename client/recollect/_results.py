"""What calls return and what servers and namespaces are described by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Literal, Protocol, TypeVar

from recollect.errors import InternalError
from recollect.v1 import memory_pb2 as pb

Dtype = Literal["float32", "float16", "bfloat16"]
ValueDtype = Literal["float32", "float16", "bfloat16", "int8"]
QueryDtype = Literal["int8"]
Index = Literal["exact", "ivf", "auto"]

INDEX_DEFAULT: Index = "auto"
RECALL_DEFAULT = 0.95
"""Of namespaces that say nothing of it; the server's defaults too."""


class Array(Protocol):
    """What a NumPy array and a torch tensor have in common, as far as types go."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> object: ...

    @property
    def ndim(self) -> int: ...


A = TypeVar("A", bound=Array)


@dataclass(frozen=True, slots=True)
class AddResult:
    """What `add` did.

    Attributes:
        first_ids: Per row, the id of its first new entry.
        next_sequences: Per row, the sequence that the stream's layer has reached: pass it as `min_sequences`.
        evicted: Entries that made room.
    """

    first_ids: tuple[int, ...]
    next_sequences: tuple[int, ...]
    evicted: int


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult(Generic[A]):
    """The top_k entries of each query, best first. Arrays are of the queries' kind; NumPy ones are read-only.

    On the server's machine, large `keys` and `values` may lie in memory that is shared with it. They are
    their caller's alone until he has no view of them any more; a copy of a small piece lets go of the rest.
    Where a process is forked while it has such a result, parent and child have the same memory: who writes
    to its tensors in place writes to those of the other one. Clone them first.

    Attributes:
        scores: Inner products, float32 [B, Hq, T, K]; -inf where the stream had fewer than K entries.
        ids: int64 [B, Hq, T, K]; -1 there.
        keys: [B, Hq, T, K, Dk] in the queries' dtype, 0 there; None unless included.
        values: [B, Hq, T, K, Dv] likewise.
        next_sequences: Per row, the sequence that was searched.
    """

    scores: A
    ids: A
    keys: A | None
    values: A | None
    next_sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AttendResult(Generic[A]):
    """Attention over the retrieved entries. Arrays are of the queries' kind; NumPy ones are read-only.

    Attributes:
        output: [B, Hq, T, Dv] in the queries' dtype; 0 where the memory is empty.
        lse: log-sum-exp of the scaled scores, float32 [B, Hq, T]; -inf where the memory is empty.
        ids: int64 [B, Hq, T, K], -1 where the stream had fewer than K entries; None with with_ids=False.
        next_sequences: Per row, the sequence that was searched.
    """

    output: A
    lse: A
    ids: A | None
    next_sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EvictResult:
    """What `evict` did.

    Attributes:
        evicted: Entries removed, over all streams and layers named.
    """

    evicted: int


@dataclass(frozen=True, slots=True)
class BankStats:
    """One stream's layer, and what answers its reads.

    Attributes:
        stream: Its name.
        layer: Its number.
        entries: Stored now.
        first_id: Of the oldest entry; `next_sequence` if there is none.
        next_sequence: Id that the next entry will have.
        bytes: Allocated for keys, values and indexes, and 4 KiB for each bank.
        index: That answers now: "exact" or "ivf".
        lists: Of the inverted file; 0 if there is none.
        probes: Of those lists, how many a query looks into; 0 if there is none.
        recall: Of queries that were compared lately with exact search; None before any.
        sampled: Queries compared since the bank was made.
        reason: Why the search is exact where the namespace asks for an inverted file, or what of the file is
            under way: made, filled or judged anew; "" otherwise.
    """

    stream: str
    layer: int
    entries: int
    first_id: int
    next_sequence: int
    bytes: int
    index: Index = "exact"
    lists: int = 0
    probes: int = 0
    recall: float | None = None
    sampled: int = 0
    reason: str = ""

    @classmethod
    def from_message(cls, message: pb.BankStats) -> BankStats:
        """From its wire form. A server that does not say what answers searches exactly."""
        return cls(
            stream=message.stream,
            layer=message.layer,
            entries=message.entries,
            first_id=message.first_id,
            next_sequence=message.next_sequence,
            bytes=message.bytes,
            index=_index_name(message.index, unsaid="exact"),
            lists=message.lists,
            probes=message.probes,
            recall=message.recall if message.HasField("recall") else None,
            sampled=message.sampled,
            reason=message.reason,
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """What a namespace holds.

    Attributes:
        streams: Streams that exist.
        entries: Over all streams and layers.
        bytes: Allocated for keys, values and indexes, and 4 KiB for each bank.
        banks: One for each layer of the streams asked about.
    """

    streams: int
    entries: int
    bytes: int
    banks: tuple[BankStats, ...]


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """What is fixed when a namespace is made.

    Attributes:
        layers: Transformer layers that have a memory.
        heads: Key and value heads (Hkv).
        key_dim: Size of a key (Dk).
        value_dim: Size of a value (Dv).
        capacity: Entries per stream and layer; the oldest make room.
        dtype: Of stored keys and values, and of all as they travel.
        value_dtype: Of stored values, where it is another: "int8".
        index: What answers reads: "exact", "ivf" (an inverted file), or "auto", what suits each bank.
        recall: Share of the true top_k that reads find on average.
    """

    layers: tuple[int, ...]
    heads: int
    key_dim: int
    value_dim: int
    capacity: int
    dtype: Dtype
    index: Index = INDEX_DEFAULT
    recall: float = RECALL_DEFAULT
    value_dtype: ValueDtype | None = None

    @classmethod
    def from_message(cls, message: pb.NamespaceSpec) -> NamespaceSpec:
        """From its wire form."""
        return cls(
            layers=tuple(message.layers),
            heads=message.heads,
            key_dim=message.key_dim,
            value_dim=message.value_dim,
            capacity=message.capacity,
            dtype=_dtype_name(message.dtype),
            index=_index_name(message.index, unsaid=INDEX_DEFAULT),
            recall=message.recall or RECALL_DEFAULT,
            value_dtype=_value_dtype_name(message.value_dtype),
        )

    def to_message(self) -> pb.NamespaceSpec:
        """To its wire form."""
        return pb.NamespaceSpec(
            layers=self.layers,
            heads=self.heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            capacity=self.capacity,
            dtype=DTYPE_NUMBERS[self.dtype],
            index=INDEX_NUMBERS[self.index],
            recall=self.recall,
            value_dtype=pb.DTYPE_UNSPECIFIED if self.value_dtype is None else pb.DTYPE_INT8,
        )


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """A namespace as it is listed."""

    name: str
    spec: NamespaceSpec
    created_at: datetime

    @classmethod
    def from_message(cls, message: pb.Namespace) -> NamespaceInfo:
        """From its wire form."""
        created_at = datetime.fromtimestamp(message.created_at_ms / 1000, tz=UTC)
        return cls(message.name, NamespaceSpec.from_message(message.spec), created_at)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts. Larger calls are split by the client, where that can be done."""

    message_bytes_max: int
    top_k_max: int
    rows_max: int
    tokens_max: int
    layers_max: int
    heads_max: int
    dim_max: int
    capacity_max: int
    name_length_max: int
    page_size_max: int
    namespaces_max: int
    streams_max: int
    ids_max: int
    stream_bytes_max: int = 0

    @classmethod
    def from_message(cls, message: pb.Limits) -> Limits:
        """From its wire form. A limit that the server does not name stays 0: no limit."""
        return cls(
            message_bytes_max=message.message_bytes_max,
            top_k_max=message.top_k_max,
            rows_max=message.rows_max,
            tokens_max=message.tokens_max,
            layers_max=message.layers_max,
            heads_max=message.heads_max,
            dim_max=message.dim_max,
            capacity_max=message.capacity_max,
            name_length_max=message.name_length_max,
            page_size_max=message.page_size_max,
            namespaces_max=message.namespaces_max,
            streams_max=message.streams_max,
            ids_max=message.ids_max,
            stream_bytes_max=message.stream_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server: its version, the device it searches on, and its limits."""

    version: str
    device: str
    limits: Limits


DTYPE_NUMBERS: dict[Dtype, pb.DType.ValueType] = {
    "float32": pb.DTYPE_FLOAT32,
    "float16": pb.DTYPE_FLOAT16,
    "bfloat16": pb.DTYPE_BFLOAT16,
}
_DTYPE_NAMES: dict[int, Dtype] = {number: name for name, number in DTYPE_NUMBERS.items()}

INDEX_NUMBERS: dict[Index, pb.IndexKind.ValueType] = {
    "exact": pb.INDEX_KIND_EXACT,
    "ivf": pb.INDEX_KIND_IVF,
    "auto": pb.INDEX_KIND_AUTO,
}
_INDEX_NAMES: dict[int, Index] = {number: name for name, number in INDEX_NUMBERS.items()}


def _index_name(number: int, *, unsaid: Index) -> Index:
    name = _INDEX_NAMES.get(number) if number else unsaid
    if name is None:
        raise InternalError(
            f"The server names an index that this client does not know: {number}. Is it newer?"
        )
    return name


def _value_dtype_name(number: int) -> ValueDtype | None:
    """None where values are stored as keys are."""
    if number == pb.DTYPE_UNSPECIFIED:
        return None
    return "int8" if number == pb.DTYPE_INT8 else _dtype_name(number)


def _dtype_name(number: int) -> Dtype:
    if number not in _DTYPE_NAMES:
        raise InternalError(
            f"The server names a dtype that this client does not know: {number}. Is it newer?"
        )
    return _DTYPE_NAMES[number]
