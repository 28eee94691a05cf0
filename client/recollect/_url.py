"""Where a memory server is: grpc://host:port, unix:///path or embedded://."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from recollect._checks import check_text
from recollect.errors import InvalidArgumentError

_FORMS = "grpc://host:port, unix:///path/to.sock or embedded://"
_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path on Linux, without its final zero


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL.

    Attributes:
        kind: Which transport reaches it.
        url: As the user wrote it, for messages.
        address: What gRPC dials; "" for embedded.
        is_local: Whether bytes stay on this machine.
    """

    kind: Literal["grpc", "unix", "embedded"]
    url: str
    address: str
    is_local: bool


def parse_url(url: str) -> Target:
    """Reads a connection URL.

    Raises:
        InvalidArgumentError: It is none of the three forms; the message says what to write.
    """
    check_text("url", url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _refusal(f"url has no scheme: {url!r}. Write {_FORMS}{_guess(url)}")
    if scheme == "grpc":
        return _parse_grpc(url)
    if scheme == "unix":
        return _parse_unix(url, rest)
    if scheme == "embedded":
        if rest:
            raise _refusal(f"url embedded:// takes nothing after it, got {url!r}")
        return Target("embedded", url, "", is_local=True)
    hint = ""
    if scheme in ("http", "https", "grpcs", "tcp"):
        hint = f". The server speaks gRPC: did you mean grpc://{rest.rstrip('/')} ?"
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
    if not target.is_local and not allow_insecure_token:
        raise InvalidArgumentError(
            f"token would travel unencrypted to {target.url}: over grpc:// it goes to this machine only. "
            "Use unix:///path or a loopback address; or, if you trust the network, allow_insecure_token=True",
            argument="token",
            reason="INSECURE_TOKEN",
        )


def _parse_grpc(url: str) -> Target:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refusal(f"url {url!r} cannot be read: {error}. Write grpc://host:port") from None
    if parts.username is not None or parts.password is not None:
        raise _refusal(
            "url must not carry a user or password; pass token=... instead (the url is not shown here)"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refusal(f"url {url!r} has something after the port. Write grpc://host:port")
    if not host or not port:
        missing = "host" if not host else "port"
        raise _refusal(
            f"url {url!r} has no {missing}. Write grpc://host:port, for example grpc://127.0.0.1:50051"
        )
    shown_host = f"[{host}]" if ":" in host else host
    return Target("grpc", url, f"{shown_host}:{port}", is_local=_is_loopback(host))


def _parse_unix(url: str, path: str) -> Target:
    if not path.startswith("/") or path.endswith("/"):
        raise _refusal(
            f"url {url!r} must name the absolute path of a socket: unix:///path/to.sock (three slashes)"
        )
    length = len(path.encode())
    if length > _SOCKET_PATH_BYTES_MAX:
        raise _refusal(
            f"url names a socket path of {length} bytes; the system allows {_SOCKET_PATH_BYTES_MAX}: {url!r}"
        )
    return Target("unix", url, f"unix:{path}", is_local=True)


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
