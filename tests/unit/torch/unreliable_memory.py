"""The oracle behind a server that can be away, or come back empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

import recollect
from tests.unit.torch.dense_memory import DenseMemory, Pairs


class Unreliable(DenseMemory):
    """Set `away` to what each call shall raise; None: the memory answers."""

    away: Exception | None = None
    lost = False
    asked = 0

    def ensure(self, *, timeout_s: float | None = None) -> None:
        self._reach()
        self.lost = False

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
        self._reach_namespace()
        return super().search(layer, queries, top_k=top_k, streams=streams)

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
        self._reach_namespace()
        return super().attend_backward(
            layer, queries, ids=ids, streams=streams, grad_output=grad_output, grad_lse=grad_lse
        )

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
        self._reach_namespace()
        return super().add(layer, keys, values, streams=streams, lengths=lengths, request_id=request_id)

    def evict(
        self,
        *,
        streams: Sequence[str],
        all: bool = False,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._reach_namespace()
        super().evict(streams=streams, all=all)

    def restart_empty(self) -> None:
        self.banks.clear()
        self.lost = True

    def _reach(self) -> None:
        self.asked += 1
        if self.away is not None:
            raise self.away

    def _reach_namespace(self) -> None:
        self._reach()
        if self.lost:
            raise recollect.NotFoundError("no such namespace", reason="NAMESPACE_NOT_FOUND")
