"""What one tenant has means nothing to another: request ids, cursors, names; and not even time tells."""

from __future__ import annotations

import math
import time

import pytest

from recollect.v1 import memory_pb2 as pb
from tests.contract import messages
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens

CALLS = 2000


def stats(name: str) -> pb.GetStatsRequest:
    """Asks what a namespace holds."""
    return pb.GetStatsRequest(namespace=name)


def entries(installation: Installation, token: str, name: str) -> int:
    """How many entries a namespace holds."""
    found = installation.rpc("GetStats", stats(name), token=token).response
    assert isinstance(found, pb.GetStatsResponse)
    return found.entries


def test_a_request_id_of_another_tenant_means_nothing(installation: Installation, tokens: Tokens) -> None:
    """An add is answered with what another tenant's add returned, and nothing is stored."""
    for token in (tokens.right, tokens.theirs):
        installation.rpc("CreateNamespace", messages.create("request-ids"), token=token)
        request = messages.add("request-ids")
        request.request_id = "the-same"
        assert installation.rpc("Add", request, token=token).code == "OK"
        assert entries(installation, token, "request-ids") == messages.ROWS * messages.TOKENS


def test_a_cursor_of_another_tenant_means_nothing(installation: Installation, tokens: Tokens) -> None:
    """A page token of one tenant is taken from another, and so tells it a name."""
    for number in range(3):
        for token in (tokens.right, tokens.theirs):
            installation.rpc("CreateNamespace", messages.create(f"cursor-{number}"), token=token)
    page = installation.rpc("ListNamespaces", pb.ListNamespacesRequest(page_size=1), token=tokens.right)
    assert isinstance(page.response, pb.ListNamespacesResponse)
    cursor = page.response.next_page_token
    assert cursor
    request = pb.ListNamespacesRequest(page_size=1, page_token=cursor)
    assert installation.rpc("ListNamespaces", request, token=tokens.right).code == "OK"
    refused = installation.rpc("ListNamespaces", request, token=tokens.theirs)
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.detail.argument == "page_token"
    over_http = installation.admin(
        "GET", f"/api/v1/tenants/theirs/namespaces?page_token={cursor}", token=tokens.theirs
    )
    assert over_http.status_code == 400


def test_no_call_takes_an_error_id() -> None:
    """An error id of one tenant could be shown to find out something about another's call."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            assert "error_id" not in method.input_type.fields_by_name


def sides(first_s: list[float], second_s: list[float]) -> float:
    """How far the pairs lean to one side, in standard deviations of a fair coin."""
    longer = sum(a > b for a, b in zip(first_s, second_s, strict=True))
    even = sum(a == b for a, b in zip(first_s, second_s, strict=True))
    fair = len(first_s) - even
    return abs(longer - fair / 2) / math.sqrt(max(fair, 1) / 4)


LEANING_MAX = 4.5
"""Seven times in a million by chance."""


def test_the_statistic_would_notice() -> None:
    """The test below could not fail: a look-up that takes a twentieth longer would pass."""
    noise = [1 + math.sin(7.1 * number) / 4 for number in range(CALLS // 2)]
    others = [1 + math.sin(5.3 * number + 1) / 4 for number in range(CALLS // 2)]
    assert sides(noise, others) < LEANING_MAX
    assert sides([1.05 * value for value in noise], others) > LEANING_MAX


@pytest.mark.parametrize("method", ["GetNamespace", "GetStats", "Attend"])
def test_time_does_not_tell_another_tenants_namespace(
    method: str, installation: Installation, tokens: Tokens
) -> None:
    """Over many alternating calls one can tell by the time of the answer that a namespace exists."""
    absent = "n" * len(NAMESPACE)
    requests = {
        "GetNamespace": lambda name: pb.GetNamespaceRequest(name=name),
        "GetStats": stats,
        "Attend": messages.attend,
    }
    raw = {name: requests[method](name).SerializeToString() for name in (NAMESPACE, absent)}
    took_s: dict[str, list[float]] = {NAMESPACE: [], absent: []}
    for pair in range(CALLS // 2):
        # Which comes first alternates: what the first does to caches is then no difference between them.
        for name in (NAMESPACE, absent) if pair % 2 else (absent, NAMESPACE):
            began_s = time.perf_counter()
            answer = installation.rpc(method, raw[name], token=tokens.theirs)
            took_s[name].append(time.perf_counter() - began_s)
            assert answer.code == "NOT_FOUND"
    assert sides(took_s[NAMESPACE], took_s[absent]) < LEANING_MAX
