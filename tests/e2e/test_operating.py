"""A server from its first start to its last: real processes, the real `recollect` command, real clients."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import recollect
from tests.e2e.shell import Shell, key_id_of, wait_for
from tests.server_process import ServerProcess

pytestmark = pytest.mark.e2e

SPEC = {"layers": [0], "heads": 2, "key_dim": 4, "value_dim": 4, "capacity": 64}
ONES = np.ones((1, 2, 10, 4), dtype=np.float16)
BRIEF_S = 6
"""Of keys that are to expire while a test watches: long enough to see them work before."""
DAY_S = 86_400


def served_from(data_dir: Path) -> ServerProcess:
    """A server that was told of no operator's key."""
    return ServerProcess(data_dir=data_dir, environment={"RECOLLECT_ADMIN__OPERATOR_KEY": ""})


def operator_of(server: ServerProcess, data_dir: Path) -> Shell:
    """Whoever can read the data directory."""
    return Shell(server, key="", options=("--key-file", str(data_dir / "operator.key")))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the module's server; made by it."""
    return tmp_path_factory.mktemp("operating") / "data"


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[ServerProcess]:
    """One for the tests that make tenants of their own."""
    with served_from(data_dir) as running:
        yield running


@pytest.fixture
def operator(server: ServerProcess, data_dir: Path) -> Shell:
    """The operator of the module's server."""
    return operator_of(server, data_dir)


def works(server: ServerProcess, token: str) -> bool:
    """Whether a key is let in; it must be refused as nobody's if not."""
    with recollect.connect(server.tcp_url, token=token, retries=0) as client:
        try:
            list(client.list_namespaces())
        except recollect.UnauthenticatedError:
            return False
        return True


def filled(client: recollect.Client, name: str = "run-7") -> recollect.Namespace:
    """A namespace with ten entries."""
    ns = client.create_namespace(name, layers=[0], heads=2, key_dim=4, value_dim=4, capacity=64)
    ns.add(0, ONES, ONES, streams=["a"])
    return ns


def test_the_first_operator_finds_a_key(server: ServerProcess, operator: Shell, data_dir: Path) -> None:
    """A new server has no operator, or others on the machine can read the key of the one it has."""
    file = data_dir / "operator.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert operator.many("tenants", "list") == []
    assert file.read_text().strip() not in server.log
    settings = operator.one("configuration")
    assert settings["data_dir"] == str(data_dir)
    assert "tls.cert_file" in operator.done("configuration")


def test_from_a_new_tenant_to_an_answer(server: ServerProcess, operator: Shell) -> None:
    """A customer cannot be served, a key allows more or less than its scopes, or a quota does not hold."""
    made = operator.one("tenants", "create", "acme", "--quota", "entries_max=15", "--quota", "weight=2")
    assert made["quotas"] == {**operator.one("tenants", "quotas", "acme"), "entries_max": 15, "weight": 2}
    both, reads = operator.new_key("acme", "read", "write"), operator.new_key("acme", "read")
    for url in (server.unix_url, server.tcp_url):
        with recollect.connect(url, token=both) as client:
            ns = client.create_namespace(
                "run-7", layers=[0], heads=2, key_dim=4, value_dim=4, capacity=64, exist_ok=True
            )
            if url == server.unix_url:
                ns.add(0, ONES, ONES, streams=["a"])
            np.testing.assert_allclose(ns.attend(0, ONES, top_k=4, streams=["a"]).output, 1)
            with pytest.raises(recollect.ResourceExhaustedError) as full:
                ns.add(0, ONES, ONES, streams=["a"])
            assert full.value.reason == "QUOTA_ENTRIES"
    operator.done("tenants", "quotas", "acme", "--quota", "entries_max=20")
    with recollect.connect(server.tcp_url, token=both) as client:
        client.namespace("run-7").add(0, ONES, ONES, streams=["a"])
    with recollect.connect(server.tcp_url, token=reads) as client:
        ns = client.namespace("run-7")
        assert ns.attend(0, ONES, top_k=4, streams=["a"]).output.shape == ONES.shape
        with pytest.raises(recollect.PermissionDeniedError):
            ns.add(0, ONES, ONES, streams=["a"])
        with pytest.raises(recollect.PermissionDeniedError):
            client.delete_namespace("run-7")
    for wrong in (
        "rk_nonsense",
        f"{reads[:-1]}{'0' if reads[-1] != '0' else '1'}",
        f"rk_{'0' * 16}_{'1' * 64}",
    ):
        assert not works(server, wrong)


def test_a_tenant_looks_after_its_own_keys(server: ServerProcess, operator: Shell) -> None:
    """A customer has to ask the operator for every key, or one's administrator reaches another's keys."""
    for tenant in ("initech", "hooli"):
        operator.done("tenants", "create", tenant)
    theirs = Shell(server, operator.new_key("initech", "admin"))
    token = theirs.new_key("initech", "read")
    assert works(server, token)
    assert len(theirs.many("keys", "list", "initech")) == 2
    assert {entry["action"] for entry in theirs.many("audit", "--tenant", "initech")} == {
        "tenant.create",
        "key.issue",
    }
    nobody = theirs.refused("keys", "list", "nobody").replace("nobody", "hooli")
    assert theirs.refused("keys", "list", "hooli") == nobody
    assert "PERMISSION_DENIED" in theirs.refused("tenants", "list")
    assert "PERMISSION_DENIED" in theirs.refused("drain")


def test_keys_end(server: ServerProcess, operator: Shell) -> None:
    """A key that leaked works on, a rotation cuts a customer off, or nobody can tell which keys are used."""
    operator.done("tenants", "create", "umbrella")
    old, leaked, idle = (operator.new_key("umbrella", "read") for _ in range(3))
    brief = operator.new_key("umbrella", "read", lifetime_days=BRIEF_S / DAY_S)
    rotate = ("keys", "rotate", "umbrella", "--key-id", key_id_of(old), "--overlap-s", str(BRIEF_S))
    new = operator.done(*rotate).strip()
    for token in (old, new, leaked, brief):
        assert works(server, token)
    operator.done("keys", "revoke", "umbrella", "--key-id", key_id_of(leaked))
    # The promise is a second. Here it is the same server, so it is already.
    assert not works(server, leaked)
    wait_for(lambda: not works(server, old), "the old key ends with the overlap")
    wait_for(lambda: not works(server, brief), "a key expires")
    assert works(server, new)

    def listed() -> dict[object, dict[str, object]]:
        return {key["key_id"]: key for key in operator.many("keys", "list", "umbrella")}

    wait_for(lambda: bool(listed()[key_id_of(new)]["last_used_at_ms"]), "the last use is shown")
    found = listed()
    assert found[key_id_of(idle)]["last_used_at_ms"] is None
    states = {key_id_of(old): "expired", key_id_of(brief): "expired", key_id_of(leaked): "revoked"}
    assert {key: row["state"] for key, row in found.items()} == {
        **states,
        key_id_of(new): "valid",
        key_id_of(idle): "valid",
    }
    assert "expired or is revoked" in operator.refused(*rotate)


def test_a_tenant_is_disabled_and_enabled(server: ServerProcess, operator: Shell) -> None:
    """A customer that does not pay is served on, or has lost its memory when it has paid."""
    operator.done("tenants", "create", "globex")
    token = operator.new_key("globex", "read", "write")
    with recollect.connect(server.tcp_url, token=token, retries=0) as client:
        ns = filled(client)
        assert operator.one("tenants", "disable", "globex")["disabled"] is True
        with pytest.raises(recollect.UnauthenticatedError):
            ns.attend(0, ONES, top_k=4, streams=["a"])
        assert operator.one("tenants", "enable", "globex")["disabled"] is False
        assert ns.stats().entries == 10
        operator.done("tenants", "delete", "globex", "--yes")
        with pytest.raises(recollect.UnauthenticatedError):
            ns.stats()
    assert "TENANT_NOT_FOUND" in operator.refused("tenants", "get", "globex")


def test_namespaces_from_the_shell(server: ServerProcess, operator: Shell) -> None:
    """An operator cannot see what a customer stores, or cannot remove it."""
    operator.done("tenants", "create", "tyrell")
    with recollect.connect(server.tcp_url, token=operator.new_key("tyrell", "read", "write")) as client:
        for name in ("run-7", "team/run:8"):
            filled(client, name)
        assert [row["name"] for row in operator.many("namespaces", "list", "tyrell")] == [
            "run-7",
            "team/run:8",
        ]
        spec = operator.one("namespaces", "get", "tyrell", "team/run:8")["spec"]
        assert spec == {**SPEC, "dtype": "float16", "value_dtype": "float16", "index": "auto", "recall": 0.95}
        table = operator.done("namespaces", "list", "tyrell").splitlines()
        assert table[0].split()[:2] == ["NAME", "LAYERS"]
        assert "float16" in table[1]
        stats = operator.one("namespaces", "stats", "tyrell", "run-7")
        assert (stats["streams"], stats["entries"]) == (1, 10)
        evicted = operator.one("namespaces", "evict", "tyrell", "run-7", "--oldest", "4")
        assert evicted == {"evicted": 4}
        assert client.namespace("run-7").stats().entries == 6
        operator.done("namespaces", "delete", "tyrell", "team/run:8", "--yes")
        assert [each.name for each in client.list_namespaces()] == ["run-7"]


def test_the_audit_log_tells_all(server: ServerProcess, operator: Shell, data_dir: Path) -> None:
    """After something went wrong, nobody can say who did what, when, and from where."""
    before_ms = int(time.time() * 1000)
    operator.done("tenants", "create", "stark", "--quota", "weight=3")
    operator.done("tenants", "quotas", "stark", "--quota", "weight=5")
    token = operator.new_key("stark", "write", "read")
    with recollect.connect(server.unix_url, token=token) as client:
        filled(client)
    with recollect.connect(server.tcp_url, token=token) as client:
        client.delete_namespace("run-7")
    operator.done("keys", "revoke", "stark", "--key-id", key_id_of(token))
    operator.done("tenants", "delete", "stark", "--yes")
    log = list(reversed(operator.many("audit", "--tenant", "stark")))
    boss = f"operator:{key_id_of((data_dir / 'operator.key').read_text())}"
    customer = f"tenant:stark:{key_id_of(token)}"
    assert [(entry["actor"], entry["action"], entry["target"]) for entry in log] == [
        (boss, "tenant.create", "stark"),
        (boss, "tenant.set-quotas", "stark"),
        (boss, "key.issue", key_id_of(token)),
        (customer, "namespace.create", "run-7"),
        (customer, "namespace.delete", "run-7"),
        (boss, "key.revoke", key_id_of(token)),
        (boss, "tenant.delete", "stark"),
    ]
    assert "weight 3 -> 5" in str(log[1]["details"])
    assert [str(entry["source"]).split(":")[0] for entry in log][3] == "unix"
    assert all("127.0.0.1" in str(entry["source"]) for entry in (*log[:3], *log[4:]))
    times = [int(str(entry["at_ms"])) for entry in log]
    assert before_ms <= times[0] <= times[-1] <= int(time.time() * 1000)
    assert token.split("_")[2] not in operator.done("audit", "--limit", "1000")


def test_drained_and_started_again(tmp_path: Path) -> None:
    """A planned restart fails, or loses tenants, keys or namespaces."""
    with served_from(tmp_path) as server:
        operator = operator_of(server, tmp_path)
        operator.done("tenants", "create", "acme", "--quota", "weight=3")
        token, gone = operator.new_key("acme", "read", "write"), operator.new_key("acme", "read")
        operator.done("keys", "revoke", "acme", "--key-id", key_id_of(gone))
        with recollect.connect(server.tcp_url, token=token) as client:
            filled(client)
        tenant, operator_key = operator.one("tenants", "get", "acme"), (tmp_path / "operator.key").read_text()
        operator.done("drain")
        assert server.wait() == 0
        assert "Traceback" not in server.log
    with served_from(tmp_path) as server:
        operator = operator_of(server, tmp_path)
        assert (tmp_path / "operator.key").read_text() == operator_key
        assert operator.one("tenants", "get", "acme") == tenant
        assert not works(server, gone)
        with recollect.connect(server.tcp_url, token=token) as client:
            ns = client.namespace("run-7")
            assert ns.spec.capacity == 64
            assert ns.stats().entries == 0  # entries are not durable yet, and it says so
            ns.add(0, ONES, ONES, streams=["a"])
            np.testing.assert_allclose(ns.attend(0, ONES, top_k=4, streams=["a"]).output, 1)
        # Before the drain too: the log goes on where it ended.
        assert [entry["action"] for entry in reversed(operator.many("audit"))] == [
            "key.issue",
            "tenant.create",
            "key.issue",
            "key.issue",
            "key.revoke",
            "namespace.create",
            "server.drain",
        ]
        server.terminate()
        assert server.wait() == 0
