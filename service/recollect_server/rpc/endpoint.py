"""Where a call comes in, from a socket or from the same process: who is it, may it, and then what it asks."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.admission import Admission
from recollect_server.application.catalog import Catalog
from recollect_server.application.dispatch import DRAINING_RETRY_S
from recollect_server.domain.errors import (
    DrainingError,
    InternalError,
    MemoryExhaustedError,
    RecollectError,
    UnauthenticatedError,
)
from recollect_server.domain.identity import Caller
from recollect_server.domain.ports import Authenticator
from recollect_server.domain.telemetry import Telemetry
from recollect_server.rpc.access import ACCESS, require_scope
from recollect_server.rpc.call import Arrival, Call, Trail
from recollect_server.rpc.calls import MemoryCalls, NamespaceCalls
from recollect_server.rpc.status import status_of
from recollect_server.rpc.streams import SearchStream

log = logging.getLogger(__name__)

SERVICES = tuple(pb.DESCRIPTOR.services_by_name.values())

METHODS = tuple(method.name for service in SERVICES for method in service.methods)

Reply = TypeVar("Reply")

Response = Message | SearchStream

EVICTION_CAUSES = {"Add": "capacity", "Evict": "request"}
"""Why entries go in the calls whose answer counts them."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and how long it was on the wire."""

    message: Message
    bytes: int


@dataclass(frozen=True, slots=True)
class Sent(Generic[Reply]):
    """A response as its transport sends it, and how long it is on the wire."""

    reply: Reply
    bytes: int


@dataclass(frozen=True, slots=True)
class Route:
    """One method of the wire; `streams`: it answers with several messages."""

    path: str
    request_type: type[Message]
    run: Callable[[Call, Message], Awaitable[Response]]
    streams: bool


class Endpoint:
    """All routes, each behind authentication, its scope, and admission.

    Args:
        authenticator: The only source of a call's tenant.
        admission: Who may begin a call now.
        catalog: For the quotas of a caller's tenant.
        memory: `MemoryService`.
        namespaces: `NamespaceService`.
        telemetry: Told of every call.

    Raises:
        KeyError: A method of the wire has no row in `ACCESS`.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        admission: Admission,
        *,
        catalog: Catalog,
        memory: MemoryCalls,
        namespaces: NamespaceCalls,
        telemetry: Telemetry,
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._catalog = catalog
        self._telemetry = telemetry
        self.is_draining = False
        calls: dict[str, MemoryCalls | NamespaceCalls] = {
            "MemoryService": memory,
            "NamespaceService": namespaces,
        }
        self.routes = {
            route.path: route
            for service in SERVICES
            for route in (_route(method, calls[service.name]) for method in service.methods)
        }
        missing = self.routes.keys() - ACCESS.keys()
        if missing:
            raise KeyError(f"no scope is declared in rpc/access.py for {sorted(missing)}")

    async def call(
        self,
        arrival: Arrival,
        receive: Callable[[Route], Awaitable[Received]],
        *,
        send: Callable[[Response], Awaitable[Sent[Reply]]],
    ) -> Reply:
        """Makes one call.

        Args:
            arrival: What is known of it before its message.
            receive: Reads the message; called once the caller is known and let in.
            send: Makes of the response what is sent, or sends it part by part.

        Raises:
            RecollectError: Refused, or it failed.
        """
        trail = Trail(arrival)
        try:
            reply = await self._call(arrival, receive, send, trail)
        except RecollectError as error:
            self._telemetry.call_ended(trail.ended(status_of(error).name, error))
            raise
        except MemoryError as full:  # anywhere, as where the message is read
            log.warning("%s: the system has too little memory for it", arrival.path)
            refusal = MemoryExhaustedError(
                "the server has too little free memory for this call. Evict, delete a namespace, or ask for "
                "less at a time"
            )
            self._telemetry.call_ended(trail.ended(status_of(refusal).name, refusal))
            raise refusal from full
        except Exception as defect:
            internal = InternalError(error_id=uuid.uuid4().hex)
            log.exception("%s failed; error id %s", arrival.path, internal.error_id)
            self._telemetry.call_ended(trail.ended(status_of(internal).name, internal))
            raise internal from defect
        except BaseException:  # cancelled: its caller hung up
            self._telemetry.call_ended(trail.ended("CANCELLED"))
            raise
        self._telemetry.call_ended(trail.ended("OK"))
        return reply

    async def _call(
        self,
        arrival: Arrival,
        receive: Callable[[Route], Awaitable[Received]],
        send: Callable[[Response], Awaitable[Sent[Reply]]],
        trail: Trail,
    ) -> Reply:
        call = trail.known(await self._caller(arrival.credential))
        route = self.routes[arrival.path]
        require_scope(call.caller, route.path)
        if self.is_draining:
            raise DrainingError("the server is shutting down", retry_after_s=DRAINING_RETRY_S)
        quotas = await self._catalog.quotas(call.caller)
        with self._admission.begin(call.caller.tenant, quotas) as admitted:
            async with admitted.receiving():
                received = await receive(route)
                trail.request_bytes = received.bytes
                admitted.holds(received.bytes)
            call.admitted = admitted
            response = await route.run(call, received.message)
            sent = await send(response)
        trail.response_bytes = sent.bytes
        if isinstance(response, (pb.AddResponse, pb.EvictResponse)) and response.evicted:
            cause = EVICTION_CAUSES[arrival.path.rpartition("/")[2]]
            self._telemetry.evicted(call.caller.tenant, response.evicted, cause=cause)
        return sent.reply

    async def _caller(self, credential: str | None) -> Caller:
        principal = await self._authenticator.authenticate(credential)
        if not isinstance(principal, Caller):
            raise UnauthenticatedError  # operators have no memories, and their keys no business here
        return principal


def _route(method: MethodDescriptor, calls: MemoryCalls | NamespaceCalls) -> Route:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
    return Route(
        path=f"/{method.containing_service.full_name}/{method.name}",
        request_type=message_factory.GetMessageClass(method.input_type),
        run=getattr(calls, name),
        streams=method.server_streaming,
    )
