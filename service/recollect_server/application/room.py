"""Whether there is room for what an add brings: in banks, in its tenant's quotas, in the server's bounds."""

from __future__ import annotations

from collections.abc import Sequence

from recollect_server.application.commands import Add
from recollect_server.application.memories import Memories
from recollect_server.domain.bank import Bank
from recollect_server.domain.errors import MemoryExhaustedError, QuotaExceededError
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.tenants import Quotas
from recollect_server.domain.usage import Usage

REMEDY = "Evict, delete a namespace, or ask for a larger quota"


def outgrown(memory: NamespaceMemory, command: Add, limits: Limits) -> list[tuple[str, Bank, int]]:
    """Streams whose banks are too small for an add, and for how many tokens; none of one that is wrong."""
    shape, spec, streams = command.keys.shape, memory.spec, command.streams
    if len(shape) != 4 or not 0 < len(streams) <= limits.rows_max:
        return []
    tokens = shape[2]
    lengths = command.lengths or (tokens,) * len(streams)
    is_right = len(lengths) == len(streams) and all(0 <= length <= tokens for length in lengths)
    if not is_right or shape != (len(streams), spec.heads, tokens, spec.key_dim):
        return []
    held = ((stream, memory.bank(stream, command.layer, missing_ok=True)) for stream in streams)
    return [
        (stream, bank, length)
        for (stream, bank), length in zip(held, lengths, strict=True)
        if bank is not None and bank.bytes_for(length) > bank.allocated_bytes
    ]


def require_room(
    memories: Memories,
    memory: NamespaceMemory,
    usage: Usage,
    *,
    streams: Sequence[str],
    banks: Sequence[Bank],
    lengths: Sequence[int],
    quotas: Quotas,
    limits: Limits,
) -> None:
    """Checks an add before anything of it is stored. What only overwrites passes at any quota.

    Args:
        memories: Of the server.
        memory: That is added to.
        usage: Of its tenant.
        streams: Of the rows.
        banks: Of the rows, new ones included.
        lengths: Tokens of each row.
        quotas: Of the tenant.
        limits: The server's bounds.

    Raises:
        TooManyStreamsError: The namespace would have too many.
        QuotaExceededError: The tenant would have too many bytes, entries or streams.
        MemoryExhaustedError: All tenants together would have too many bytes.
    """
    memory.require_room_for(streams)
    more_streams = memory.new_streams(streams)
    more_bytes = sum(b.bytes_for(n) - b.allocated_bytes for b, n in zip(banks, lengths, strict=True))
    more_entries = sum(b.entries_for(n) - b.ring.count for b, n in zip(banks, lengths, strict=True))
    for quota, more, used, most in (
        ("streams", more_streams, usage.streams, quotas.streams_max),
        ("entries", more_entries, usage.entries, quotas.entries_max),
        ("bytes", more_bytes, usage.bytes, quotas.bytes_max),
    ):
        if more > 0 and used + more > most:
            raise QuotaExceededError(
                quota, f"this call needs {more:,} {quota} more; {used:,} of {most:,} are in use. {REMEDY}"
            )
    used_bytes = memories.total.bytes
    if more_bytes > 0 and used_bytes + more_bytes > limits.memory_bytes_max:
        raise MemoryExhaustedError(
            f"this call needs {more_bytes:,} bytes more; {used_bytes:,} of "
            f"{limits.memory_bytes_max:,} are in use. Evict, or delete a namespace"
        )
