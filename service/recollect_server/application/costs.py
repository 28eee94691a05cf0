"""What a call will cost the device, estimated before it is queued, from what is known without its turn."""

from __future__ import annotations

from collections.abc import Sequence

from recollect_server.application.commands import (
    Add,
    Attend,
    AttendBackward,
    Command,
    Describe,
    Evict,
    Namespace,
    Search,
)
from recollect_server.domain import work
from recollect_server.domain.bank import Bank
from recollect_server.domain.eviction import ByIds, Everything, Selector
from recollect_server.domain.limits import FAISS_TOP_K_MAX
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.spec import NamespaceSpec


def cost_of(namespace: Namespace, command: Command, memory: NamespaceMemory | None) -> int:
    """Multiply-adds of a command, which nobody has validated yet.

    Args:
        namespace: That it is for.
        command: What is to be done.
        memory: Of the namespace, if it has one; only looked at.
    """
    return work.CALL + _work_of(command, namespace.record.spec, memory)


def _work_of(command: Command, spec: NamespaceSpec, memory: NamespaceMemory | None) -> int:
    if isinstance(command, Add):
        return written_work(command)
    if isinstance(command, AttendBackward):
        return work.gathered(command.ids.size, spec.key_dim + spec.value_dim)
    if memory is None:
        return 0
    if isinstance(command, Evict):
        return evicted_work(command.selector, memory.held(command.streams, frozenset(command.layers)))
    if isinstance(command, Describe):
        return work.OBJECTS * memory.count(command.streams)
    return _read_work(command, spec, memory)


def written_work(command: Add) -> int:
    """Checks and copies."""
    return work.moved(command.keys.raw.nbytes + command.values.raw.nbytes)


def evicted_work(selector: Selector, banks: Sequence[Bank]) -> int:
    """Each bank is looked at; entries are moved together or zeroed, but the oldest go for nothing."""
    looked_at = work.BANK * len(banks)
    if not isinstance(selector, ByIds | Everything):
        return looked_at
    return looked_at + held_work(banks)


def held_work(banks: Sequence[Bank]) -> int:
    """To move or to zero all entries of banks."""
    return work.moved(sum(bank.ring.count * bank.spec.entry_bytes for bank in banks))


def _read_work(command: Search | Attend, spec: NamespaceSpec, memory: NamespaceMemory) -> int:
    # Of none, a shape may say anything.
    if len(command.queries.shape) != 4 or not command.queries.raw.size:
        return 0
    rows, heads, tokens, _ = command.queries.shape
    queries = heads * tokens // spec.heads
    searched = sum(memory.search_work(stream, command.layer, queries=queries) for stream in command.streams)
    if isinstance(command, Attend):
        dims = spec.value_dim
    else:
        dims = spec.key_dim * command.include_keys + spec.value_dim * command.include_values
    top_k = max(0, min(command.top_k, FAISS_TOP_K_MAX))
    return searched + work.gathered(rows * heads * tokens * top_k, dims)
