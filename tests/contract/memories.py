"""A namespace with its oracle: every change goes to both, every answer is compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import recollect
from recollect import AddResult, AttendResult, SearchResult
from tests.oracle import OracleMemory, representable

Array = NDArray[np.float32]
Dtype = Literal["float32", "float16", "bfloat16"]
ValueDtype = Literal["float16", "int8"]
QueryDtype = Literal["int8"]
Index = Literal["exact", "ivf", "auto"]
INDEXES: tuple[Index, ...] = ("exact", "ivf", "auto")
VALUE_DTYPES: tuple[ValueDtype | None, ...] = (None, "int8")
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
_numbers = itertools.count()


@dataclass
class CheckedMemory:
    """One namespace. Data is random, in values that the namespace's format holds exactly."""

    ns: recollect.Namespace
    oracle: OracleMemory
    rng: np.random.Generator

    def draw(self, *shape: int) -> Array:
        """Random values in the namespace's format."""
        return representable(self.rng.standard_normal(shape), self.ns.spec.dtype)

    def draw_values(self, *shape: int) -> Array:
        """Random values that are stored exactly."""
        return self.draw(*shape) if self.ns.spec.value_dtype is None else self.draw_integers(*shape)

    def draw_integers(self, *shape: int) -> Array:
        """Random rows that integers of 8 bits, and what each row's are times, hold exactly."""
        steps = self.rng.integers(-127, 128, size=shape)
        # Some element of each row has to be as large as can be, or steps would be smaller.
        steps[..., int(self.rng.integers(shape[-1]))] = 127 * self.rng.choice([-1, 1])
        return (steps * 2.0 ** self.rng.integers(-8, -4, size=(*shape[:-1], 1))).astype(np.float32)

    def queries(
        self, rows: int, tokens: int, *, group: int = 1, query_dtype: QueryDtype | None = None
    ) -> Array:
        """[B, Hq, T, Dk] with Hq = group * Hkv, which `query_dtype` holds exactly."""
        draw = self.draw if query_dtype is None else self.draw_integers
        return draw(rows, group * self.ns.spec.heads, tokens, self.ns.spec.key_dim)

    def add(
        self,
        streams: Sequence[str],
        tokens: int,
        *,
        layer: int = 0,
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
    ) -> AddResult:
        """Adds random entries."""
        spec = self.ns.spec
        keys = self.draw(len(streams), spec.heads, tokens, spec.key_dim)
        values = self.draw_values(len(streams), spec.heads, tokens, spec.value_dim)
        result = self.ns.add(layer, keys, values, streams=streams, lengths=lengths, request_id=request_id)
        evicted = self.oracle.add(
            layer, keys, values, streams=streams, first_ids=result.first_ids, lengths=lengths
        )
        assert result.evicted == evicted
        counts = lengths or [tokens] * len(streams)
        assert result.next_sequences == tuple(f + n for f, n in zip(result.first_ids, counts, strict=True))
        return result

    def check_search(
        self,
        streams: Sequence[str],
        *,
        layer: int = 0,
        top_k: int = 4,
        tokens: int = 3,
        group: int = 1,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
    ) -> SearchResult[Array]:
        """Searches with random queries and compares scores, ids, keys and values."""
        q = self.queries(len(streams), tokens, group=group, query_dtype=query_dtype)
        found = self.ns.search(
            layer,
            q,
            top_k=top_k,
            streams=streams,
            include=("keys", "values"),
            missing_ok=missing_ok,
            exact=exact,
            query_dtype=query_dtype,
        )
        self.oracle.check_search(layer, q, found, streams=streams)
        return found

    def check_attend(
        self,
        streams: Sequence[str],
        *,
        layer: int = 0,
        top_k: int = 4,
        tokens: int = 3,
        group: int = 1,
        scale: float = 0.7,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
    ) -> AttendResult[Array]:
        """Attends with random queries and compares output, LSE, ids and the gradient."""
        q = self.queries(len(streams), tokens, group=group, query_dtype=query_dtype)
        out = self.ns.attend(
            layer,
            q,
            top_k=top_k,
            streams=streams,
            scale=scale,
            missing_ok=missing_ok,
            exact=exact,
            query_dtype=query_dtype,
        )
        self.oracle.check_attend(layer, q, out, streams=streams, scale=scale, top_k=top_k)
        assert out.ids is not None
        self.check_backward(q, out.ids, streams, layer=layer, scale=scale)
        return out

    def check_backward(
        self,
        q: Array,
        ids: NDArray[np.generic],
        streams: Sequence[str],
        *,
        layer: int = 0,
        scale: float = 0.7,
    ) -> None:
        """Asks for the gradient of the queries and compares it."""
        grad_output = self.draw(*q.shape[:3], self.ns.spec.value_dim)
        grad_lse = self.draw(*q.shape[:3])
        came = self.ns.attend_backward(
            layer, q, ids=ids, streams=streams, grad_output=grad_output, grad_lse=grad_lse, scale=scale
        )
        self.oracle.check_grad_queries(
            layer, q, ids, came, streams=streams, scale=scale, grad_output=grad_output, grad_lse=grad_lse
        )

    def check(
        self, streams: Sequence[str], *, layer: int = 0, top_k: int = 4, missing_ok: bool = False
    ) -> None:
        """Everything that can be read."""
        self.check_search(streams, layer=layer, top_k=top_k, missing_ok=missing_ok)
        self.check_attend(streams, layer=layer, top_k=top_k, missing_ok=missing_ok)

    def ids(self, stream: str, *, layer: int = 0) -> list[int]:
        """Those stored, as the oracle has it."""
        return self.oracle.bank(stream, layer).ids


@dataclass
class Memories:
    """Makes namespaces together with their oracles."""

    client: recollect.Client
    rng: np.random.Generator
    names: list[str] = field(default_factory=list)

    def __call__(
        self,
        *,
        layers: Sequence[int] = (0,),
        heads: int = 2,
        key_dim: int = 8,
        value_dim: int = 4,
        capacity: int = 10,
        dtype: Dtype = "float32",
        value_dtype: ValueDtype | None = None,
        index: Index = "auto",
        name: str | None = None,
    ) -> CheckedMemory:
        """A new namespace, empty."""
        ns = self.client.create_namespace(
            name or f"memory-{next(_numbers)}",
            layers=layers,
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            capacity=capacity,
            dtype=dtype,
            value_dtype=value_dtype,
            index=index,
        )
        self.names.append(ns.name)
        oracle = OracleMemory(
            heads=heads, key_dim=key_dim, value_dim=value_dim, capacity=capacity, dtype=dtype
        )
        return CheckedMemory(ns, oracle, self.rng)
