"""What the memory should answer: plain lists of entries and float64 NumPy. Uses none of the project's code.

Answers are compared tie-aware: scores and outputs within the format's rounding, never ids one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Ids = NDArray[np.int64]

ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative error of one rounding (for float32: of the sums too)."""
SUM_ERROR = 2.0**-20
"""Relative error of a float32 sum of some hundred products, as a part of the sum of their sizes."""


class Found(Protocol):
    """What a search answers. By its type, ids are of the queries' dtype; they are int64."""

    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def ids(self) -> NDArray[np.generic]: ...
    @property
    def keys(self) -> NDArray[np.float32] | None: ...
    @property
    def values(self) -> NDArray[np.float32] | None: ...


class Attended(Protocol):
    """What an attend answers."""

    @property
    def output(self) -> NDArray[np.float32]: ...
    @property
    def lse(self) -> NDArray[np.float32]: ...
    @property
    def ids(self) -> NDArray[np.generic] | None: ...


@dataclass
class Entries:
    """One stream's layer, oldest first."""

    ids: list[int] = field(default_factory=list[int])
    keys: list[Float] = field(default_factory=list[Float])  # each [Hkv, Dk]
    values: list[Float] = field(default_factory=list[Float])

    def keep(self, order: Sequence[int]) -> int:
        """Keeps the entries at these positions; returns how many go."""
        gone = len(self.ids) - len(order)
        self.ids = [self.ids[i] for i in order]
        self.keys = [self.keys[i] for i in order]
        self.values = [self.values[i] for i in order]
        return gone


def representable(array: NDArray[np.floating], dtype: str) -> NDArray[np.float32]:
    """The array in values that the format holds exactly, as float32."""
    single = np.ascontiguousarray(array, dtype=np.float32)
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return single


class OracleMemory:
    """A namespace's memory.

    Args:
        heads: Hkv.
        key_dim: Dk.
        value_dim: Dv.
        capacity: Entries of a stream's layer; beyond it the oldest go.
        dtype: In which outputs are rounded.
    """

    def __init__(self, *, heads: int, key_dim: int, value_dim: int, capacity: int, dtype: str) -> None:
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.capacity, self.dtype = capacity, dtype
        self.banks: dict[tuple[str, int], Entries] = {}
        self.used_ids: dict[tuple[str, int], int] = {}

    def bank(self, stream: str, layer: int) -> Entries:
        """The entries of a stream's layer; empty if there are none."""
        return self.banks.get((stream, layer), Entries())

    def add(
        self,
        layer: int,
        keys: NDArray[np.floating],
        values: NDArray[np.floating],
        *,
        streams: Sequence[str],
        first_ids: Sequence[int],
        lengths: Sequence[int] | None = None,
    ) -> int:
        """Appends; ids begin where the server says, and must never come back. Returns what made room."""
        evicted = 0
        for row, stream in enumerate(streams):
            tokens = keys.shape[2] if lengths is None else lengths[row]
            first, used = first_ids[row], self.used_ids.get((stream, layer), -1)
            assert first > used, f"id {first} of {stream!r} was given out before (up to {used})"
            entries = self.banks.setdefault((stream, layer), Entries())
            assert not entries.ids or not tokens or first == used + 1, "a gap in the ids of a stream"
            for token in range(tokens):
                entries.ids.append(first + token)
                entries.keys.append(np.asarray(keys[row, :, token], dtype=np.float64))
                entries.values.append(np.asarray(values[row, :, token], dtype=np.float64))
            self.used_ids[stream, layer] = max(used, first + tokens - 1)
            over = max(0, len(entries.ids) - self.capacity)
            evicted += entries.keep(range(over, len(entries.ids)))
        return evicted

    def forget(self, stream: str, layers: Sequence[int]) -> int:
        """Forgets a stream's layers; returns how many entries go."""
        return sum(len(self.banks.pop((stream, layer), Entries()).ids) for layer in layers)

    def scores(self, layer: int, queries: NDArray[np.floating], stream: str) -> Float:
        """q.k of one row's queries [Hq, T, Dk] with every entry: [Hq, T, N]."""
        entries = self.bank(stream, layer)
        if not entries.ids:
            return np.zeros((*queries.shape[:2], 0))
        keys = np.repeat(np.stack(entries.keys, axis=1), queries.shape[0] // self.heads, axis=0)
        return np.asarray(np.matmul(queries.astype(np.float64), keys.transpose(0, 2, 1)))

    def score_error(self, layer: int, queries: NDArray[np.floating], stream: str) -> float:
        """What float32 sums may be off by."""
        keys = self.bank(stream, layer).keys
        largest = max((float(np.abs(key).max()) for key in keys), default=0.0)
        return float(SUM_ERROR * self.key_dim * largest * np.abs(queries).max(initial=0) + 1e-30)

    def pairs(self, layer: int, ids: Ids, stream: str) -> tuple[Float, Float]:
        """Keys [Hq, T, K, Dk] and values [Hq, T, K, Dv] of ids [Hq, T, K]; 0 for -1."""
        entries, heads = self.bank(stream, layer), ids.shape[0]
        group = heads // self.heads
        if not entries.ids:
            return np.zeros((*ids.shape, self.key_dim)), np.zeros((*ids.shape, self.value_dim))
        order = np.searchsorted(np.array(entries.ids), ids).clip(max=len(entries.ids) - 1)
        present = (ids >= 0)[..., None]
        keys = np.repeat(np.stack(entries.keys, axis=1), group, axis=0)
        values = np.repeat(np.stack(entries.values, axis=1), group, axis=0)
        head = np.arange(heads)[:, None, None]
        return np.where(present, keys[head, order], 0.0), np.where(present, values[head, order], 0.0)

    # ---- comparisons ----

    def check_ids(self, layer: int, queries: NDArray[np.floating], ids: Ids, stream: str) -> None:
        """Ids [Hq, T, K] must be live, distinct, as many as there are, and among the best."""
        live = np.array(self.bank(stream, layer).ids, dtype=np.int64)
        count = min(ids.shape[-1], live.size)
        assert (ids[..., count:] == -1).all(), "more ids than entries"
        assert np.isin(ids[..., :count], live).all(), "an id that is not stored"
        ordered = np.sort(ids[..., :count], axis=-1)
        assert (np.diff(ordered, axis=-1) > 0).all(), "the same entry twice"
        if count:
            scores = self.scores(layer, queries, stream)
            least = np.sort(scores, axis=-1)[..., -count]
            order = np.searchsorted(live, ids[..., :count])
            chosen = np.take_along_axis(scores, order, axis=-1)
            error = self.score_error(layer, queries, stream)
            assert (chosen >= least[..., None] - 2 * error).all(), "a nearer entry was left out"

    def check_search(
        self, layer: int, queries: NDArray[np.floating], found: Found, *, streams: Sequence[str]
    ) -> None:
        """Scores, ids and pairs of a search must be those of the nearest entries."""
        assert found.scores.dtype == np.float32
        assert found.ids.dtype == np.int64
        for row, stream in enumerate(streams):
            scores, ids = found.scores[row].astype(np.float64), found.ids[row].astype(np.int64)
            self.check_ids(layer, queries[row], ids, stream)
            assert (np.isneginf(scores) == (ids < 0)).all(), "padding is not marked by -inf and -1 alike"
            count = min(ids.shape[-1], len(self.bank(stream, layer).ids))
            if count:
                best = -np.sort(-self.scores(layer, queries[row], stream), axis=-1)[..., :count]
                error = self.score_error(layer, queries[row], stream)
                np.testing.assert_allclose(scores[..., :count], best, rtol=0, atol=error)
            keys, values = self.pairs(layer, ids, stream)
            if found.keys is not None:
                np.testing.assert_array_equal(found.keys[row], keys)
            if found.values is not None:
                np.testing.assert_array_equal(found.values[row], values)

    def attention(
        self, layer: int, queries: NDArray[np.floating], ids: Ids, *, scale: float, stream: str
    ) -> tuple[Float, Float, Float]:
        """Probabilities [Hq, T, K], output [Hq, T, Dv] and LSE [Hq, T] over ids [Hq, T, K]."""
        keys, values = self.pairs(layer, ids, stream)
        s = scale * np.einsum("htd,htkd->htk", queries.astype(np.float64), keys)
        s = np.where(ids >= 0, s, -np.inf)
        top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
        weights = np.exp(s - np.where(np.isneginf(top), 0.0, top))
        total = weights.sum(axis=-1)
        p = weights / np.where(total > 0, total, 1.0)[..., None]
        with np.errstate(divide="ignore"):
            lse = np.where(total > 0, top[..., 0] + np.log(total), -np.inf)
        return p, np.einsum("htk,htkd->htd", p, values), lse

    def nearest(self, layer: int, queries: NDArray[np.floating], top_k: int, stream: str) -> Ids:
        """Ids [Hq, T, K] of the nearest entries; -1 where there are fewer."""
        scores = self.scores(layer, queries, stream)
        ids = np.full((*queries.shape[:2], top_k), -1, dtype=np.int64)
        count = min(top_k, scores.shape[-1])
        if count:
            order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
            ids[..., :count] = np.array(self.bank(stream, layer).ids)[order]
        return ids

    def check_attend(
        self,
        layer: int,
        queries: NDArray[np.floating],
        attended: Attended,
        *,
        streams: Sequence[str],
        scale: float,
        top_k: int,
    ) -> None:
        """Output and LSE must be attention over the ids, and those must be the nearest entries."""
        assert attended.lse.dtype == np.float32
        for row, stream in enumerate(streams):
            q = queries[row]
            ids = self.nearest(layer, q, top_k, stream)
            if attended.ids is not None:
                assert attended.ids.dtype == np.int64
                ids = attended.ids[row].astype(np.int64)
            self.check_ids(layer, q, ids, stream)
            _, output, lse = self.attention(layer, q, ids, scale=scale, stream=stream)
            error = scale * self.score_error(layer, q, stream)
            largest = max((float(np.abs(v).max()) for v in self.bank(stream, layer).values), default=0.0)
            came = attended.lse[row].astype(np.float64)
            assert (np.isneginf(came) == np.isneginf(lse)).all(), (
                "LSE is -inf where, and only where, it is empty"
            )
            live = ~np.isneginf(lse)
            np.testing.assert_allclose(came[live], lse[live], rtol=SUM_ERROR, atol=error + SUM_ERROR)
            atol = largest * (2 * error + 2 * ROUNDING[self.dtype] + SUM_ERROR)
            np.testing.assert_allclose(attended.output[row], output, rtol=0, atol=atol)

    def grad_queries(
        self,
        layer: int,
        queries: NDArray[np.floating],
        ids: NDArray[np.generic],
        *,
        streams: Sequence[str],
        scale: float,
        grad_output: NDArray[np.floating],
        grad_lse: NDArray[np.floating] | None,
    ) -> Float:
        """The gradient [B, Hq, T, Dk] of attention over ids, from the softmax's Jacobian written out."""
        gradient = np.zeros(queries.shape)
        for row, stream in enumerate(streams):
            chosen = ids[row].astype(np.int64)
            p, _, _ = self.attention(layer, queries[row], chosen, scale=scale, stream=stream)
            keys, values = self.pairs(layer, chosen, stream)
            jacobian = np.einsum("htk,kl->htkl", p, np.eye(p.shape[-1])) - p[..., :, None] * p[..., None, :]
            dp = np.einsum("htd,htkd->htk", grad_output[row].astype(np.float64), values)
            ds = np.einsum("htk,htkl->htl", dp, jacobian)
            if grad_lse is not None:
                ds = ds + p * grad_lse[row].astype(np.float64)[..., None]
            gradient[row] = scale * np.einsum("htk,htkd->htd", ds, keys)
        return gradient

    def check_grad_queries(
        self,
        layer: int,
        queries: NDArray[np.floating],
        ids: NDArray[np.generic],
        came: NDArray[np.floating],
        *,
        streams: Sequence[str],
        scale: float,
        grad_output: NDArray[np.floating],
        grad_lse: NDArray[np.floating] | None = None,
    ) -> None:
        """A gradient must be right to the rounding of its format and of the float32 sums behind it."""
        assert came.shape == queries.shape
        wanted = self.grad_queries(
            layer, queries, ids, streams=streams, scale=scale, grad_output=grad_output, grad_lse=grad_lse
        )
        for row, stream in enumerate(streams):
            entries = self.bank(stream, layer)
            largest_key = max((float(np.abs(k).max()) for k in entries.keys), default=0.0)
            largest_value = max((float(np.abs(v).max()) for v in entries.values), default=0.0)
            largest_dp = self.value_dim * largest_value * float(np.abs(grad_output[row]).max())
            largest_dp += 0.0 if grad_lse is None else float(np.abs(grad_lse[row]).max())
            relative = 8 * SUM_ERROR + 2 * scale * self.score_error(layer, queries[row], stream)
            atol = scale * largest_key * largest_dp * relative
            atol += 2 * ROUNDING[self.dtype] * float(np.abs(wanted[row]).max()) + 1e-30
            np.testing.assert_allclose(came[row], wanted[row], rtol=0, atol=atol)
