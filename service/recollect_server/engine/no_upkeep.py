"""For stores that have no background work: what they keep is kept by their own calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recollect_server.domain.steps import Steps


class NoUpkeep:
    """The part of the `Store` port that is about upkeep."""

    __slots__ = ()

    def upkeep_work(self, live: Sequence[slice]) -> int:
        """See `Store.upkeep_work`."""
        del live
        return 0

    def upkeep(self, live: Sequence[slice], *, seconds: float = math.inf) -> Steps[bool]:
        """See `Store.upkeep`."""
        del live, seconds
        yield 0
        return False
