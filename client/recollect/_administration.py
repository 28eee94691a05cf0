"""Calls about namespaces and the server, as work."""

from __future__ import annotations

from collections.abc import Sequence

from recollect._checks import INT32_MAX, check_int, check_names, check_text
from recollect._results import BankStats, Limits, NamespaceInfo, NamespaceSpec, ServerInfo, Stats
from recollect._work import (
    CREATE_NAMESPACE,
    DELETE_NAMESPACE,
    GET_NAMESPACE,
    GET_SERVER_INFO,
    GET_STATS,
    LIST_NAMESPACES,
    Work,
    single,
)
from recollect.v1 import memory_pb2 as pb

Page = tuple[list[NamespaceInfo], str]


def create_namespace(
    name: str, spec: NamespaceSpec, *, exist_ok: bool
) -> Work[pb.CreateNamespaceResponse, NamespaceInfo]:
    """Makes a namespace. A repeat would find the first one's work, so only with exist_ok is it harmless."""
    request = pb.CreateNamespaceRequest(
        name=check_text("name", name), spec=spec.to_message(), exist_ok=exist_ok
    )
    return single(
        CREATE_NAMESPACE,
        request,
        pb.CreateNamespaceResponse,
        lambda reply: NamespaceInfo.from_message(reply.namespace),
        retry_safe=exist_ok,
    )


def get_namespace(name: str) -> Work[pb.GetNamespaceResponse, NamespaceInfo]:
    """Describes a namespace."""
    return single(
        GET_NAMESPACE,
        pb.GetNamespaceRequest(name=check_text("name", name)),
        pb.GetNamespaceResponse,
        lambda reply: NamespaceInfo.from_message(reply.namespace),
        retry_safe=True,
    )


def list_namespaces(page_size: int | None, page_token: str) -> Work[pb.ListNamespacesResponse, Page]:
    """One page of namespaces, and the token of the next."""
    size = 0 if page_size is None else check_int("page_size", page_size, minimum=1, maximum=INT32_MAX)
    return single(
        LIST_NAMESPACES,
        pb.ListNamespacesRequest(page_size=size, page_token=page_token),
        pb.ListNamespacesResponse,
        lambda reply: ([NamespaceInfo.from_message(one) for one in reply.namespaces], reply.next_page_token),
        retry_safe=True,
    )


def delete_namespace(name: str, *, missing_ok: bool) -> Work[pb.DeleteNamespaceResponse, None]:
    """Deletes a namespace. A repeat would not find it, so only with missing_ok is it harmless."""
    return single(
        DELETE_NAMESPACE,
        pb.DeleteNamespaceRequest(name=check_text("name", name), missing_ok=missing_ok),
        pb.DeleteNamespaceResponse,
        lambda _: None,
        retry_safe=missing_ok,
    )


def get_stats(namespace: str, streams: Sequence[str]) -> Work[pb.GetStatsResponse, Stats]:
    """What a namespace holds."""
    names = check_names("streams", streams)
    return single(
        GET_STATS,
        pb.GetStatsRequest(namespace=namespace, streams=names),
        pb.GetStatsResponse,
        _stats,
        retry_safe=True,
    )


def get_server_info() -> Work[pb.GetServerInfoResponse, ServerInfo]:
    """Describes the server."""
    return single(
        GET_SERVER_INFO,
        pb.GetServerInfoRequest(),
        pb.GetServerInfoResponse,
        lambda reply: ServerInfo(reply.version, reply.device, Limits.from_message(reply.limits)),
        retry_safe=True,
    )


def _stats(reply: pb.GetStatsResponse) -> Stats:
    banks = tuple(BankStats.from_message(bank) for bank in reply.banks)
    return Stats(reply.streams, reply.entries, reply.bytes, banks)
