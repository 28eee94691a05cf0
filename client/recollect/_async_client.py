"""The async client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from recollect import _administration as administration
from recollect._async_coalescing import AsyncCoalescing
from recollect._async_namespace import AsyncNamespace
from recollect._checks import check_spec
from recollect._results import (
    INDEX_DEFAULT,
    RECALL_DEFAULT,
    Dtype,
    Index,
    NamespaceInfo,
    ServerInfo,
    ValueDtype,
)
from recollect._runner import AsyncRunner
from recollect._tls import TLS
from recollect._transport import open_async_transport
from recollect._url import check_tls, check_token, parse_url


def connect_async(
    url: str,
    *,
    token: str | None = None,
    tls: TLS | None = None,
    timeout_s: float | None = 30.0,
    retries: int = 3,
    allow_insecure_token: bool = False,
    coalesce: bool = True,
    direct: bool = True,
) -> AsyncClient:
    """Makes an async client of a memory server. See `recollect.connect` for the arguments.

    Use it within one event loop. Nothing is sent before the first call.
    """
    target = parse_url(url)
    check_token(token, target, allow_insecure_token=allow_insecure_token)
    check_tls(tls, target)
    transport = open_async_transport(target, token, tls, direct=direct)
    runner = AsyncRunner(transport, url, timeout_s=timeout_s, retries=retries)
    # In one process there is no message to be saved.
    return AsyncClient(runner, url, coalesce=coalesce and target.kind != "embedded")


class AsyncClient:
    """A connection to a memory server, made by `recollect.connect_async`. Use it within one event loop.

    It is an async context manager; after `close`, every call raises `ClosedError`.
    """

    def __init__(self, runner: AsyncRunner, url: str, *, coalesce: bool = False) -> None:
        self.url = url
        self._runner = runner
        self._coalescing = AsyncCoalescing(runner) if coalesce else None

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def create_namespace(
        self,
        name: str,
        *,
        layers: Sequence[int],
        heads: int,
        key_dim: int,
        value_dim: int,
        capacity: int,
        dtype: Dtype = "float16",
        value_dtype: ValueDtype | None = None,
        index: Index = INDEX_DEFAULT,
        recall: float = RECALL_DEFAULT,
        exist_ok: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncNamespace:
        """See `Client.create_namespace`."""
        spec = check_spec(
            layers=layers,
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            capacity=capacity,
            dtype=dtype,
            value_dtype=value_dtype,
            index=index,
            recall=recall,
        )
        info = await self._runner.run(
            administration.create_namespace(name, spec, exist_ok=exist_ok), timeout_s
        )
        return AsyncNamespace(info.name, info.spec, self._runner, coalescing=self._coalescing)

    async def namespace(self, name: str, *, timeout_s: float | None = None) -> AsyncNamespace:
        """See `Client.namespace`."""
        info = await self._runner.run(administration.get_namespace(name), timeout_s)
        return AsyncNamespace(info.name, info.spec, self._runner, coalescing=self._coalescing)

    async def list_namespaces(
        self, *, page_size: int | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[NamespaceInfo]:
        """See `Client.list_namespaces`."""
        page_token = ""
        while True:
            page, page_token = await self._runner.run(
                administration.list_namespaces(page_size, page_token), timeout_s
            )
            for info in page:
                yield info
            if not page_token:
                return

    async def delete_namespace(
        self, name: str, *, missing_ok: bool = False, timeout_s: float | None = None
    ) -> None:
        """See `Client.delete_namespace`."""
        await self._runner.run(administration.delete_namespace(name, missing_ok=missing_ok), timeout_s)

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """See `Client.server_info`."""
        return await self._runner.run(administration.get_server_info(), timeout_s)

    async def close(self) -> None:
        """Closes the connection. A second time does nothing."""
        await self._runner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
