"""What carries messages: one call in, one answer or one `RecollectError` out."""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import Message

from recollect._embedded_transport import AsyncEmbeddedTransport, EmbeddedTransport
from recollect._tls import TLS
from recollect._url import Target
from recollect._work import Collector, Reply, Upload


class Transport(Protocol):
    """Carries messages; many threads may call at once."""

    def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """Carries messages within one event loop."""

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    async def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    async def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply: ...

    async def close(self) -> None: ...


def open_transport(
    target: Target, token: str | None, tls: TLS | None = None, *, direct: bool = True
) -> Transport:
    """The transport for a URL. Nothing is dialled yet."""
    if target.kind == "embedded":
        return EmbeddedTransport(token)
    # Here, so that `import recollect` brings no gRPC: `recollect serve` has to set something before that.
    from recollect._grpc_transport import GrpcTransport

    return GrpcTransport(target, token, tls, direct=direct)


def open_async_transport(
    target: Target, token: str | None, tls: TLS | None = None, *, direct: bool = True
) -> AsyncTransport:
    """The transport for a URL. Nothing is dialled yet."""
    if target.kind == "embedded":
        return AsyncEmbeddedTransport(token)
    from recollect._grpc_transport import AsyncGrpcTransport

    return AsyncGrpcTransport(target, token, tls, direct=direct)
