"""Whether there is room for what an add brings: in banks, in its tenant's quotas, in the server's bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recollect_server.application.memories import Memories
from recollect_server.domain.bank import Bank
from recollect_server.domain.errors import MemoryExhaustedError, QuotaExceededError
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.tenants import Quotas
from recollect_server.domain.usage import Usage

REMEDY = "Evict, delete a namespace, or ask for a larger quota"


@dataclass(frozen=True, slots=True)
class Adding:
    """What an add brings, row by row.

    Attributes:
        streams: All different.
        banks: Of the streams, new ones included.
        lengths: How many tokens.
    """

    streams: Sequence[str]
    banks: Sequence[Bank]
    lengths: Sequence[int]

    def rows(self) -> Iterator[tuple[str, Bank, int]]:
        """Stream, bank and length of each."""
        return zip(self.streams, self.banks, self.lengths, strict=True)


def require_room(
    memories: Memories,
    memory: NamespaceMemory,
    usage: Usage,
    *,
    adding: Adding,
    quotas: Quotas,
    limits: Limits,
) -> None:
    """Checks an add before anything of it is stored. What only overwrites passes at any quota.

    Args:
        memories: Of the server.
        memory: That is added to.
        usage: Of its tenant.
        adding: What it brings.
        quotas: Of the tenant.
        limits: The server's bounds.

    Raises:
        TooManyStreamsError: The namespace would have too many.
        QuotaExceededError: The tenant would have too many bytes, entries or streams.
        MemoryExhaustedError: All tenants together would have too many bytes.
    """
    memory.require_room_for(adding.streams)
    more_streams = memory.new_streams(adding.streams)
    more_bytes = sum(bank.bytes_for(n) - bank.allocated_bytes for _, bank, n in adding.rows())
    more_entries = sum(bank.entries_for(n) - bank.ring.count for _, bank, n in adding.rows())
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
