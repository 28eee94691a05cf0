"""How often tenants may change namespaces and keys."""

from __future__ import annotations

import pytest

from recollect_server.application.changes import TENANTS_REMEMBERED, Changes
from recollect_server.domain.audit import SERVER, Origin
from recollect_server.domain.errors import QuotaExceededError
from recollect_server.domain.tenants import Quotas

TENANT = Origin("tenant:t:0123456789abcdef", "127.0.0.1")
OPERATOR = Origin("operator:0123456789abcdef", "127.0.0.1")
QUOTAS = Quotas(changes_per_minute=30)


class Bench:
    """Changes on a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.changes = Changes(monotonic=lambda: self.now_s)

    def made(self, attempts: int, *, tenant: str = "t", origin: Origin = TENANT) -> int:
        """How many of so many attempts are let through."""
        made = 0
        for _ in range(attempts):
            try:
                self.changes.count(tenant, QUOTAS, origin=origin)
                made += 1
            except QuotaExceededError:
                pass
        return made


def test_a_loop_of_changes_is_slowed_down() -> None:
    """A tenant that makes and deletes namespaces in a loop fills the audit log without end."""
    bench = Bench()
    assert bench.made(100) == 30
    assert bench.made(100, tenant="other") == 30
    bench.now_s += 10
    assert bench.made(100) == 5
    bench.now_s += 3600
    assert bench.made(100) == 30


@pytest.mark.parametrize("origin", [OPERATOR, SERVER])
def test_operators_are_not_bound(origin: Origin) -> None:
    """An operator cannot clean up after a tenant, or uses up what the tenant may do."""
    bench = Bench()
    assert bench.made(1000, origin=origin) == 1000
    assert bench.made(100) == 30


def test_a_refusal_says_when() -> None:
    """A refused tenant is not told when to come back."""
    bench = Bench()
    bench.made(30)
    with pytest.raises(QuotaExceededError) as caught:
        bench.changes.count("t", QUOTAS, origin=TENANT)
    assert caught.value.reason == "QUOTA_CHANGES_PER_MINUTE"
    assert caught.value.retry_after_s is not None
    bench.now_s += caught.value.retry_after_s
    assert bench.made(2) == 1


def test_what_is_remembered_is_bounded() -> None:
    """Tenants that changed something once take memory for ever."""
    bench = Bench()
    for number in range(TENANTS_REMEMBERED + 100):
        bench.made(1, tenant=f"t{number}")
    assert len(bench.changes._allowances) == TENANTS_REMEMBERED
