"""For stores that have no background work: what they keep is kept by their own calls."""

from __future__ import annotations

from collections.abc import Sequence

from recollect_server.domain.steps import Steps


class NoUpkeep:
    """The part of the `Store` port that is about upkeep."""

    __slots__ = ()

    def wants_upkeep(self, live: Sequence[slice]) -> bool:
        """See `Store.wants_upkeep`."""
        del live
        return False

    def upkeep(self, live: Sequence[slice]) -> Steps[bool]:
        """See `Store.upkeep`."""
        del live
        yield 0
        return False
