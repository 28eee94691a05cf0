"""Addresses to listen on: `unix:///path/to.sock` or `host:port`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

UNIX_PATH_BYTES_MAX = 107
"""Of the kernel."""

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address. Either a unix socket's path, or host and port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    @property
    def grpc_target(self) -> str:
        """As gRPC spells it."""
        return f"unix:{self.path}" if self.path is not None else f"{_bracketed(self.host)}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> ListenAddress:
        """The same address with the port that was bound."""
        return self if self.path is not None else ListenAddress(host=self.host, port=port)

    def url(self, *, tls: bool = False) -> str:
        """As a client's `connect` takes it."""
        if self.path is not None:
            return f"unix://{self.path}"
        return f"{'grpcs' if tls else 'grpc'}://{_bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return self.url()


def parse_listen(text: str) -> ListenAddress:
    """Reads an address.

    Raises:
        ValueError: Says what is wrong with it.
    """
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise ValueError(
                f"listen address {text!r} needs an absolute path, as in unix:///run/recollect.sock"
            )
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise ValueError(
                f"listen address {text!r} has a path of {len(path.encode())} bytes; the kernel takes "
                f"{UNIX_PATH_BYTES_MAX}"
            )
        return ListenAddress(path=path)
    host, _, port = text.removeprefix("grpc://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise ValueError(f"listen address {text!r} must be unix:///path or host:port, as in 127.0.0.1:50051")
    return ListenAddress(host=host, port=int(port))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
