"""What the core needs from outside. Engine, registry and bootstrap implement these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from recollect_server.domain.arrays import DenseArray, Float32, Int64
from recollect_server.domain.identity import Caller
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import NamespaceSpec


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest entries of each query, best first.

    Attributes:
        scores: float32 [Hq, T, K]; -inf where there is no entry.
        slots: int64 [Hq, T, K]; -1 where there is no entry.
    """

    scores: Float32
    slots: Int64


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention over the nearest entries.

    Attributes:
        output: float32 [Hq, T, Dv]; 0 where the memory is empty.
        lse: float32 [Hq, T]; -inf where the memory is empty.
        slots: int64 [Hq, T, K]; -1 where there is no entry.
    """

    output: Float32
    lse: Float32
    slots: Int64


class Store(Protocol):
    """Keys and values of one bank, on one device. Slots are the `Ring`'s; a store knows no ids.

    Not thread-safe: one dispatcher thread owns each device.
    """

    def grow(self, allocated: int, live: Sequence[slice]) -> None:
        """Moves the `live` slots, in order, to the front of a larger buffer; zeroes the old one."""
        ...

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """Stores tokens of keys [Hkv, T, Dk] and values [Hkv, T, Dv], which are of the store's dtype."""
        ...

    def compact(self, slots: Int64) -> None:
        """Moves `slots` (in ascending order of age) to the front."""
        ...

    def clear(self) -> None:
        """Zeroes and releases the buffers."""
        ...

    def search(self, queries: DenseArray, live: Sequence[slice], top_k: int) -> Hits:
        """The top_k live entries of queries [Hq, T, Dk] by inner product."""
        ...

    def attend(self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float) -> Attention:
        """softmax(scale * q.k) v over the top_k live entries."""
        ...

    def attend_backward(
        self,
        queries: DenseArray,
        slots: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Float32:
        """The gradient [Hq, T, Dk] of `attend` with respect to the queries, over `slots`."""
        ...

    def keys(self, slots: Int64) -> DenseArray:
        """Keys [Hq, T, K, Dk] of slots [Hq, T, K]; 0 for -1."""
        ...

    def values(self, slots: Int64) -> DenseArray:
        """Values [Hq, T, K, Dv] of slots [Hq, T, K]; 0 for -1."""
        ...


class Device(Protocol):
    """Where banks live: a CPU or a GPU."""

    @property
    def name(self) -> str:
        """For people: "cpu" or the card's name."""
        ...

    def store(self, spec: NamespaceSpec) -> Store:
        """An empty store for one bank of a namespace."""
        ...


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace as the registry knows it."""

    tenant: str
    name: str
    spec: NamespaceSpec
    created_at_ms: int


class NamespaceRegistry(Protocol):
    """Which namespaces there are. Every call names the tenant; there is no call across tenants."""

    def create(self, record: NamespaceRecord) -> bool:
        """Registers a namespace; False, and no change, if the tenant has one of that name."""
        ...

    def get(self, tenant: str, name: str) -> NamespaceRecord | None:
        """The record, or None."""
        ...

    def list(self, tenant: str, *, after: str, limit: int) -> list[NamespaceRecord]:
        """Up to `limit` of the tenant's namespaces whose name sorts behind `after`, by name."""
        ...

    def count(self, tenant: str) -> int:
        """How many namespaces the tenant has."""
        ...

    def delete(self, tenant: str, name: str) -> bool:
        """Removes the record; False if there was none."""
        ...


class Authenticator(Protocol):
    """Turns a credential into a caller. The only source of a tenant."""

    def authenticate(self, credential: str | None) -> Caller:
        """Who this is.

        Raises:
            UnauthenticatedError: Nobody that the server knows.
        """
        ...


class Clock(Protocol):
    """Time since the epoch, in seconds."""

    def __call__(self) -> float:
        """Now."""
        ...
