"""Connection URLs and where a token may go."""

from __future__ import annotations

import pytest

import recollect
from recollect import InvalidArgumentError
from recollect._url import check_token, parse_url


@pytest.mark.parametrize(
    ("url", "kind", "address", "is_local"),
    [
        ("grpc://127.0.0.1:50051", "grpc", "127.0.0.1:50051", True),
        ("grpc://127.9.9.9:1/", "grpc", "127.9.9.9:1", True),
        ("grpc://localhost:50051", "grpc", "localhost:50051", True),
        ("grpc://[::1]:50051", "grpc", "[::1]:50051", True),
        ("grpc://memory.example:50051", "grpc", "memory.example:50051", False),
        ("grpc://[2001:db8::1]:7", "grpc", "[2001:db8::1]:7", False),
        ("grpcs://memory.example:50051", "grpcs", "memory.example:50051", False),
        ("grpcs://[::1]:50051/", "grpcs", "[::1]:50051", True),
        ("unix:///run/recollect.sock", "unix", "unix:/run/recollect.sock", True),
        ("embedded://", "embedded", "", True),
    ],
)
def test_good_urls(url: str, kind: str, address: str, is_local: bool) -> None:
    """A documented form of URL would dial the wrong place."""
    target = parse_url(url)
    assert (target.kind, target.address, target.is_local) == (kind, address, is_local)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("127.0.0.1:50051", "grpc://127.0.0.1:50051"),
        ("memory:50051", "grpc://memory:50051"),
        ("/run/recollect.sock", "unix:///run/recollect.sock"),
        ("http://memory:50051", "grpc://memory:50051"),
        ("https://memory:50051/", "grpcs://memory:50051"),
        ("grpcs://memory", "grpcs://host:port"),
        ("grpcs://memory:50051/ns", "grpcs://host:port"),
        ("grpc://memory", "no port"),
        ("grpc://:50051", "no host"),
        ("grpc://memory:port", "cannot be read"),
        ("grpc://memory:99999", "cannot be read"),
        ("grpc://memory:50051/ns", "after the port"),
        ("grpc://u:p@memory:50051", "token="),
        ("unix://run/recollect.sock", "three slashes"),
        ("unix:///" + "x" * 120, "107"),
        ("embedded://here", "nothing after it"),
        ("redis://memory:1", "redis"),
        ("", "url"),
        (b"grpc://memory:1", "url"),
        (None, "url"),
    ],
)
def test_bad_urls_say_what_to_write(url: str, hint: str) -> None:
    """A typing mistake would surface as a timeout or as an obscure gRPC error."""
    with pytest.raises(InvalidArgumentError, match="url") as caught:
        recollect.connect(url)
    assert caught.value.argument == "url"
    assert hint in str(caught.value)
    with pytest.raises(InvalidArgumentError):
        recollect.connect_async(url)


def test_password_in_a_url_is_not_repeated() -> None:
    """A secret typed into a URL would end up in logs."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_url("grpc://user:hunter2@memory:50051")
    assert "hunter2" not in str(caught.value)


def test_token_stays_on_this_machine() -> None:
    """A credential would cross a network in clear text without anybody having asked for it."""
    far, near = parse_url("grpc://memory.example:1"), parse_url("grpc://127.0.0.1:1")
    check_token("secret", near, allow_insecure_token=False)
    check_token("secret", far, allow_insecure_token=True)
    check_token(None, far, allow_insecure_token=False)
    check_token("secret", parse_url("grpcs://memory.example:1"), allow_insecure_token=False)
    with pytest.raises(InvalidArgumentError, match=r"grpcs://.*allow_insecure_token") as caught:
        check_token("secret", far, allow_insecure_token=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ü"])
def test_token_must_fit_a_header(token: str) -> None:
    """A token with a stray newline would fail deep in gRPC, or inject a header."""
    with pytest.raises(InvalidArgumentError) as caught:
        recollect.connect("grpc://127.0.0.1:1", token=token)
    assert caught.value.argument == "token"
