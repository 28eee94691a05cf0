"""Every RPC with every kind of credential. The RPCs come from the service descriptors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import METHODS
from tests.contract import messages
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens

RULES = {
    "Add": "write",
    "Search": "read",
    "Attend": "read",
    "AttendBackward": "read",
    "Evict": "write",
    "CreateNamespace": "write",
    "GetNamespace": "read",
    "ListNamespaces": "read",
    "DeleteNamespace": "write",
    "GetStats": "read",
    "GetServerInfo": "any",
}
"""Which scope each RPC needs, written down a second time: a change of the server's table must be meant."""

BUILD: dict[str, Callable[[str], Message]] = {
    "Add": messages.add,
    "Search": messages.search,
    "Attend": messages.attend,
    "AttendBackward": lambda name: messages.attend_backward(name, pb.EntryIds()),
    "Evict": lambda name: pb.EvictRequest(namespace=name, streams=["a"], oldest=0, missing_ok=True),
    "CreateNamespace": lambda name: pb.CreateNamespaceRequest(name=name, spec=messages.spec(), exist_ok=True),
    "GetNamespace": lambda name: pb.GetNamespaceRequest(name=name),
    "ListNamespaces": lambda name: pb.ListNamespacesRequest(),
    "DeleteNamespace": lambda name: pb.DeleteNamespaceRequest(name=name),
    "GetStats": lambda name: pb.GetStatsRequest(namespace=name),
    "GetServerInfo": lambda name: pb.GetServerInfoRequest(),
}
NAMES = sorted(path.rpartition("/")[2] for path in METHODS)
NOT_VALID = (
    "none",
    "malformed",
    "unknown",
    "wrong secret",
    "expired",
    "revoked",
    "rotated",
    "disabled",
    "deleted",
    "operator",
)
UNNAMED = {"CreateNamespace", "ListNamespaces", "GetServerInfo"}
"""RPCs that name no namespace that has to be there."""


def credential(kind: str, tokens: Tokens) -> str | None:
    """A credential that must not be taken."""
    key_id, secret = tokens.right.split("_")[1:]
    match kind:
        case "none":
            return None
        case "malformed":
            return tokens.right[:-1]
        case "unknown":
            return f"rk_{'f' * 16}_{secret}"
        case "wrong secret":
            return f"rk_{key_id}_{'f' * 64}"
    found: str = getattr(tokens, kind)
    return found


def test_every_rpc_has_a_rule() -> None:
    """An RPC was added, and nobody decided who may call it."""
    assert sorted(RULES) == NAMES
    assert sorted(BUILD) == NAMES


@pytest.mark.parametrize("kind", NOT_VALID)
@pytest.mark.parametrize("name", NAMES)
def test_a_credential_that_is_not_valid(
    name: str, kind: str, installation: Installation, tokens: Tokens
) -> None:
    """A call is answered without a valid key, or the refusal tells what is wrong with the key."""
    refused = installation.rpc(name, BUILD[name](NAMESPACE), token=credential(kind, tokens))
    plain = installation.rpc("GetServerInfo", b"", token=None)
    assert refused.code == "UNAUTHENTICATED"
    assert (refused.message, refused.detail) == (plain.message, plain.detail)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_before_the_credential_is_checked(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """Whoever has no key can have the server parse, or even receive, what it sends."""
    for junk in (b"\xff" * 64, bytes(100 * 1024 * 1024)):
        assert installation.rpc(name, junk, token=None).code == "UNAUTHENTICATED"
    assert installation.rpc(name, b"\xff" * 64, token=tokens.right).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
@pytest.mark.parametrize("name", NAMES)
def test_a_key_with_one_scope(name: str, scope: str, installation: Installation, tokens: Tokens) -> None:
    """A scope allows what it must not, or does not allow what it must."""
    request = BUILD[name]("absent" if name == "DeleteNamespace" else NAMESPACE)
    answer = installation.rpc(name, request, token=getattr(tokens, scope))
    if RULES[name] in ("any", scope):
        assert answer.code not in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    else:
        assert answer.code == "PERMISSION_DENIED"
        assert NAMESPACE not in answer.message


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNNAMED])
def test_another_tenants_namespace_is_one_that_does_not_exist(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """A tenant can tell that another's namespace exists, or reach it."""
    absent = "n" * len(NAMESPACE)
    foreign = installation.rpc(name, BUILD[name](NAMESPACE), token=tokens.theirs)
    missing = installation.rpc(name, BUILD[name](absent), token=tokens.theirs)
    assert (foreign.code, foreign.detail) == (missing.code, missing.detail)
    assert foreign.message.replace(NAMESPACE, absent) == missing.message
    assert foreign.code == "NOT_FOUND"
    assert foreign.detail.ByteSize() == missing.detail.ByteSize()


def test_a_tenant_sees_its_own_namespaces_alone(installation: Installation, tokens: Tokens) -> None:
    """A list has another tenant's namespace, or a namespace of the same name is shared."""
    listed = installation.rpc("ListNamespaces", pb.ListNamespacesRequest(), token=tokens.theirs).response
    assert isinstance(listed, pb.ListNamespacesResponse)
    assert NAMESPACE not in {each.name for each in listed.namespaces}
    third = installation.tenant("third")
    assert installation.rpc("CreateNamespace", messages.create(NAMESPACE), token=third).code == "OK"
    stats = installation.rpc("GetStats", BUILD["GetStats"](NAMESPACE), token=third).response
    assert isinstance(stats, pb.GetStatsResponse)
    assert stats.entries == 0
    assert installation.rpc("DeleteNamespace", BUILD["DeleteNamespace"](NAMESPACE), token=third).code == "OK"
    ours = installation.rpc("GetStats", BUILD["GetStats"](NAMESPACE), token=tokens.right).response
    assert isinstance(ours, pb.GetStatsResponse)
    assert ours.entries > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_right_key(name: str, installation: Installation, tokens: Tokens) -> None:
    """A tenant cannot do with its own namespace what its key allows."""
    own = f"right-{name.lower()}"
    installation.rpc("CreateNamespace", messages.create(own), token=tokens.right)
    installation.rpc("Add", messages.add(own), token=tokens.right)
    request = BUILD[name](own)
    if isinstance(request, pb.AttendBackwardRequest):
        attended = installation.rpc("Attend", messages.attend(own), token=tokens.right).response
        assert isinstance(attended, pb.AttendResponse)
        request = messages.attend_backward(own, attended.ids)
    assert installation.rpc(name, request, token=tokens.right).code == "OK"
