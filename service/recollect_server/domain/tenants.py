"""Tenants and what each may use."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

from recollect_server.domain.errors import InvalidArgumentError

TENANT_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""As a DNS label: it appears in URLs, metrics and logs."""

GIB = 1024**3

QUOTA_MAX = 2**53
"""JSON's integers are exact up to it."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Bounds of one tenant on one server; namespaces are counted over all servers.

    What is used beyond one is refused with RESOURCE_EXHAUSTED at once, and reading, evicting and deleting
    stay possible over those that bound what is stored.
    """

    bytes_max: int = 4 * GIB
    """Allocated for keys, values and indexes, and 4 KiB for each bank."""
    entries_max: int = 16_777_216
    namespaces_max: int = 256
    streams_max: int = 65_536
    """In all namespaces together."""
    calls_per_second: int = 10_000
    """Sustained; a burst of one second's worth is let through."""
    changes_per_minute: int = 600
    """Namespaces made, keys issued and rotated: each is a line in the audit log for ever. To delete and to
    revoke is always possible, and there is no more of it. A burst of one minute's worth is let through.
    Operators are not bound by it."""
    calls_in_flight_max: int = 128
    """Calls that were accepted and not yet answered."""
    bytes_in_flight_max: int = 256 * 1024**2
    """Of their messages."""
    calls_queued_max: int = 128
    """Calls that wait for the device."""
    weight: int = 1
    """Share of the device while others want it too: a tenant of weight 2 gets twice that of weight 1."""

    @classmethod
    def unbounded(cls) -> Quotas:
        """For a tenant that shares the server with nobody."""
        bounds = {each.name: QUOTA_MAX for each in dataclasses.fields(cls) if each.name != "weight"}
        return dataclasses.replace(cls(), **bounds)

    def validate(self) -> None:
        """Checks the bounds.

        Raises:
            InvalidArgumentError: One is not positive.
        """
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not 1 <= value <= QUOTA_MAX:
                raise InvalidArgumentError(
                    f"quotas.{each.name}", f"is {value}; it must be from 1 to {QUOTA_MAX:,}"
                )


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays, who is isolated.

    Attributes:
        name: Unique and for ever.
        created_at_ms: Unix time.
        quotas: What it may use.
        disabled: Its keys are refused; what it stored stays.
        revision: Counts the changes, so that two operators do not overwrite each other unseen.
    """

    name: str
    created_at_ms: int
    quotas: Quotas = field(default_factory=Quotas)
    disabled: bool = False
    revision: int = 1


def validate_tenant_name(name: str) -> None:
    """Checks the name of a tenant.

    Raises:
        InvalidArgumentError: It is no DNS label.
    """
    if not TENANT_PATTERN.fullmatch(name) or name.endswith("-"):
        raise InvalidArgumentError(
            "name",
            f"is {name!r}; use 1 to 63 lower-case letters, digits and -, beginning and ending with a letter "
            "or digit",
        )
