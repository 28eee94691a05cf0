"""The use cases of a memory: add, search, attend, attend_backward, evict, describe."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from recollect_server.application.commands import (
    Add,
    Added,
    Attend,
    AttendBackward,
    Attended,
    BankStats,
    Coming,
    Command,
    Describe,
    Evict,
    Found,
    Namespace,
    Search,
    Stats,
)
from recollect_server.application.costs import cost_of, held_work, written_work
from recollect_server.application.memories import Memories
from recollect_server.application.pairs import OFFSET_BYTES, RowHits, hit_bytes, pairs_dtype, with_pairs
from recollect_server.application.queries import as_stored
from recollect_server.application.room import Adding, require_room
from recollect_server.domain import validation, work
from recollect_server.domain.arrays import DenseArray
from recollect_server.domain.bank import Bank, attend_rows, grow_together
from recollect_server.domain.errors import InvalidArgumentError, SequenceNotReachedError
from recollect_server.domain.eviction import Everything, as_text
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.ports import Clock
from recollect_server.domain.steps import Steps, in_one_step, kept

LSE_BYTES = 4
"""Of a float32 log-sum-exp, as it travels."""


class Memory:
    """What a caller can do with the memories of its namespaces, in steps that may be shared out.

    Every call validates all of its arguments before it changes or allocates anything. Not thread-safe:
    the device's dispatcher takes the steps, one after the other.

    Args:
        memories: Of the device.
        limits: The server's bounds.
        clock: Seconds since the epoch.
    """

    def __init__(self, memories: Memories, *, limits: Limits, clock: Clock) -> None:
        self._memories = memories
        self._limits = limits
        self._clock = clock

    def cost(self, namespace: Namespace, command: Command) -> int:
        """What a command will cost the device, in multiply-adds; an estimate, from any thread."""
        layers = command.layers if isinstance(command, Evict) else ()
        if len(command.streams) > self._limits.rows_max or len(layers) > self._limits.layers_max:
            return work.CALL  # it will be refused; to look at all of its parts would keep others waiting
        return cost_of(namespace, command, self._memories.peek(namespace.record))

    def add(self, namespace: Namespace, command: Add) -> Steps[Added]:
        """Appends entries; searchable when it returns.

        Raises:
            RecollectError: Of the domain's tree; nothing was stored.
        """
        memory = self._memory(namespace, command.layer)
        validation.check_streams(command.streams, self._limits, distinct=True)
        lengths = validation.check_entries(
            command.keys,
            command.values,
            rows=len(command.streams),
            lengths=command.lengths,
            spec=memory.spec,
            limits=self._limits,
        )
        banks = [
            memory.bank(stream, command.layer, missing_ok=True) or memory.new_bank(command.layer)
            for stream in command.streams
        ]
        record, adding = namespace.record, Adding(command.streams, banks, lengths)
        if not self._memories.answered.knows(record.tenant, command.request_id, uid=record.uid):
            yield from self._prepare(namespace, memory, adding)
        add = partial(self._add, namespace, memory, command, adding)
        return (
            yield from self._memories.answered.once(
                record.tenant,
                command.request_id,
                uid=record.uid,
                call=f"add {command.namespace} {command.layer} {command.streams} {lengths}",
                answer_type=Added,
                work=lambda: in_one_step(add, multiply_adds=written_work(command)),
                rows=len(command.streams),
            )
        )

    def _prepare(self, namespace: Namespace, memory: NamespaceMemory, adding: Adding) -> Steps[None]:
        """Finds memory for what an add brings.

        Banks that it outgrows move to larger buffers. They do so though the caller leaves: or one with little
        time would have them begin anew each time, and never be done.

        Raises:
            RecollectError: There is no room; no bank has moved for what cannot be stored.
        """
        self._require_room(namespace, memory, adding)
        for stream, bank, length in adding.rows():
            if bank.bytes_for(length) > bank.allocated_bytes and bank.ring.count:
                # Others of the tenant may have grown since.
                self._require_room(namespace, memory, Adding([stream], [bank], [length]))
                yield from kept(bank.growing(length))
        for _, bank, length in adding.rows():
            yield from bank.touch(length)

    def _add(self, namespace: Namespace, memory: NamespaceMemory, command: Add, adding: Adding) -> Added:
        self._require_room(namespace, memory, adding)
        grow_together([(bank, length) for _, bank, length in adding.rows()])
        # All have room, and none was written to: from here on the call is stored whole.
        banks, evicted = adding.banks, 0
        first_ids = tuple(bank.ring.next_sequence for bank in banks)
        now_s = self._clock()
        for row, (stream, bank, length) in enumerate(adding.rows()):
            memory.adopt(stream, command.layer, bank)
            keys = DenseArray(command.keys.raw[row, :, :length], command.keys.dtype)
            values = DenseArray(command.values.raw[row, :, :length], command.values.dtype)
            evicted += bank.add(keys, values, now_s=now_s)
        next_sequences = tuple(bank.ring.next_sequence for bank in banks)
        return Added(first_ids=first_ids, next_sequences=next_sequences, evicted=evicted)

    def _require_room(self, namespace: Namespace, memory: NamespaceMemory, adding: Adding) -> None:
        require_room(
            self._memories,
            memory,
            self._memories.usage(namespace.record.tenant),
            adding=adding,
            quotas=namespace.quotas,
            limits=self._limits,
        )

    def search(self, namespace: Namespace, command: Search) -> Steps[Found]:
        """The top_k entries of each query, in float32 scores; pairs where asked for.

        Raises:
            RecollectError: Of the domain's tree.
        """
        memory = self._memory(namespace, command.layer)
        spec = memory.spec
        validation.check_pairs_dtype(command.pairs_dtype, spec)
        banks = self._read(memory, command, hit_bytes=hit_bytes(spec, command), query_bytes=0)
        queries = yield from as_stored(command.queries, spec)
        rows, heads, tokens, _ = queries.shape
        shape = (rows, heads, tokens, command.top_k)
        scores, ids = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
        hits_of_rows: list[RowHits] = []
        for row, bank in enumerate(banks):
            if bank is None:
                scores[row], ids[row] = -np.inf, -1
                hits_of_rows.append((None, ids[row]))
                continue
            hits = yield from bank.search(queries.row(row), command.top_k, exact=command.exact)
            scores[row], ids[row] = hits.scores, bank.ids(hits.slots)
            hits_of_rows.append((bank, hits.slots))
        found = Found(scores, ids, keys=None, values=None, next_sequences=_reached(memory, command))
        dtype = pairs_dtype(spec, command)
        keys = Coming((*shape, spec.key_dim), dtype) if command.include_keys else None
        values = Coming((*shape, spec.value_dim), dtype) if command.include_values else None
        return (yield from with_pairs(found, hits_of_rows, command, keys=keys, values=values))

    def answer_bytes(self, namespace: Namespace, command: Search) -> int:
        """Bytes of a streamed search's answer; of one that will be refused, at most those allowed."""
        shape = command.queries.shape
        hits = math.prod(shape[:3]) * max(0, command.top_k)
        return min(hits * hit_bytes(namespace.record.spec, command), self._limits.stream_bytes_max)

    def attend(self, namespace: Namespace, command: Attend) -> Steps[Attended]:
        """Attention over the top_k entries of each query, with its log-sum-exp.

        Raises:
            RecollectError: Of the domain's tree.
        """
        validation.check_scale(command.scale)
        memory = self._memory(namespace, command.layer)
        spec = memory.spec
        banks = self._read(
            memory,
            command,
            # Counted even if the caller wants no ids: so the bound is one on working memory too.
            hit_bytes=OFFSET_BYTES,
            query_bytes=spec.value_dim * spec.dtype.itemsize_bytes + LSE_BYTES,
        )
        queries = yield from as_stored(command.queries, spec)
        rows, heads, tokens, _ = queries.shape
        ids = np.full((rows, heads, tokens, command.top_k), -1, dtype=np.int64) if command.with_ids else None
        attention = yield from attend_rows(
            banks,
            queries,
            command.top_k,
            value_dim=spec.value_dim,
            scale=command.scale,
            exact=command.exact,
        )
        if ids is not None:
            for row, bank in enumerate(banks):
                if bank is not None:
                    ids[row] = bank.ids(attention.slots[row])
        return Attended(
            output=self._memories.narrowed(attention.output, spec.dtype),
            lse=attention.lse,
            ids=ids,
            next_sequences=_reached(memory, command),
        )

    def attend_backward(self, namespace: Namespace, command: AttendBackward) -> Steps[DenseArray]:
        """The gradient [B, Hq, T, Dk] of `attend` with respect to the queries.

        Raises:
            StaleEntryError: An entry has been evicted since the forward call.
            RecollectError: Another of the domain's tree.
        """
        validation.check_scale(command.scale)
        memory = self._memory(namespace, command.layer)
        spec, rows = memory.spec, len(command.streams)
        validation.check_streams(command.streams, self._limits, distinct=False)
        for argument, array, dim in (
            ("queries", command.queries, spec.key_dim),
            ("grad_output", command.grad_output, spec.value_dim),
        ):
            validation.check_queries(argument, array, rows=rows, dim=dim, spec=spec, limits=self._limits)
        shape = command.queries.shape
        if command.grad_output.shape[:3] != shape[:3]:
            raise InvalidArgumentError(
                "grad_output",
                f"has shape {list(command.grad_output.shape)}; expected {[*shape[:3], spec.value_dim]}",
            )
        validation.check_ids(command.ids, shape, self._limits)
        if command.grad_lse is not None:
            validation.check_grad_lse(command.grad_lse, shape[:3])
        yield work.moved(command.queries.raw.nbytes + command.grad_output.raw.nbytes + command.ids.nbytes)
        gradient = np.zeros(shape, dtype=np.float32)
        for row, stream in enumerate(command.streams):
            # A stream without a bank in this layer has an empty one: any id it is asked for is stale.
            bank = memory.bank(stream, command.layer, missing_ok=True) or memory.new_bank(command.layer)
            gradient[row] = yield from bank.attend_backward(
                command.queries.row(row),
                command.ids[row],
                scale=command.scale,
                grad_output=command.grad_output.row(row),
                grad_lse=None if command.grad_lse is None else command.grad_lse[row],
            )
        return self._memories.narrowed(gradient, spec.dtype)

    def evict(self, namespace: Namespace, command: Evict) -> Steps[int]:
        """Removes entries; returns how many.

        Raises:
            RecollectError: Of the domain's tree; nothing was removed.
        """
        memory = self._memories.of(namespace.record)
        validation.check_streams(command.streams, self._limits, distinct=True)
        validation.check_layers(command.layers, self._limits)
        validation.check_selector(command.selector, self._limits)
        for layer in command.layers:
            memory.require_layer(layer)
        yield 0
        selected = as_text(command.selector)
        return (
            yield from self._memories.answered.once(
                namespace.record.tenant,
                command.request_id,
                uid=namespace.record.uid,
                call=f"evict {command.namespace} {command.layers} {command.streams} {selected}",
                answer_type=int,
                work=lambda: kept(self._evict(memory, command)),
            )
        )

    def _evict(self, memory: NamespaceMemory, command: Evict) -> Steps[int]:
        """Some banks at a time: nobody sees the others meanwhile, and it ends once it has begun."""
        left = yield 0
        layers = command.layers or memory.spec.layers
        for stream in command.streams:
            memory.bank(stream, layers[0], missing_ok=command.missing_ok)
        now_s = self._clock()
        # By the banks that there are: a thousand streams in each of hundreds of layers may be none.
        banks = memory.held(command.streams, frozenset(command.layers))
        evicted = done = 0
        if isinstance(command.selector, Everything):
            done = held_work(banks)  # to be zeroed, once they are forgotten
        for bank in banks:
            evicted += yield from bank.evicting(command.selector, now_s=now_s)
        if isinstance(command.selector, Everything):
            for stream in command.streams:
                done += work.OBJECTS * memory.count([stream])
                memory.forget(stream, layers)
                if done >= left:
                    left, done = (yield done), 0
        yield done
        return evicted

    def describe(self, namespace: Namespace, command: Describe) -> Steps[Stats]:
        """Totals of a namespace, and details of the streams named.

        Raises:
            StreamNotFoundError: A stream named does not exist.
            InvalidArgumentError: Too many streams, or banks of them, or a bad name.
        """
        memory = self._memories.of(namespace.record)
        if command.streams:
            validation.check_streams(command.streams, self._limits, distinct=False)
        layers = memory.spec.layers
        for stream in command.streams:
            memory.bank(stream, layers[0])
        held = [
            (stream, layer, bank)
            for stream in dict.fromkeys(command.streams)
            for layer, bank in memory.layers_of(stream)
        ]
        validation.check_described([stream for stream, _, _ in held], self._limits)
        left = yield work.moved(sum(map(len, command.streams)))
        banks: list[BankStats] = []
        while len(banks) < len(held):
            some = held[len(banks) : len(banks) + max(1, left // work.OBJECTS)]
            banks += [_described(*each) for each in some]
            left = yield work.OBJECTS * len(some)
        usage = memory.usage
        return Stats(streams=usage.streams, entries=usage.entries, bytes=usage.bytes, banks=tuple(banks))

    def _memory(self, namespace: Namespace, layer: int) -> NamespaceMemory:
        memory = self._memories.of(namespace.record)
        memory.require_layer(layer)
        return memory

    def _read(
        self, memory: NamespaceMemory, command: Search | Attend, *, hit_bytes: int, query_bytes: int
    ) -> list[Bank | None]:
        """Validates a read and finds the bank of each row; None where it is empty."""
        validation.check_streams(command.streams, self._limits, distinct=False)
        validation.check_top_k(command.top_k, self._limits)
        validation.check_min_sequences(command.min_sequences, len(command.streams))
        validation.check_queries(
            "queries",
            command.queries,
            rows=len(command.streams),
            dim=memory.spec.key_dim,
            spec=memory.spec,
            limits=self._limits,
        )
        queries = math.prod(command.queries.shape[:3])
        validation.check_answer_bytes(
            queries * command.top_k,
            hit_bytes=hit_bytes,
            other_bytes=queries * query_bytes,
            limits=self._limits,
            streamed=isinstance(command, Search) and command.streamed,
        )
        banks = [memory.bank(s, command.layer, missing_ok=command.missing_ok) for s in command.streams]
        for stream, least in zip(command.streams, command.min_sequences, strict=False):
            reached = memory.next_sequence(stream, command.layer)
            if reached < least:
                raise SequenceNotReachedError(
                    f"stream {stream!r} has reached sequence {reached} in layer {command.layer}; "
                    f"the call asks for {least}",
                    argument="min_sequences",
                )
        return banks


def _described(stream: str, layer: int, bank: Bank) -> BankStats:
    return BankStats(
        stream=stream,
        layer=layer,
        entries=bank.ring.count,
        first_id=bank.ring.first_id,
        next_sequence=bank.ring.next_sequence,
        bytes=bank.allocated_bytes,
        index=bank.index_state,
    )


def _reached(memory: NamespaceMemory, command: Search | Attend) -> tuple[int, ...]:
    return tuple(memory.next_sequence(stream, command.layer) for stream in command.streams)
