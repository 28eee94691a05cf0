"""Every RPC with every kind of credential. The RPCs come from the descriptors, and from what is served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from recollect.v1 import memory_pb2 as pb
from recollect_server.bootstrap import build_server
from recollect_server.settings import Settings
from tests.clients import METHODS, path_of
from tests.contract import messages
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens
from tests.security.http2 import Http2, Reply, message, of_grpc

RULES = {
    "Add": "write",
    "Search": "read",
    "SearchStream": "read",
    "Attend": "read",
    "AttendBackward": "read",
    "Evict": "write",
    "OpenRegion": "any",
    "CreateNamespace": "write",
    "GetNamespace": "read",
    "ListNamespaces": "read",
    "DeleteNamespace": "write",
    "GetStats": "read",
    "GetServerInfo": "any",
}
"""Which scope each RPC needs, written down a second time: a change of the server's table must be meant."""

HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OPEN = {HEALTH}
"""Answered without a key, to probes: whether the server serves, and nothing else."""
OPEN_IN_DEV = {*OPEN, REFLECTION}
"""A development server has no keys."""

NOT_SERVED = {
    f"/{service.full_name}/{method.name}"
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
} - OPEN
"""What the libraries could serve and a server with keys does not."""


def no_ids() -> pb.EntryIds:
    """Ids of entries, well-formed, none of which is one."""
    offsets = np.full((messages.ROWS, messages.QUERY_HEADS, messages.TOKENS, messages.TOP_K), -1, np.int32)
    return pb.EntryIds(offsets=messages.tensor(offsets, pb.DTYPE_INT32), first_ids=[0] * messages.ROWS)


BUILD: dict[str, Callable[[str], Message]] = {
    "Add": messages.add,
    "Search": messages.search,
    "SearchStream": messages.search,
    "Attend": messages.attend,
    "AttendBackward": lambda name: messages.attend_backward(name, no_ids()),
    "Evict": lambda name: pb.EvictRequest(namespace=name, streams=["a"], oldest=0, missing_ok=True),
    "OpenRegion": lambda name: pb.OpenRegionRequest(bytes=4096),
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
UNIX_ONLY = {"OpenRegion"}
"""RPCs that name none either, and that nobody may make from another machine: see test_regions.py."""
VALID = ("right", "read", "write", "admin", "theirs")


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


@pytest.mark.parametrize("dev", [False, True])
async def test_every_method_that_is_served_has_a_rule(
    dev: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server answers calls that are in no descriptor of ours, and nobody decided who may make them."""
    kind, served = type(grpc.aio.server()), set[str]()
    add = kind.add_generic_rpc_handlers

    def add_and_note(self: grpc.aio.Server, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        for each in handlers:
            served.update(vars(each)["_method_handlers"])
        add(self, handlers)

    monkeypatch.setattr(kind, "add_generic_rpc_handlers", add_and_note)
    settings = Settings(dev=dev, data_dir=None if dev else tmp_path, listen=["127.0.0.1:0"], device="cpu")
    server = build_server(settings, on_drain=lambda: None)
    await server.stop()
    assert served == {*METHODS, *(OPEN_IN_DEV if dev else OPEN)}


def over_the_wire(installation: Installation, path: str, request: bytes, *, token: str | None) -> Reply:
    """One call, and all of its answer."""
    more = () if token is None else ((b"authorization", f"Bearer {token}".encode()),)
    with Http2(installation.server.port) as connection:
        connection.begin(1, of_grpc(path, *more))
        connection.data(1, message(request))
        return connection.reply()


@pytest.mark.parametrize("kind", [*NOT_VALID, *VALID])
@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_is_open_tells_nothing(path: str, kind: str, installation: Installation, tokens: Tokens) -> None:
    """A probe without a key is refused, or what it is told depends on who asks and about whom."""
    token = credential(kind, tokens) if kind in NOT_VALID else getattr(tokens, kind)
    plain = over_the_wire(installation, path, b"", token=None)
    about_a_tenant = health_pb2.HealthCheckRequest(service="ours").SerializeToString()
    assert plain.status == 0
    assert plain.body == message(
        health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
    )
    for request in (b"", about_a_tenant, b"\xff" * 1000):
        assert over_the_wire(installation, path, request, token=token) == plain


@pytest.mark.parametrize("path", sorted(NOT_SERVED))
def test_what_libraries_would_serve_is_not(path: str, installation: Installation, tokens: Tokens) -> None:
    """A server with keys describes itself to strangers, or lets them hold streams open."""
    for token in (None, tokens.right, tokens.operator):
        reply = over_the_wire(installation, path, b"", token=token)
        assert reply.status == grpc.StatusCode.UNIMPLEMENTED.value[0]


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
    request = BUILD[name](NAMESPACE).SerializeToString()
    token = credential(kind, tokens)
    assert over_the_wire(installation, path_of(name), request, token=token) == over_the_wire(
        installation, path_of("GetServerInfo"), b"", token=None
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_before_the_credential_is_checked(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """Whoever has no key, or not the right one, can have the server parse, or even receive, what it sends."""
    for junk in (b"\xff" * 64, bytes(100 * 1024 * 1024)):
        assert installation.rpc(name, junk, token=None).code == "UNAUTHENTICATED"
    for scope in ("read", "write", "admin"):
        if RULES[name] not in ("any", scope):
            refused = installation.rpc(name, b"\xff" * 64, token=getattr(tokens, scope))
            assert refused.code == "PERMISSION_DENIED"
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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNNAMED | UNIX_ONLY])
def test_another_tenants_namespace_is_one_that_does_not_exist(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """A tenant can tell that another's namespace exists, or reach it."""
    absent = "n" * len(NAMESPACE)
    foreign, missing = (
        over_the_wire(installation, path_of(name), BUILD[name](each).SerializeToString(), token=tokens.theirs)
        for each in (NAMESPACE, absent)
    )
    assert foreign.status == grpc.StatusCode.NOT_FOUND.value[0]
    assert foreign.body == missing.body
    assert foreign.headers.replace(NAMESPACE.encode(), absent.encode()) == missing.headers
    assert len(foreign.headers) == len(missing.headers)


@pytest.mark.parametrize("name", sorted(UNNAMED))
def test_what_names_no_namespace_tells_of_none(name: str, installation: Installation, tokens: Tokens) -> None:
    """A tenant finds another's namespace in a list, or its own new one of the same name is not empty."""
    answer = installation.rpc(name, BUILD[name]("unnamed"), token=tokens.theirs)
    assert answer.code == "OK"
    assert answer.response is not None
    assert NAMESPACE.encode() not in answer.response.SerializeToString()


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
    expected = "FAILED_PRECONDITION" if name in UNIX_ONLY else "OK"
    assert installation.rpc(name, request, token=tokens.right).code == expected
