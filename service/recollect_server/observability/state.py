"""What a server is asked at each scrape. The composition root answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TenantState:
    """What one tenant holds on this server now, and what of its work waits.

    Attributes:
        bytes: Allocated for keys, values and indexes, and 4 KiB for each bank.
        entries: Live ones.
        namespaces: Of which this server holds something.
        streams: In all of them together.
        calls_queued: Waiting for the device.
        cost_queued: Of those calls, in multiply-adds.
    """

    bytes: int = 0
    entries: int = 0
    namespaces: int = 0
    streams: int = 0
    calls_queued: int = 0
    cost_queued: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The memory of one device.

    Attributes:
        name: As `GetServerInfo` gives it, as "cpu" or "cuda:0".
        bytes_allocated: For keys, values and indexes of all tenants.
        bytes_max: The bound on them.
    """

    name: str
    bytes_allocated: int
    bytes_max: int


class ServerState(Protocol):
    """Asked on the thread that answers the scrape. Must be cheap, and take no lock for long."""

    def tenants(self) -> Mapping[str, TenantState]:
        """Those with anything to tell, by name."""
        ...

    def devices(self) -> Sequence[DeviceState]:
        """All that hold keys and values."""
        ...

    def is_ready(self) -> bool:
        """What /readyz says."""
        ...

    def is_draining(self) -> bool:
        """Whether new work is refused because the server is to end."""
        ...

    def registry_is_reachable(self) -> bool:
        """Whether the registry of tenants, keys and namespaces answered last time."""
        ...
