"""One namespace, seen by the async client."""

from __future__ import annotations

from collections.abc import Sequence

from recollect._administration import create_namespace, get_stats
from recollect._async_coalescing import AsyncCoalescing
from recollect._attends import prepare_attend
from recollect._checks import Include, check_include
from recollect._reads import check_read, prepare_attend_backward, prepare_search
from recollect._results import (
    A,
    AddResult,
    Array,
    AttendResult,
    EvictResult,
    NamespaceSpec,
    QueryDtype,
    SearchResult,
    Stats,
)
from recollect._runner import AsyncRunner
from recollect._writes import prepare_add, prepare_evict


class AsyncNamespace:
    """One named memory of a tenant, for one model. Made by `AsyncClient`.

    The methods are those of `Namespace`, with the same arguments and results; see there. Parts of a large
    read run beside each other.
    """

    def __init__(
        self,
        name: str,
        spec: NamespaceSpec,
        runner: AsyncRunner,
        *,
        coalescing: AsyncCoalescing | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self._runner = runner
        self._coalescing = coalescing

    def __repr__(self) -> str:
        return f"AsyncNamespace({self.name!r}, {self.spec})"

    async def add(
        self,
        layer: int,
        keys: Array,
        values: Array,
        *,
        streams: Sequence[str],
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AddResult:
        """See `Namespace.add`."""
        split = prepare_add(
            self.name, self.spec, layer, keys, values, streams=streams, lengths=lengths, request_id=request_id
        )
        return await self._runner.run_split(split, timeout_s)

    async def search(
        self,
        layer: int,
        queries: A,
        *,
        top_k: int,
        streams: Sequence[str],
        include: Sequence[Include] = (),
        min_sequences: Sequence[int] | None = None,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
        timeout_s: float | None = None,
    ) -> SearchResult[A]:
        """See `Namespace.search`."""
        chosen = check_include(include)
        read = check_read(
            self.name,
            self.spec,
            layer,
            queries,
            streams=streams,
            min_sequences=min_sequences,
            query_dtype=query_dtype,
        )
        split = prepare_search(read, top_k=top_k, include=chosen, missing_ok=missing_ok, exact=exact)
        return await self._runner.run_split(split, timeout_s)

    async def attend(
        self,
        layer: int,
        queries: A,
        *,
        top_k: int,
        streams: Sequence[str],
        scale: float | None = None,
        with_ids: bool = True,
        min_sequences: Sequence[int] | None = None,
        missing_ok: bool = False,
        exact: bool = False,
        query_dtype: QueryDtype | None = None,
        timeout_s: float | None = None,
    ) -> AttendResult[A]:
        """See `Namespace.attend`."""
        read = check_read(
            self.name,
            self.spec,
            layer,
            queries,
            streams=streams,
            min_sequences=min_sequences,
            query_dtype=query_dtype,
        )
        asked = prepare_attend(
            read, top_k=top_k, scale=scale, with_ids=with_ids, missing_ok=missing_ok, exact=exact
        )
        if self._coalescing is not None:
            return await self._coalescing.attend(asked, timeout_s)
        return await self._runner.run_split(asked.split, timeout_s)

    async def attend_backward(
        self,
        layer: int,
        queries: A,
        *,
        ids: Array,
        streams: Sequence[str],
        grad_output: Array,
        grad_lse: Array | None = None,
        scale: float | None = None,
        timeout_s: float | None = None,
    ) -> A:
        """See `Namespace.attend_backward`."""
        read = check_read(self.name, self.spec, layer, queries, streams=streams)
        split = prepare_attend_backward(
            read, ids=ids, grad_output=grad_output, grad_lse=grad_lse, scale=scale
        )
        return await self._runner.run_split(split, timeout_s)

    async def evict(
        self,
        *,
        streams: Sequence[str],
        layers: Sequence[int] | None = None,
        ids: Sequence[int] | None = None,
        oldest: int | None = None,
        before_sequence: int | None = None,
        older_than_s: float | None = None,
        all: bool = False,
        request_id: str | None = None,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> EvictResult:
        """See `Namespace.evict`."""
        split = prepare_evict(
            self.name,
            self.spec,
            streams=streams,
            layers=layers,
            ids=ids,
            oldest=oldest,
            before_sequence=before_sequence,
            older_than_s=older_than_s,
            all=all,
            request_id=request_id,
            missing_ok=missing_ok,
        )
        return await self._runner.run_split(split, timeout_s)

    async def stats(self, *, streams: Sequence[str] = (), timeout_s: float | None = None) -> Stats:
        """See `Namespace.stats`."""
        return await self._runner.run(get_stats(self.name, streams), timeout_s)

    async def ensure(self, *, timeout_s: float | None = None) -> None:
        """See `Namespace.ensure`."""
        await self._runner.run(create_namespace(self.name, self.spec, exist_ok=True), timeout_s)
