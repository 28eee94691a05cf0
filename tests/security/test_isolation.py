"""What one tenant has means nothing to another: request ids, cursors, names."""

from __future__ import annotations

from recollect.v1 import memory_pb2 as pb
from tests.contract import messages
from tests.installation import Installation
from tests.security.conftest import Tokens


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
