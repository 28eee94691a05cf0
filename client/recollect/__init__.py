"""The client of Recollect, a memory server for memorizing attention.

client = recollect.connect("grpc://127.0.0.1:50051")
ns = client.create_namespace("run-7", layers=[8], heads=8, key_dim=64, value_dim=64, capacity=65536)
ns.add(8, keys, values, streams=["doc-1", "doc-2"])
out = ns.attend(8, queries, top_k=32, streams=["doc-1", "doc-2"])
"""

from recollect._async_client import AsyncClient, connect_async
from recollect._async_namespace import AsyncNamespace
from recollect._client import Client, connect
from recollect._namespace import Namespace
from recollect._results import (
    AddResult,
    AttendResult,
    BankStats,
    EvictResult,
    Limits,
    NamespaceInfo,
    NamespaceSpec,
    SearchResult,
    ServerInfo,
    Stats,
)
from recollect._session import Session
from recollect._tls import TLS
from recollect._version import __version__
from recollect.errors import (
    AlreadyExistsError,
    ClosedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    MissingExtraError,
    NotFoundError,
    PermissionDeniedError,
    RecollectError,
    ResourceExhaustedError,
    StaleEntryError,
    UnauthenticatedError,
    UnavailableError,
)

__all__ = [
    "TLS",
    "AddResult",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncNamespace",
    "AttendResult",
    "BankStats",
    "Client",
    "ClosedError",
    "DeadlineExceededError",
    "EvictResult",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "Limits",
    "MissingExtraError",
    "Namespace",
    "NamespaceInfo",
    "NamespaceSpec",
    "NotFoundError",
    "PermissionDeniedError",
    "RecollectError",
    "ResourceExhaustedError",
    "SearchResult",
    "ServerInfo",
    "Session",
    "StaleEntryError",
    "Stats",
    "UnauthenticatedError",
    "UnavailableError",
    "__version__",
    "connect",
    "connect_async",
]
