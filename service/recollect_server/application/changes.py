"""How often a tenant may change what all servers share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from recollect_server.domain.audit import Origin
from recollect_server.domain.errors import QuotaExceededError
from recollect_server.domain.tenants import Quotas

TENANTS_REMEMBERED = 4096
"""Beyond so many, the one that changed nothing for longest is forgotten."""


class Changes:
    """Counts the changes of each tenant. Not thread-safe: the event loop owns it.

    Without a bound, a loop that makes and deletes a namespace would fill the audit log, which is for ever,
    and have every server read its records again at each turn. What makes something is counted; what ends it
    must never be refused, and there cannot be more of it. Evictions through the admin API are counted too:
    they can be asked for without an end, and each is a line of the log.

    Args:
        monotonic: Seconds of a clock that never goes back.
    """

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, tenant: str, quotas: Quotas, *, origin: Origin) -> None:
        """Counts a change that is to be made; those of operators are free.

        Raises:
            QuotaExceededError: The tenant has made too many.
        """
        if not origin.is_tenant:
            return
        now_s, most = self._monotonic(), float(quotas.changes_per_minute)
        allowance, counted_at_s = self._allowances.get(tenant, (most, now_s))
        allowance = min(most, allowance + (now_s - counted_at_s) * most / 60)
        if allowance < 1:
            raise QuotaExceededError(
                "changes_per_minute",
                f"more than {quotas.changes_per_minute} namespaces made, keys made and evictions a minute",
                retry_after_s=(1 - allowance) * 60 / most,
            )
        self._allowances[tenant] = (allowance - 1, now_s)
        self._allowances.move_to_end(tenant)
        if len(self._allowances) > TENANTS_REMEMBERED:
            self._allowances.popitem(last=False)
