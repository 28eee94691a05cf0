"""The sync client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from recollect import _administration as administration
from recollect._checks import check_spec
from recollect._coalescing import Coalescing
from recollect._namespace import Namespace
from recollect._results import (
    INDEX_DEFAULT,
    RECALL_DEFAULT,
    Dtype,
    Index,
    NamespaceInfo,
    ServerInfo,
    ValueDtype,
)
from recollect._runner import Runner
from recollect._tls import TLS
from recollect._transport import open_transport
from recollect._url import check_tls, check_token, parse_url


def connect(
    url: str,
    *,
    token: str | None = None,
    tls: TLS | None = None,
    timeout_s: float | None = 30.0,
    retries: int = 3,
    allow_insecure_token: bool = False,
    coalesce: bool = True,
    direct: bool = True,
) -> Client:
    """Makes a client of a memory server. Nothing is sent before the first call.

    Args:
        url: grpc://host:port, grpcs://host:port (TLS), unix:///path/to.sock, or embedded:// (the engine in
            this process, and not in those that are forked from it).
        token: An API key of the tenant: rk_...
        tls: For grpcs://: whom to trust and what to show; None: the authorities that gRPC trusts.
        timeout_s: Deadline of every call that names none, in seconds; None, or more than ten years: none.
        retries: Attempts after the first, where a server is unavailable or asks to try later, and repeating
            is safe; 0: none.
        allow_insecure_token: Send the token over an unencrypted network too.
        coalesce: Send small attends together that are under way at the same time over gRPC and differ in
            nothing but streams and queries, as those of several threads. Each caller gets its own answer or
            its own error all the same.
        direct: Over unix:// make calls of one message without gRPC, where the server has a socket for that
            beside its own: a small one takes half a millisecond less.

    Raises:
        InvalidArgumentError: The URL or another argument is wrong.
        MissingExtraError: embedded:// without `recollect[server]`.
    """
    target = parse_url(url)
    check_token(token, target, allow_insecure_token=allow_insecure_token)
    check_tls(tls, target)
    transport = open_transport(target, token, tls, direct=direct)
    runner = Runner(transport, url, timeout_s=timeout_s, retries=retries)
    # In one process there is no message to be saved.
    return Client(runner, url, coalesce=coalesce and target.kind != "embedded")


class Client:
    """A connection to a memory server, made by `recollect.connect`. Threads may share it.

    It is a context manager; after `close`, every call raises `ClosedError`.
    """

    def __init__(self, runner: Runner, url: str, *, coalesce: bool = False) -> None:
        self.url = url
        self._runner = runner
        self._coalescing = Coalescing(runner) if coalesce else None

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def create_namespace(
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
    ) -> Namespace:
        """Makes a namespace. All of this is fixed from then on.

        Args:
            name: Unique within the tenant.
            layers: Transformer layers that have a memory.
            heads: Key and value heads (Hkv).
            key_dim: Size of a key (Dk).
            value_dim: Size of a value (Dv).
            capacity: Entries per stream and layer; the oldest make room.
            dtype: Of stored keys and values, and of all as they travel.
            value_dtype: "int8": values are stored as integers of 8 bits, each value with a float32 that they
                are times. That is half the memory of float16, and no element is off by more than a 254th
                of the value's largest. None: as `dtype`.
            index: What answers reads: "exact", which looks at every entry; "ivf", an inverted file, which
                looks where the keys like the query are; or "auto": the server takes what suits each stream
                and layer as it grows.
            recall: Share of the true top_k, those of exact search, that reads find on average: from 0.5 to 1.
                The server measures it on a small share of the queries, and has an inverted file look into
                more or fewer lists to hold it. With "exact" it is always 1.
            exist_ok: Take the namespace if it exists with the same spec.
            timeout_s: Seconds; None: the client's.

        Raises:
            AlreadyExistsError: It exists, with another spec or without exist_ok.
        """
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
        info = self._runner.run(administration.create_namespace(name, spec, exist_ok=exist_ok), timeout_s)
        return Namespace(info.name, info.spec, self._runner, coalescing=self._coalescing)

    def namespace(self, name: str, *, timeout_s: float | None = None) -> Namespace:
        """Takes a namespace that exists.

        Raises:
            NotFoundError: It does not.
        """
        info = self._runner.run(administration.get_namespace(name), timeout_s)
        return Namespace(info.name, info.spec, self._runner, coalescing=self._coalescing)

    def list_namespaces(
        self, *, page_size: int | None = None, timeout_s: float | None = None
    ) -> Iterator[NamespaceInfo]:
        """All namespaces of the tenant by name, a page (each with its own deadline) at a time."""
        page_token = ""
        while True:
            page, page_token = self._runner.run(
                administration.list_namespaces(page_size, page_token), timeout_s
            )
            yield from page
            if not page_token:
                return

    def delete_namespace(
        self, name: str, *, missing_ok: bool = False, timeout_s: float | None = None
    ) -> None:
        """Deletes a namespace with all that it holds.

        Raises:
            NotFoundError: It does not exist, and missing_ok is false.
        """
        self._runner.run(administration.delete_namespace(name, missing_ok=missing_ok), timeout_s)

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The server's version, device and limits."""
        return self._runner.run(administration.get_server_info(), timeout_s)

    def close(self) -> None:
        """Closes the connection. A second time does nothing."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
