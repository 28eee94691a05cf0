"""Two servers that share a Redis, under load, while it is killed, frozen, and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

import recollect
from recollect.v1 import memory_pb2 as pb
from tests.e2e.admin_api import AWAY, Admin, found_by, told_by
from tests.e2e.outage import DIM, HEADS, Caller, Changer, Everybody, create_request
from tests.e2e.shell import PATIENCE_S, key_id_of, wait_for
from tests.redis_server import RedisServer, require_redis
from tests.server_process import ServerProcess

pytestmark = pytest.mark.e2e

ONES = np.ones((1, HEADS, 2, DIM), dtype=np.float16)
TENANTS = ("acme", "umbrella")
ENOUGH = 20
"""Calls of each caller, or changes, that make a phase of a test."""
SOON_S = 15.0
"""A change is to be seen by all servers within a second; this is what the slowest machine is given."""
FROZEN_S = 1.0
"""How long servers wait for an answer of a Redis that gives none."""


@dataclass
class Pair:
    """Two servers and their Redis.

    Attributes:
        tokens: A key of each tenant.
        stranger: A key that no server has seen yet.
    """

    redis: RedisServer
    admins: tuple[Admin, Admin]
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    stranger: str = ""

    def issue(self, tenant: str) -> str:
        """A new key's token."""
        issued = self.admins[0].change("POST", f"/tenants/{tenant}/keys", {"scopes": ["read", "write"]})
        assert issued is not None
        return str(issued["token"])

    def shut_out(self) -> str:
        """A key that both servers knew, and know to be revoked: they have seen all changes up to now."""
        token = self.issue("acme")
        assert {status_of(admin, token) for admin in self.admins} == {"OK"}
        self.admins[0].change("DELETE", f"/tenants/acme/keys/{key_id_of(token)}")
        assert status_of(self.admins[0], token) == "UNAUTHENTICATED"
        seen_s = wait_for(lambda: status_of(self.admins[1], token) != "OK", "the other server sees it")
        assert seen_s < SOON_S
        return token

    def wait_until_away(self) -> None:
        """Until both servers say that it is the registry that they miss."""
        for admin in self.admins:
            wait_for(partial(says_why, admin), "/readyz says why")

    def wait_until_back(self) -> None:
        """Until both servers are ready, without anybody's help."""
        for admin in self.admins:
            wait_for(partial(is_ready, admin), "a server recovers by itself")

    def check_refusals(self, revoked: str) -> None:
        """While Redis is away: no change, nobody who is not known, and not those who were shut out."""
        for admin in self.admins:
            assert admin.change("POST", "/tenants", {"name": "not-now"}) is None
            path = f"/tenants/acme/keys/{key_id_of(self.tokens['acme'])}"
            assert admin.change("DELETE", path) is None
            create = create_request("not-now")
            assert admin.reason("CreateNamespace", create, self.tokens["acme"]) == AWAY
            assert status_of(admin, revoked) == "UNAUTHENTICATED"
            assert status_of(admin, self.stranger) == AWAY

    def check_nothing_is_lost(self, changer: Changer) -> None:
        """Both servers have every acknowledged change, and none that the audit log does not have."""
        for admin in self.admins:
            log: dict[str, list[str]] = {}
            for entry in reversed(admin.items("/audit")):
                log.setdefault(str(entry["tenant"]), []).append(str(entry["action"]))
            for tenant in ("", *TENANTS, "not-now"):
                log.pop(tenant, None)
            found = found_by(admin, changer.stories)
            for tenant, story in changer.stories.items():
                happened = log.pop(tenant, [])
                with_unknown = [*story.acknowledged, story.unknown]
                assert happened in (story.acknowledged, with_unknown), tenant
                assert found[tenant] == told_by(happened), tenant
            assert not log, "changes that nobody made"


def says_why(admin: Admin) -> bool:
    """Whether a server says that it misses its registry."""
    return "registry" in admin.not_ready_because()


def is_ready(admin: Admin) -> bool:
    """Whether it misses nothing."""
    return not admin.not_ready_because()


def status_of(admin: Admin, token: str) -> str:
    """What becomes of a call with this key: "OK", or a reason."""
    return admin.reason("GetNamespace", pb.GetNamespaceRequest(name="load"), token)


@contextlib.contextmanager
def two_servers(*, timeout_s: float = PATIENCE_S) -> Iterator[Pair]:
    """With tenants, and a key and a namespace of each.

    Args:
        timeout_s: For how long they wait for an answer of Redis, if it is there.
    """
    require_redis()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        settings = {"RECOLLECT_REGISTRY__URL": redis.url, "RECOLLECT_REGISTRY__TIMEOUT_S": f"{timeout_s}"}
        servers = [stack.enter_context(ServerProcess(environment=settings)) for _ in range(2)]
        one, other = (stack.enter_context(Admin(server)) for server in servers)
        pair = Pair(redis, (one, other))
        for tenant in TENANTS:
            one.change("POST", "/tenants", {"name": tenant})
            pair.tokens[tenant] = pair.issue(tenant)
            assert one.reason("CreateNamespace", create_request("load"), pair.tokens[tenant]) == "OK"
        pair.stranger = pair.issue("acme")
        yield pair
        for server in servers:
            assert "Traceback" not in server.log


def more(callers: list[Caller], everybody: Everybody) -> None:
    """Waits until each caller has got enough answers more."""
    before = [caller.answered for caller in callers]

    def enough() -> bool:
        everybody.check()
        return all(caller.answered >= n + ENOUGH for caller, n in zip(callers, before, strict=True))

    wait_for(enough, "known callers are answered")


def more_changes(changer: Changer, everybody: Everybody) -> None:
    """Waits until enough changes more were acknowledged."""
    before = changer.acknowledged

    def enough() -> bool:
        everybody.check()
        return changer.acknowledged >= before + ENOUGH

    wait_for(enough, "changes are made")


def more_refusals(changer: Changer, everybody: Everybody, *, enough: int = ENOUGH) -> None:
    """Waits until so many changes more were refused."""
    before = changer.refused

    def are_there() -> bool:
        everybody.check()
        return changer.refused >= before + enough

    wait_for(are_there, "changes are refused")


def refusals(callers: list[Caller]) -> list[int]:
    """How many calls of each caller were refused so far."""
    return [caller.refused for caller in callers]


def callers_of(pair: Pair) -> list[Caller]:
    """One of each tenant at each server."""
    pairs = [(admin.server, token) for admin in pair.admins for token in pair.tokens.values()]
    return [Caller(server, token, "load", seed=seed) for seed, (server, token) in enumerate(pairs)]


def test_a_change_at_one_server_is_seen_at_the_other() -> None:
    """A server goes on with tenants, quotas or namespaces that were changed at another one."""
    with two_servers() as pair:
        one, other = pair.admins
        token = pair.tokens["umbrella"]

        def seen(what: str, wanted: str, admin: Admin) -> None:
            assert wait_for(lambda: status_of(admin, token) == wanted, what) < SOON_S

        one.change("PATCH", "/tenants/umbrella", {"disabled": True})
        seen("the tenant is disabled", "UNAUTHENTICATED", other)
        other.change("PATCH", "/tenants/umbrella", {"disabled": False})
        seen("the tenant is enabled", "OK", one)
        with recollect.connect(other.server.tcp_url, token=token) as there:
            there.namespace("load").add(0, ONES, ONES, streams=["a"])
            assert one.reason("DeleteNamespace", pb.DeleteNamespaceRequest(name="load"), token) == "OK"
            seen("the namespace is gone", "NAMESPACE_NOT_FOUND", other)
            assert one.reason("CreateNamespace", create_request("load"), token) == "OK"
            seen("there is a new one", "OK", other)
            assert there.namespace("load").stats().entries == 0, (
                "what the one before held is not the new one's"
            )
            one.change("PUT", "/tenants/umbrella/quotas", {"entries_max": 1})

            def is_full() -> bool:
                try:
                    there.namespace("load").add(0, ONES, ONES, streams=["a"])
                except recollect.ResourceExhaustedError as refused:
                    return refused.reason == "QUOTA_ENTRIES"
                return False

            assert wait_for(is_full, "the quota holds") < SOON_S


def test_redis_killed_amid_changes() -> None:
    """A wrong answer is given, or an acknowledged change lost, when Redis dies and comes back under load."""
    with two_servers() as pair:
        callers, changer = callers_of(pair), Changer([admin.server for admin in pair.admins])
        with Everybody(changer, *callers) as everybody:
            for _ in range(2):
                more_changes(changer, everybody)
                more(callers, everybody)
                pair.redis.kill()
                pair.wait_until_away()
                more_refusals(changer, everybody)
                pair.redis.start_again()
                pair.wait_until_back()
                more_changes(changer, everybody)
                more(callers, everybody)
                before = refusals(callers), changer.refused
                more_changes(changer, everybody)
                more(callers, everybody)
                assert (refusals(callers), changer.refused) == before, "all is as it was"
        everybody.check()
        pair.check_nothing_is_lost(changer)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_known_callers_go_on_without_redis(how: str) -> None:
    """An outage of the registry stops everybody, or lets in who was shut out."""
    with two_servers(timeout_s=FROZEN_S if how == "freeze" else PATIENCE_S) as pair:
        callers, changer = callers_of(pair), Changer([admin.server for admin in pair.admins])
        with Everybody(changer, *callers) as everybody:
            more_changes(changer, everybody)
            changer.pause()
            # All changes have to be seen first: what may have changed is not believed in an outage.
            revoked = pair.shut_out()
            more(callers, everybody)
            for admin in pair.admins:
                admin.done("GET", "/api/v1/server/configuration")
            before = refusals(callers)
            pair.redis.kill() if how == "kill" else pair.redis.freeze()
            pair.wait_until_away()
            more(callers, everybody)
            pair.check_refusals(revoked)
            changer.resume()
            more_refusals(changer, everybody, enough=2)
            more(callers, everybody)
            assert refusals(callers) == before
            pair.redis.start_again() if how == "kill" else pair.redis.thaw()
            pair.wait_until_back()
            more_changes(changer, everybody)
            more(callers, everybody)
            for admin in pair.admins:
                assert status_of(admin, pair.stranger) == "OK"
        everybody.check()
        pair.check_nothing_is_lost(changer)


def test_a_server_that_starts_during_an_outage_waits() -> None:
    """A restart while Redis is away needs somebody to try again, or makes a server that knows no operator."""
    require_redis()
    with RedisServer() as redis:
        redis.kill()
        with (
            ServerProcess(environment={"RECOLLECT_REGISTRY__URL": redis.url}) as server,
            Admin(server) as admin,
        ):
            assert says_why(admin)
            assert admin.change("POST", "/tenants", {"name": "acme"}) is None
            redis.start_again()
            wait_for(partial(is_ready, admin), "the server recovers by itself")
            wait_for(
                lambda: admin.admin("GET", "/api/v1/tenants").is_success,
                "the operator of the settings is made",
            )
            assert admin.change("POST", "/tenants", {"name": "acme"}) is not None
            assert "Traceback" not in server.log
