"""A server with keys, and two tenants on it that must know nothing of each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract import messages
from tests.installation import Installation
from tests.server_process import OPERATOR_TOKEN, ServerProcess

NAMESPACE = "owned"
"""Of tenant "ours"; "theirs" has none of this name."""

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Tokens:
    """A credential of every kind there is, by name. All but "theirs" and "operator" are of tenant "ours"."""

    right: str
    read: str
    write: str
    admin: str
    expired: str
    revoked: str
    rotated: str
    disabled: str
    deleted: str
    theirs: str
    operator: str


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A server with keys, an admin API, and two tenants."""
    folder: Path = tmp_path_factory.mktemp("data")
    with ServerProcess(data_dir=folder / "data") as server, Installation(server) as installation:
        yield installation
        assert server.is_alive


@pytest.fixture(scope="session")
def tokens(installation: Installation) -> Tokens:
    """Made once; "ours" has the namespace `NAMESPACE` with entries."""
    right, theirs = installation.tenant("ours"), installation.tenant("theirs")
    assert installation.rpc("CreateNamespace", messages.create(NAMESPACE), token=right).code == "OK"
    assert installation.rpc("Add", messages.add(NAMESPACE), token=right).code == "OK"
    revoked, rotated = installation.token("ours"), installation.token("ours")
    expired = installation.token("ours", lifetime_s=1)
    installation.revoke("ours", revoked)
    rotate = f"/api/v1/tenants/ours/keys/{rotated.split('_')[1]}:rotate"
    installation.done("POST", rotate, {"overlap_s": 0})
    disabled, deleted = installation.tenant("disabled"), installation.tenant("deleted")
    installation.done("PATCH", "/api/v1/tenants/disabled", {"disabled": True})
    installation.done("DELETE", "/api/v1/tenants/deleted")
    made = Tokens(
        right=right,
        read=installation.token("ours", ["read"]),
        write=installation.token("ours", ["write"]),
        admin=installation.token("ours", ["admin"]),
        expired=expired,
        revoked=revoked,
        rotated=rotated,
        disabled=disabled,
        deleted=deleted,
        theirs=theirs,
        operator=OPERATOR_TOKEN,
    )
    end_s = time.monotonic() + PATIENCE_S
    while installation.rpc("GetServerInfo", b"", token=expired).code == "OK" and time.monotonic() < end_s:
        pass  # it has a second to live; if it goes on for ever, the tests say so
    return made
