"""An exact memory in float64, as an oracle: small enough to be right at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from recollect import NotFoundError, StaleEntryError


@dataclass(frozen=True)
class DenseSpec:
    layers: Sequence[int]
    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Pairs:
    """Answer of `search` and `attend` in one."""

    ids: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    lse: Tensor


@dataclass
class Bank:
    """One stream's layer: keys and values [Hkv, n, D] from sequence number `first` on."""

    keys: Tensor
    values: Tensor
    first: int = 0


@dataclass
class DenseMemory:
    """Implements `recollect_torch._memory.Memory`."""

    spec: DenseSpec
    capacity: int = 10_000
    name: str = "dense"
    banks: dict[tuple[str, int], Bank] = field(default_factory=dict[tuple[str, int], Bank])
    adds: list[tuple[int, tuple[str, ...]]] = field(default_factory=list[tuple[int, tuple[str, ...]]])
    requests: set[str | None] = field(default_factory=set[str | None])
    calls: int = 0

    def ensure(self, *, timeout_s: float | None = None) -> None:
        """It is never lost."""

    def stored(self, stream: str, layer: int) -> int:
        """Entries of one bank."""
        bank = self.banks.get((stream, layer))
        return 0 if bank is None else bank.keys.shape[1]

    def add(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        *,
        streams: Sequence[str],
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        assert not keys.requires_grad
        assert not values.requires_grad
        if request_id in self.requests:
            return "repeated"
        self.requests.add(request_id)
        self.adds.append((layer, tuple(streams)))
        for row, stream in enumerate(streams):
            length = keys.shape[2] if lengths is None else lengths[row]
            bank = self.banks.get((stream, layer))
            k, v = keys[row, :, :length].double(), values[row, :, :length].double()
            first = 0
            if bank is not None:
                k, v, first = torch.cat((bank.keys, k), 1), torch.cat((bank.values, v), 1), bank.first
            gone = max(0, k.shape[1] - self.capacity)
            self.banks[stream, layer] = Bank(k[:, gone:].clone(), v[:, gone:].clone(), first + gone)
        return "added"

    def attend(
        self,
        layer: int,
        queries: Tensor,
        *,
        top_k: int,
        streams: Sequence[str],
        scale: float | None = None,
        with_ids: bool = True,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Pairs:
        return self.search(layer, queries, top_k=top_k, streams=streams, missing_ok=missing_ok)

    def search(
        self,
        layer: int,
        queries: Tensor,
        *,
        top_k: int,
        streams: Sequence[str],
        include: Sequence[Literal["keys", "values"]] = (),
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Pairs:
        assert not queries.requires_grad
        self.calls += 1
        answers = [self._nearest(stream, layer, queries[row], top_k) for row, stream in enumerate(streams)]
        ids, keys, values = (torch.stack(parts) for parts in zip(*answers, strict=True))
        scores = torch.einsum("bhtd,bhtkd->bhtk", queries.double(), keys)
        scores = scores.masked_fill(ids < 0, float("-inf"))
        lse = scores.logsumexp(-1)
        p = (scores - lse[..., None]).exp().nan_to_num(0.0)
        output = torch.einsum("bhtk,bhtkd->bhtd", p, values)
        lse = lse.to(torch.promote_types(queries.dtype, torch.float32))
        return Pairs(ids, keys.to(queries), values.to(queries), output.to(queries), lse)

    def attend_backward(
        self,
        layer: int,
        queries: Tensor,
        *,
        ids: Tensor,
        streams: Sequence[str],
        grad_output: Tensor,
        grad_lse: Tensor | None = None,
        scale: float | None = None,
        timeout_s: float | None = None,
    ) -> Tensor:
        self.calls += 1
        keys, values = self._entries(layer, ids, streams)
        with torch.enable_grad():
            q = queries.detach().double().requires_grad_()
            scores = torch.einsum("bhtd,bhtkd->bhtk", q, keys).masked_fill(ids < 0, -1e300)
            lse = scores.logsumexp(-1)
            p = (scores - lse[..., None]).exp()
            output = torch.einsum("bhtk,bhtkd->bhtd", p, values)
            total = (output * grad_output).sum()
            if grad_lse is not None:
                total = total + (lse * grad_lse).sum()
            (gradient,) = torch.autograd.grad(total, q)
        return gradient.to(queries)

    def evict(
        self,
        *,
        streams: Sequence[str],
        all: bool = False,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        for key in [key for key in self.banks if key[0] in streams]:
            del self.banks[key]

    def _nearest(self, stream: str, layer: int, q: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of queries [Hq, T, D]: ids [Hq, T, K], keys and values [Hq, T, K, D]."""
        heads, tokens, dim = q.shape
        ids = torch.full((heads, tokens, top_k), -1)
        keys, values = (torch.zeros(heads, tokens, top_k, dim, dtype=torch.float64) for _ in range(2))
        bank = self.banks.get((stream, layer))
        if bank is not None:
            group = heads // bank.keys.shape[0]
            k, v = bank.keys.repeat_interleave(group, 0), bank.values.repeat_interleave(group, 0)
            best = (q.double() @ k.transpose(1, 2)).topk(min(top_k, k.shape[1]), dim=-1).indices
            found = best.shape[-1]
            ids[..., :found] = best + bank.first
            for head in range(heads):
                keys[head, :, :found] = k[head][best[head]]
                values[head, :, :found] = v[head][best[head]]
        return ids, keys, values

    def _entries(self, layer: int, ids: Tensor, streams: Sequence[str]) -> tuple[Tensor, Tensor]:
        keys, values = (torch.zeros(*ids.shape, self.spec.key_dim, dtype=torch.float64) for _ in range(2))
        for row, stream in enumerate(streams):
            present = ids[row] >= 0
            if not present.any():
                continue
            bank = self.banks.get((stream, layer))
            if bank is None:
                raise NotFoundError(f"no stream {stream}", reason="STREAM_NOT_FOUND")
            if int(ids[row][present].min()) < bank.first:
                raise StaleEntryError(f"entries of {stream} are gone", reason="STALE_ENTRY")
            group = ids.shape[1] // bank.keys.shape[0]
            index = (ids[row] - bank.first).clamp(min=0)  # [Hq, T, K]
            for head in range(ids.shape[1]):
                keys[row, head] = bank.keys[head // group][index[head]]
                values[row, head] = bank.values[head // group][index[head]]
        return keys, values
