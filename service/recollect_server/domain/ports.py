"""What the core needs from outside. Engine, registry and bootstrap implement these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw
from recollect_server.domain.identity import Principal
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Steps


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


@dataclass(frozen=True, slots=True)
class IndexState:
    """What answers the reads of a bank, and how well.

    Attributes:
        index: "exact" or "ivf".
        lists: Of the inverted file; 0 if there is none.
        probes: Lists that a query looks into, on average; 0 if there is none.
        recall: Of queries sampled lately, against exact search; None before any.
        sampled: Queries compared since the bank was made.
        found: The sum of their recalls.
        reason: Why exact search answers where the namespace asks for an inverted file, or what of the
            inverted file is under way: made, filled or judged anew; "" otherwise.
    """

    index: str = "exact"
    lists: int = 0
    probes: int = 0
    recall: float | None = None
    sampled: int = 0
    found: float = 0.0
    reason: str = ""


class Store(Protocol):
    """Keys and values of one bank, on one device. Slots are the `Ring`'s; a store knows no ids.

    Reads pause between steps, and nothing is written to the store before they have ended. Not
    thread-safe: one dispatcher owns each device.
    """

    def growing(self, allocated: int, live: Sequence[slice]) -> Steps[None]:
        """Moves the `live` slots, in order, to the front of larger buffers; zeroes the old ones.

        They are copied a little at a time; the store goes over to them in the last step. Closed before, it
        is as it was, and nothing is left of the copies.
        """
        ...

    def touch(self, slots: int) -> Steps[None]:
        """Writes, a little at a time, to memory of the first `slots` that nothing was written to before.

        Nothing but zeroes, and where nothing is: the system has to find memory then, which can take as long
        as to write ten times as much to what it has found.
        """
        ...

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """Stores tokens of keys [Hkv, T, Dk] and values [Hkv, T, Dv], which are of the store's dtype."""
        ...

    def compacting(self, slots: Int64, head: int) -> Steps[None]:
        """Moves `slots` (in ascending order of age) to those from `head` on, around the end of the buffers.

        A little at a time, and in place: each has as many slots before it, from `head` on, as there are
        older ones or more. Once begun it has to be taken to its end; it finds no memory at once or never.
        """
        ...

    def clear(self) -> None:
        """Zeroes and releases the buffers."""
        ...

    @property
    def index_state(self) -> IndexState:
        """What answers reads now. Safe to ask from any thread."""
        ...

    @property
    def index_bytes(self) -> int:
        """What an index takes beside keys and values. Asked for at each call, so it is not added up then."""
        ...

    def upkeep_work(self, live: Sequence[slice]) -> int:
        """Background work that there is, as keeping an index, up to what `upkeep` does at once; 0: none.

        In multiply-adds, an estimate. Safe to ask from any thread.
        """
        ...

    def upkeep(self, live: Sequence[slice], *, seconds: float = math.inf) -> Steps[bool]:
        """A few milliseconds of it, or about so many seconds; whether there is more.

        Between two of them anything may happen.
        """
        ...

    def search_work(self, queries: int, entries: int) -> int:
        """What `queries` of each head would take, in multiply-adds; an estimate, from any thread."""
        ...

    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """The top_k live entries of queries [Hq, T, Dk] by inner product.

        `exact` wants them all, whatever index the namespace has.
        """
        ...

    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """softmax(scale * q.k) v over the top_k live entries; `exact` as in `search`."""
        ...

    def attend_rows(
        self,
        rows: Sequence[tuple[Store, Sequence[slice]]],
        queries: DenseArray,
        top_k: int,
        *,
        scale: float,
        exact: bool = False,
    ) -> Steps[Attention]:
        """As `attend` of each row, a store of the same namespace (one of them this) and its live slots.

        Queries are [B, Hq, T, Dk], and so the answer has an axis of rows first.
        """
        ...

    def attend_backward(
        self,
        queries: DenseArray,
        slots: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Steps[Float32]:
        """The gradient [Hq, T, Dk] of `attend` with respect to the queries, over `slots`."""
        ...

    def keys(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """Keys [Hq, T, K, Dk] of slots [Hq, T, K]; 0 for -1.

        Args:
            slots: Of all query heads, or of some that read the same head of the memory.
            into: What they are written to, if it is given: of the stored dtype or float32.
            head: That one; None: slots are of all query heads.
        """
        ...

    def values(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """Values [Hq, T, K, Dv] of slots [Hq, T, K]; 0 for -1. The rest as for keys."""
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

    def narrowed(self, values: Float32, dtype: Dtype) -> DenseArray:
        """As `arrays.from_float32`, which is NumPy's and takes one number after the other."""
        ...


class Authenticator(Protocol):
    """Turns a credential into a caller or an operator. The only source of a tenant."""

    async def authenticate(self, credential: str | None) -> Principal:
        """Who this is.

        Raises:
            UnauthenticatedError: Nobody that the server knows.
            RegistryUnavailableError: That cannot be told now.
        """
        ...


class Clock(Protocol):
    """Time since the epoch, in seconds."""

    def __call__(self) -> float:
        """Now."""
        ...
