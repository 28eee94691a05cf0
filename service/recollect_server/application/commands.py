"""What a caller can ask of a memory, and what the answers are. Shapes as in the design's words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, Room
from recollect_server.domain.eviction import Selector
from recollect_server.domain.int8_rows import Int8Array
from recollect_server.domain.ports import IndexState
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype
from recollect_server.domain.tenants import Quotas


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace that a caller may use: what `Catalog.get` found under the caller's tenant.

    Attributes:
        record: What the registry knows of it.
        quotas: Of its tenant.
    """

    record: NamespaceRecord
    quotas: Quotas


@dataclass(frozen=True, slots=True)
class Add:
    """Append keys [B, Hkv, T, Dk] and values [B, Hkv, T, Dv]."""

    namespace: str
    layer: int
    streams: tuple[str, ...]
    keys: DenseArray
    values: DenseArray
    lengths: tuple[int, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Added:
    """Per row: id of the first new entry, and the sequence reached. In total: entries that made room."""

    first_ids: tuple[int, ...]
    next_sequences: tuple[int, ...]
    evicted: int


@dataclass(frozen=True, slots=True)
class Search:
    """The top_k entries of queries [B, Hq, T, Dk]; `exact`: all of them, whatever the namespace's index.

    `streamed`: the answer does not travel in one message, so it may be larger than one. `pairs_in`: where
    keys and values are written, if not to arrays of their own. `pairs_dtype`: float32 has them widened to it;
    None: as they are stored. `progress`: given keys and values, which then are not in the answer.
    """

    namespace: str
    layer: int
    streams: tuple[str, ...]
    queries: DenseArray | Int8Array
    top_k: int
    include_keys: bool = False
    include_values: bool = False
    min_sequences: tuple[int, ...] = ()
    missing_ok: bool = False
    exact: bool = False
    streamed: bool = False
    pairs_in: Room | None = None
    pairs_dtype: Dtype | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Scores and ids [B, Hq, T, K]; keys and values [B, Hq, T, K, D] where asked for."""

    scores: Float32
    ids: Int64
    keys: DenseArray | None
    values: DenseArray | None
    next_sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coming:
    """Keys or values [B, Hq, T, K, D] that are being fetched."""

    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return math.prod(self.shape) * self.dtype.itemsize_bytes


class Progress(Protocol):
    """Given what a search finds as it comes, by the thread that does it."""

    def begin(self, found: Found, *, keys: Coming | None, values: Coming | None) -> None:
        """All but keys and values, which come next if they are wanted."""
        ...

    def room(self, size: int) -> Raw:
        """Where the next of them [size] are written, all keys before all values; not cleared."""
        ...

    def fetched(self, size: int) -> None:
        """So many of the room that was asked for last have been written; the rest is not needed."""
        ...


@dataclass(frozen=True, slots=True)
class Attend:
    """Attention of queries [B, Hq, T, Dk] over their top_k entries; `exact` as in `Search`."""

    namespace: str
    layer: int
    streams: tuple[str, ...]
    queries: DenseArray | Int8Array
    top_k: int
    scale: float
    with_ids: bool = True
    min_sequences: tuple[int, ...] = ()
    missing_ok: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Attended:
    """Output [B, Hq, T, Dv] in the queries' dtype, LSE float32 [B, Hq, T], ids [B, Hq, T, K] if asked for."""

    output: DenseArray
    lse: Float32
    ids: Int64 | None
    next_sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttendBackward:
    """The query gradient of an `Attend`, over the ids [B, Hq, T, K] that it returned."""

    namespace: str
    layer: int
    streams: tuple[str, ...]
    queries: DenseArray
    ids: Int64
    scale: float
    grad_output: DenseArray
    grad_lse: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove what the selector names from each stream, in these layers (none named: all)."""

    namespace: str
    streams: tuple[str, ...]
    selector: Selector
    layers: tuple[int, ...] = ()
    request_id: str = ""
    missing_ok: bool = False


@dataclass(frozen=True, slots=True)
class Describe:
    """Totals of a namespace, and details of the streams named."""

    namespace: str
    streams: tuple[str, ...] = ()


Command = Add | Search | Attend | AttendBackward | Evict | Describe


@dataclass(frozen=True, slots=True)
class BankStats:
    """One stream's layer; `index` says what answers its reads."""

    stream: str
    layer: int
    entries: int
    first_id: int
    next_sequence: int
    bytes: int
    index: IndexState


@dataclass(frozen=True, slots=True)
class Stats:
    """A namespace's totals, and the banks of the streams that were named."""

    streams: int
    entries: int
    bytes: int
    banks: tuple[BankStats, ...]
