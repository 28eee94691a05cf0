"""Where a memory server is: grpc://host:port, grpcs://host:port, unix:///path or embedded://."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from recollect._checks import check_text
from recollect._tls import TLS
from recollect.errors import InvalidArgumentError

_FORMS = "grpc://host:port, grpcs://host:port (TLS), unix:///path/to.sock or embedded://"
SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path on Linux, without its final zero


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL.

    Attributes:
        kind: Which transport reaches it.
        url: As the user wrote it, for messages.
        address: What gRPC dials; "" for embedded.
        is_local: Whether bytes stay on this machine.
        socket_path: Of a unix socket; None: it is none.
    """

    kind: Literal["grpc", "grpcs", "unix", "embedded"]
    url: str
    address: str
    is_local: bool
    socket_path: str | None = None


def parse_url(url: str) -> Target:
    """Reads a connection URL.

    Raises:
        InvalidArgumentError: It is none of the four forms; the message says what to write.
    """
    check_text("url", url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _refusal(f"url has no scheme: {url!r}. Write {_FORMS}{_guess(url)}")
    if scheme in ("grpc", "grpcs"):
        return _parse_grpc(url, "grpc" if scheme == "grpc" else "grpcs")
    if scheme == "unix":
        return _parse_unix(url, rest)
    if scheme == "embedded":
        if rest:
            raise _refusal(f"url embedded:// takes nothing after it, got {url!r}")
        return Target("embedded", url, "", is_local=True)
    hint = ""
    if scheme in ("http", "https", "tcp", "tls"):
        meant = "grpcs" if scheme in ("https", "tls") else "grpc"
        hint = f". The server speaks gRPC: did you mean {meant}://{rest.rstrip('/')} ?"
    raise _refusal(f"url has the scheme {scheme!r}: {url!r}. Write {_FORMS}{hint}")


def check_token(token: str | None, target: Target, *, allow_insecure_token: bool) -> None:
    """Refuses a token that cannot be a header, or that would cross a network in clear text."""
    if token is None:
        return
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError(
            "token must be printable ASCII without spaces, and not empty (the value is not shown here)",
            argument="token",
        )
    if target.kind == "grpc" and not target.is_local and not allow_insecure_token:
        raise InvalidArgumentError(
            f"token would travel unencrypted to {target.url}: over grpc:// it goes to this machine only. "
            "Use grpcs:// (TLS); or, if you trust the network, allow_insecure_token=True",
            argument="token",
            reason="INSECURE_TOKEN",
        )


def check_tls(tls: TLS | None, target: Target) -> None:
    """Refuses certificates for a connection that would not use them."""
    if tls is None:
        return
    if not isinstance(tls, TLS):
        raise InvalidArgumentError(
            f"tls must be a recollect.TLS(...), got {type(tls).__name__}", argument="tls"
        )
    if target.kind != "grpcs":
        raise InvalidArgumentError(
            f"tls is for grpcs:// only, and {target.url} would not be encrypted. Write grpcs://host:port",
            argument="tls",
        )


def _parse_grpc(url: str, kind: Literal["grpc", "grpcs"]) -> Target:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refusal(f"url {url!r} cannot be read: {error}. Write {kind}://host:port") from None
    if parts.username is not None or parts.password is not None:
        raise _refusal(
            "url must not carry a user or password; pass token=... instead (the url is not shown here)"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refusal(f"url {url!r} has something after the port. Write {kind}://host:port")
    if not host or not port:
        missing = "host" if not host else "port"
        raise _refusal(
            f"url {url!r} has no {missing}. Write {kind}://host:port, for example {kind}://127.0.0.1:50051"
        )
    shown_host = f"[{host}]" if ":" in host else host
    return Target(kind, url, f"{shown_host}:{port}", is_local=_is_loopback(host))


def _parse_unix(url: str, path: str) -> Target:
    if not path.startswith("/") or path.endswith("/"):
        raise _refusal(
            f"url {url!r} must name the absolute path of a socket: unix:///path/to.sock (three slashes)"
        )
    length = len(path.encode())
    if length > SOCKET_PATH_BYTES_MAX:
        raise _refusal(
            f"url names a socket path of {length} bytes; the system allows {SOCKET_PATH_BYTES_MAX}: {url!r}"
        )
    return Target("unix", url, f"unix:{path}", is_local=True, socket_path=path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guess(url: str) -> str:
    if url.startswith("/"):
        return f". Did you mean unix://{url} ?"
    _, colon, port = url.rpartition(":")
    if colon and port.isdigit():
        return f". Did you mean grpc://{url} ?"
    return ""


def _refusal(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, argument="url")
