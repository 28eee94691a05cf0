"""Every call of the wire: request message to use case to response message. No transport."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from recollect.v1 import memory_pb2 as pb
from recollect_server.application import cursors
from recollect_server.application.catalog import Catalog
from recollect_server.application.commands import (
    Add,
    Attend,
    AttendBackward,
    Describe,
    Evict,
    Found,
    Namespace,
    Progress,
    Search,
)
from recollect_server.application.memory import Memory
from recollect_server.application.namespaces import Namespaces
from recollect_server.application.turns import Turns
from recollect_server.domain.arrays import Room
from recollect_server.domain.errors import InvalidArgumentError, RegionUnusableError
from recollect_server.domain.eviction import (
    BeforeSequence,
    ByIds,
    Everything,
    OlderThan,
    Oldest,
    Selector,
)
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import Steps
from recollect_server.rpc import namespaces, tensors
from recollect_server.rpc.call import Call
from recollect_server.rpc.fetching import Fetching
from recollect_server.rpc.namespaces import ServerFacts
from recollect_server.rpc.regions import PADDING_BYTES, Regions
from recollect_server.rpc.streams import SearchStream, answer_in


class MemoryCalls:
    """`MemoryService`, one method for each of its calls, in snake case."""

    def __init__(self, memory: Memory, turns: Turns, *, regions: Regions, limits: Limits) -> None:
        self._memory = memory
        self._turns = turns
        self._regions = regions
        self._limits = limits

    async def add(self, call: Call, request: pb.AddRequest) -> pb.AddResponse:
        """Appends entries."""
        with self._room_of(call, request, bytes_max=self._limits.message_bytes_max) as room:
            command = Add(
                namespace=request.namespace,
                layer=request.layer,
                streams=tuple(request.streams),
                keys=tensors.dense("keys", request.keys, room=room),
                values=tensors.dense("values", request.values, room=room),
                lengths=tuple(request.lengths),
                request_id=request.request_id,
            )
        if room is not None:
            self._holds_copied(call, command)
        added = await self._turns.take(call.caller, command, self._memory.add, times=call.times)
        return pb.AddResponse(
            first_ids=added.first_ids, next_sequences=added.next_sequences, evicted=added.evicted
        )

    async def search(self, call: Call, request: pb.SearchRequest) -> pb.SearchResponse:
        """The top_k entries of each query."""
        if request.region:
            return await self._search_into_region(call, request)
        command = _search(request, streamed=False)
        found = await self._turns.take(call.caller, command, self._memory.search, times=call.times)
        return pb.SearchResponse(
            scores=tensors.float32_to_wire(found.scores),
            ids=tensors.entry_ids_to_wire(found.ids),
            keys=None if found.keys is None else tensors.to_wire(found.keys),
            values=None if found.values is None else tensors.to_wire(found.values),
            next_sequences=found.next_sequences,
        )

    async def _search_into_region(self, call: Call, request: pb.SearchRequest) -> pb.SearchResponse:
        with self._room_of(call, request) as room:
            assert room is not None  # the request names one

            def search(namespace: Namespace, command: Search) -> Steps[Found]:
                needed = self._memory.answer_bytes(namespace, command) + PADDING_BYTES
                if needed > room.memory.size:
                    raise InvalidArgumentError(
                        "region", f"has {room.memory.size:,} bytes; {needed:,} are needed for the answer"
                    )
                return self._memory.search(namespace, command)

            command = _search(request, streamed=True, pairs_in=room, bytes_max=self._limits.message_bytes_max)
            if call.admitted is not None and request.queries.HasField("offset"):
                call.admitted.holds(command.queries.raw.nbytes)  # as if they had come in the message
            found = await self._turns.take(call.caller, command, search, times=call.times)
            return answer_in(room, found)

    @contextmanager
    def _room_of(
        self, call: Call, request: pb.AddRequest | pb.SearchRequest, *, bytes_max: int | None = None
    ) -> Iterator[Room | None]:
        """The region that a request names, or its first bytes, for as long as it is used."""
        if not request.region:
            yield None
            return
        with self._regions.use(call.caller, request.region) as memory:
            yield Room(memory[:bytes_max])

    def _holds_copied(self, call: Call, command: Add) -> None:
        """Counts what did not come in the message as if it had."""
        copied = command.keys.raw.nbytes + command.values.raw.nbytes
        if copied > self._limits.message_bytes_max:
            raise InvalidArgumentError(
                "keys", f"and values have {copied:,} bytes; {self._limits.message_bytes_max:,} are the most"
            )
        if call.admitted is not None:
            call.admitted.holds(copied)

    async def open_region(self, call: Call, request: pb.OpenRegionRequest) -> pb.OpenRegionResponse:
        """Shares memory with a caller on this machine."""
        if call.origin.source != "unix":
            raise RegionUnusableError("memory is shared over unix sockets only")
        region = self._regions.open(call.caller, request.bytes)
        return pb.OpenRegionResponse(region=region.id, bytes=region.memory.size)

    async def search_stream(self, call: Call, request: pb.SearchRequest) -> SearchStream:
        """The same, for an answer that may be larger than a message."""

        def search(namespace: Namespace, command: Search) -> Steps[Found]:
            # Counted before the search, not after it: a refusal costs the device nothing.
            if call.admitted is not None:
                call.admitted.holds_answer(self._memory.answer_bytes(namespace, command))
            return self._memory.search(namespace, command)

        fetching = Fetching()
        command = _search(request, streamed=True, progress=fetching)
        turn = self._turns.take(call.caller, command, search, times=call.times)
        taken = asyncio.get_running_loop().create_task(turn)
        try:
            return SearchStream(await fetching.begun(taken), fetching, taken)
        finally:
            del taken  # what it raises holds this frame, and with it the whole message

    async def attend(self, call: Call, request: pb.AttendRequest) -> pb.AttendResponse:
        """Attention over the top_k entries of each query."""
        command = Attend(
            namespace=request.namespace,
            layer=request.layer,
            streams=tuple(request.streams),
            queries=tensors.queries(request.queries),
            top_k=request.top_k,
            scale=request.scale,
            with_ids=not request.omit_ids,
            min_sequences=tuple(request.min_sequences),
            missing_ok=request.missing_ok,
            exact=request.exact,
        )
        attended = await self._turns.take(call.caller, command, self._memory.attend, times=call.times)
        return pb.AttendResponse(
            output=tensors.to_wire(attended.output),
            lse=tensors.float32_to_wire(attended.lse),
            ids=None if attended.ids is None else tensors.entry_ids_to_wire(attended.ids),
            next_sequences=attended.next_sequences,
        )

    async def attend_backward(
        self, call: Call, request: pb.AttendBackwardRequest
    ) -> pb.AttendBackwardResponse:
        """The gradient of `attend` with respect to the queries."""
        has_lse = request.HasField("grad_lse")
        command = AttendBackward(
            namespace=request.namespace,
            layer=request.layer,
            streams=tuple(request.streams),
            queries=tensors.dense("queries", request.queries),
            ids=tensors.entry_ids(request.ids),
            scale=request.scale,
            grad_output=tensors.dense("grad_output", request.grad_output),
            grad_lse=tensors.float32("grad_lse", request.grad_lse) if has_lse else None,
        )
        gradient = await self._turns.take(
            call.caller, command, self._memory.attend_backward, times=call.times
        )
        return pb.AttendBackwardResponse(grad_queries=tensors.to_wire(gradient))

    async def evict(self, call: Call, request: pb.EvictRequest) -> pb.EvictResponse:
        """Removes entries."""
        command = Evict(
            namespace=request.namespace,
            streams=tuple(request.streams),
            selector=_selector(request),
            layers=tuple(request.layers),
            request_id=request.request_id,
            missing_ok=request.missing_ok,
        )
        evicted = await self._turns.take(call.caller, command, self._memory.evict, times=call.times)
        return pb.EvictResponse(evicted=evicted)


class NamespaceCalls:
    """`NamespaceService`, one method for each of its calls, in snake case."""

    def __init__(self, catalog: Catalog, whole: Namespaces, facts: ServerFacts) -> None:
        self._catalog = catalog
        self._whole = whole
        self._facts = facts

    async def create_namespace(
        self, call: Call, request: pb.CreateNamespaceRequest
    ) -> pb.CreateNamespaceResponse:
        """Makes a namespace."""
        record = await self._catalog.create(
            call.caller,
            request.name,
            spec=namespaces.spec_of(request.spec),
            exist_ok=request.exist_ok,
            origin=call.origin,
        )
        return pb.CreateNamespaceResponse(namespace=namespaces.to_wire(record))

    async def get_namespace(self, call: Call, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        """Describes a namespace."""
        namespace = await self._catalog.get(call.caller, request.name)
        return pb.GetNamespaceResponse(namespace=namespaces.to_wire(namespace.record))

    async def list_namespaces(
        self, call: Call, request: pb.ListNamespacesRequest
    ) -> pb.ListNamespacesResponse:
        """A page of the caller's namespaces, by name."""
        after = cursors.position(request.page_token, call.caller.tenant)
        records, last = await self._catalog.list(call.caller, page_size=request.page_size, after=after)
        return pb.ListNamespacesResponse(
            namespaces=[namespaces.to_wire(record) for record in records],
            next_page_token=cursors.token(last, call.caller.tenant),
        )

    async def delete_namespace(
        self, call: Call, request: pb.DeleteNamespaceRequest
    ) -> pb.DeleteNamespaceResponse:
        """Deletes a namespace and frees its memory."""
        await self._whole.delete(call.caller, request.name, missing_ok=request.missing_ok, origin=call.origin)
        return pb.DeleteNamespaceResponse()

    async def get_stats(self, call: Call, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        """What a namespace holds."""
        command = Describe(request.namespace, tuple(request.streams))
        return namespaces.stats_to_wire(await self._whole.describe(call.caller, command, times=call.times))

    async def get_server_info(self, call: Call, request: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        """Version, device and limits."""
        del call, request
        return namespaces.facts_to_wire(self._facts)


def _search(
    request: pb.SearchRequest,
    *,
    streamed: bool,
    pairs_in: Room | None = None,
    bytes_max: int | None = None,
    progress: Progress | None = None,
) -> Search:
    """`bytes_max`: of a region, how many may hold queries."""
    queries_in = None if pairs_in is None else Room(pairs_in.memory[:bytes_max])
    return Search(
        namespace=request.namespace,
        layer=request.layer,
        streams=tuple(request.streams),
        queries=tensors.queries(request.queries, room=queries_in),
        top_k=request.top_k,
        include_keys=request.include_keys,
        include_values=request.include_values,
        min_sequences=tuple(request.min_sequences),
        missing_ok=request.missing_ok,
        exact=request.exact,
        streamed=streamed,
        pairs_in=pairs_in,
        pairs_dtype=tensors.dtype_or_none("pairs_dtype", request.pairs_dtype),
        progress=progress,
    )


def _selector(request: pb.EvictRequest) -> Selector:
    match request.WhichOneof("selector"):
        case "ids":
            return ByIds(np.array(request.ids.ids, dtype=np.int64))
        case "oldest":
            return Oldest(request.oldest)
        case "before_sequence":
            return BeforeSequence(request.before_sequence)
        case "older_than_s":
            return OlderThan(request.older_than_s)
        case "all":
            if request.all:
                return Everything()
    raise InvalidArgumentError(
        "selector", "is missing; give one of ids, oldest, before_sequence, older_than_s, all=true"
    )
