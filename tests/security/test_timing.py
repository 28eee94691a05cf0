"""Not even time tells a tenant what another has, or a stranger which keys there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import answer_of, path_of
from tests.contract import messages
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens
from tests.security.timing import CALLS, P_MIN, p_value, told_apart

ATTEMPTS = 2
ABSENT = "n" * len(NAMESPACE)
REQUESTS: dict[str, Callable[[str], Message]] = {
    "GetNamespace": lambda name: pb.GetNamespaceRequest(name=name),
    "GetStats": lambda name: pb.GetStatsRequest(namespace=name),
    "DeleteNamespace": lambda name: pb.DeleteNamespaceRequest(name=name),
    "Attend": messages.attend,
    "Add": messages.add,
}
FOREIGN = [f"fresh-{number:04d}" for number in range(250)]
"""So many as a tenant may have by its quota."""


@pytest.fixture(scope="module")
def channel(installation: Installation) -> Iterator[grpc.Channel]:
    """One connection, so that what it costs to make one is not measured."""
    with grpc.insecure_channel(installation.server.tcp_url.removeprefix("grpc://")) as opened:
        yield opened


def asked(
    channel: grpc.Channel, method: str, requests: Sequence[Message], *, token: str, code: str = "NOT_FOUND"
) -> Callable[[int], None]:
    """A call that is refused, with one message after the other."""
    send: grpc.UnaryUnaryMultiCallable[bytes, Message] = channel.unary_unary(path_of(method))
    metadata = (("authorization", f"Bearer {token}"),)
    raw = [each.SerializeToString() for each in requests]

    def call(number: int) -> None:
        answer = answer_of(lambda: send(raw[number % len(raw)], timeout=60, metadata=metadata))
        assert answer.code == code

    return call


def test_the_statistics_would_notice() -> None:
    """The tests below could not fail: a call that takes a fiftieth longer would pass."""
    rng = np.random.default_rng(0)
    one, other = 1 + rng.gamma(2, 0.03, (2, CALLS // 2))
    assert p_value(one, other) > P_MIN
    assert p_value(one + 0.02, other) < P_MIN
    assert p_value(one, other + 0.02) < P_MIN


def test_one_look_into_the_registry_would_be_noticed(channel: grpc.Channel, tokens: Tokens) -> None:
    """The tests below could not fail: names that are looked up and names that are remembered look alike."""
    name_of = REQUESTS["GetNamespace"]
    remembered = asked(channel, "GetNamespace", [name_of(ABSENT)], token=tokens.theirs)
    names = (f"{number:05d}" for number in itertools.count())

    def new(_: int) -> None:
        asked(channel, "GetNamespace", [name_of(next(names))], token=tokens.theirs)(0)

    assert len(told_apart(remembered, new)) == ATTEMPTS


def test_a_call_is_not_told_apart_from_itself(channel: grpc.Channel, tokens: Tokens) -> None:
    """The tests below fail for how they measure: in a fixed order of calls, a call differs from itself."""
    wrong = refused(channel, tokens.right.split("_")[1], "f" * 64)
    assert len(found := told_apart(wrong, wrong)) < ATTEMPTS, found


@pytest.mark.parametrize("method", REQUESTS)
def test_time_does_not_tell_another_tenants_namespace(
    method: str, channel: grpc.Channel, tokens: Tokens
) -> None:
    """Over many alternating calls one can tell by the time of the answer that a namespace exists."""
    foreign, missing = (
        asked(channel, method, [REQUESTS[method](name)], token=tokens.theirs) for name in (NAMESPACE, ABSENT)
    )
    assert len(found := told_apart(foreign, missing)) < ATTEMPTS, found


def test_time_does_not_tell_at_the_first_call(
    channel: grpc.Channel, installation: Installation, tokens: Tokens
) -> None:
    """As above, where nothing is remembered of a name: the registry finds another tenant's."""
    many = installation.tenant("many")
    for name in FOREIGN:
        assert installation.rpc("CreateNamespace", messages.create(name), token=many).code == "OK"
    absent = [name.replace("fresh", "stale") for name in FOREIGN]
    ask = REQUESTS["GetNamespace"]
    foreign, missing = (
        asked(channel, "GetNamespace", [ask(name) for name in names], token=tokens.theirs)
        for names in (FOREIGN, absent)
    )

    def first(number: int) -> None:
        if number % len(FOREIGN) == 0:  # any change of the registry has all records read again
            installation.done("PUT", "/api/v1/tenants/many/quotas", {"weight": 1 + number})
        foreign(number)

    assert len(found := told_apart(first, missing)) < ATTEMPTS, found


@pytest.mark.parametrize(
    ("there", "not_there"),
    [
        (f"/api/v1/tenants/theirs/namespaces/{NAMESPACE}", f"/api/v1/tenants/theirs/namespaces/{ABSENT}"),
        (f"/api/v1/tenants/ours/namespaces/{NAMESPACE}", f"/api/v1/tenants/sour/namespaces/{NAMESPACE}"),
        ("/api/v1/tenants/ours", "/api/v1/tenants/sour"),
    ],
)
def test_time_does_not_tell_over_http(
    there: str, not_there: str, installation: Installation, tokens: Tokens
) -> None:
    """A tenant's administrator can tell by the time of the answer what another tenant has."""
    headers = {"authorization": f"Bearer {tokens.theirs}"}
    with httpx.Client(base_url=installation.server.admin_url, headers=headers, timeout=60) as client:

        def get(path: str) -> Callable[[int], None]:
            def call(_: int) -> None:
                assert client.get(path).status_code == 404

            return call

        assert len(found := told_apart(get(there), get(not_there))) < ATTEMPTS, found


def refused(channel: grpc.Channel, key_id: str, secret: str) -> Callable[[int], None]:
    """A call with a key of no use."""
    token = f"rk_{key_id}_{secret}"
    info = [pb.GetServerInfoRequest()]
    return asked(channel, "GetServerInfo", info, token=token, code="UNAUTHENTICATED")


def test_time_does_not_tell_which_keys_there_are(channel: grpc.Channel, tokens: Tokens) -> None:
    """Whoever has no key can tell by the time of the refusal that a key id exists."""
    key_id, secret = tokens.right.split("_")[1:]
    wrong = "f" * len(secret)
    there, not_there = (refused(channel, each, wrong) for each in (key_id, "f" * len(key_id)))
    assert len(found := told_apart(there, not_there)) < ATTEMPTS, found


def test_time_does_not_tell_how_much_of_a_secret_is_right(channel: grpc.Channel, tokens: Tokens) -> None:
    """A secret can be guessed one digit at a time."""
    key_id, secret = tokens.right.split("_")[1:]
    almost = secret[:-1] + ("1" if secret[-1] == "0" else "0")
    right, wrong = (refused(channel, key_id, each) for each in (almost, "f" * len(secret)))
    assert len(found := told_apart(right, wrong)) < ATTEMPTS, found
