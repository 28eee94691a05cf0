"""Every call of the wire: request message to use case to response message. No transport."""

from __future__ import annotations

import numpy as np

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.catalog import Catalog
from recollect_server.application.commands import Add, Attend, AttendBackward, Evict, Search
from recollect_server.application.memory import Memory
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.eviction import (
    BeforeSequence,
    ByIds,
    Everything,
    OlderThan,
    Oldest,
    Selector,
)
from recollect_server.domain.identity import Caller
from recollect_server.rpc import namespaces, tensors
from recollect_server.rpc.namespaces import ServerFacts


class MemoryCalls:
    """`MemoryService`, one method for each of its calls, in snake case."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def add(self, caller: Caller, request: pb.AddRequest) -> pb.AddResponse:
        """Appends entries."""
        command = Add(
            namespace=request.namespace,
            layer=request.layer,
            streams=tuple(request.streams),
            keys=tensors.dense("keys", request.keys),
            values=tensors.dense("values", request.values),
            lengths=tuple(request.lengths),
            request_id=request.request_id,
        )
        added = self._memory.add(caller, command)
        return pb.AddResponse(
            first_ids=added.first_ids, next_sequences=added.next_sequences, evicted=added.evicted
        )

    def search(self, caller: Caller, request: pb.SearchRequest) -> pb.SearchResponse:
        """The top_k entries of each query."""
        command = Search(
            namespace=request.namespace,
            layer=request.layer,
            streams=tuple(request.streams),
            queries=tensors.dense("queries", request.queries),
            top_k=request.top_k,
            include_keys=request.include_keys,
            include_values=request.include_values,
            min_sequences=tuple(request.min_sequences),
            missing_ok=request.missing_ok,
        )
        found = self._memory.search(caller, command)
        return pb.SearchResponse(
            scores=tensors.float32_to_wire(found.scores),
            ids=tensors.entry_ids_to_wire(found.ids),
            keys=None if found.keys is None else tensors.to_wire(found.keys),
            values=None if found.values is None else tensors.to_wire(found.values),
            next_sequences=found.next_sequences,
        )

    def attend(self, caller: Caller, request: pb.AttendRequest) -> pb.AttendResponse:
        """Attention over the top_k entries of each query."""
        command = Attend(
            namespace=request.namespace,
            layer=request.layer,
            streams=tuple(request.streams),
            queries=tensors.dense("queries", request.queries),
            top_k=request.top_k,
            scale=request.scale,
            with_ids=not request.omit_ids,
            min_sequences=tuple(request.min_sequences),
            missing_ok=request.missing_ok,
        )
        attended = self._memory.attend(caller, command)
        return pb.AttendResponse(
            output=tensors.to_wire(attended.output),
            lse=tensors.float32_to_wire(attended.lse),
            ids=None if attended.ids is None else tensors.entry_ids_to_wire(attended.ids),
            next_sequences=attended.next_sequences,
        )

    def attend_backward(self, caller: Caller, request: pb.AttendBackwardRequest) -> pb.AttendBackwardResponse:
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
        gradient = self._memory.attend_backward(caller, command)
        return pb.AttendBackwardResponse(grad_queries=tensors.to_wire(gradient))

    def evict(self, caller: Caller, request: pb.EvictRequest) -> pb.EvictResponse:
        """Removes entries."""
        command = Evict(
            namespace=request.namespace,
            streams=tuple(request.streams),
            selector=_selector(request),
            layers=tuple(request.layers),
            request_id=request.request_id,
            missing_ok=request.missing_ok,
        )
        return pb.EvictResponse(evicted=self._memory.evict(caller, command))


class NamespaceCalls:
    """`NamespaceService`, one method for each of its calls, in snake case."""

    def __init__(self, catalog: Catalog, facts: ServerFacts) -> None:
        self._catalog = catalog
        self._facts = facts

    def create_namespace(
        self, caller: Caller, request: pb.CreateNamespaceRequest
    ) -> pb.CreateNamespaceResponse:
        """Makes a namespace."""
        record = self._catalog.create(
            caller, request.name, spec=namespaces.spec_of(request.spec), exist_ok=request.exist_ok
        )
        return pb.CreateNamespaceResponse(namespace=namespaces.to_wire(record))

    def get_namespace(self, caller: Caller, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        """Describes a namespace."""
        record = self._catalog.get(caller, request.name)
        return pb.GetNamespaceResponse(namespace=namespaces.to_wire(record))

    def list_namespaces(self, caller: Caller, request: pb.ListNamespacesRequest) -> pb.ListNamespacesResponse:
        """A page of the caller's namespaces, by name."""
        after = namespaces.name_of_token(request.page_token)
        records, last = self._catalog.list(caller, page_size=request.page_size, after=after)
        return pb.ListNamespacesResponse(
            namespaces=[namespaces.to_wire(record) for record in records],
            next_page_token=namespaces.token_of_name(last),
        )

    def delete_namespace(
        self, caller: Caller, request: pb.DeleteNamespaceRequest
    ) -> pb.DeleteNamespaceResponse:
        """Deletes a namespace and frees its memory."""
        self._catalog.delete(caller, request.name, missing_ok=request.missing_ok)
        return pb.DeleteNamespaceResponse()

    def get_stats(self, caller: Caller, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        """What a namespace holds."""
        stats = self._catalog.stats(caller, request.namespace, streams=tuple(request.streams))
        return namespaces.stats_to_wire(stats)

    def get_server_info(self, caller: Caller, request: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        """Version, device and limits."""
        del caller, request
        return namespaces.facts_to_wire(self._facts)


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
