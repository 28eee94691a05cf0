"""Where a call comes in, from a socket or from the same process: who is it, and whose turn is it."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.dispatch import Dispatcher
from recollect_server.domain.errors import InternalError, RecollectError
from recollect_server.domain.identity import Caller
from recollect_server.domain.ports import Authenticator
from recollect_server.rpc.calls import MemoryCalls, NamespaceCalls

log = logging.getLogger(__name__)

SERVICES = tuple(pb.DESCRIPTOR.services_by_name.values())


@dataclass(frozen=True, slots=True)
class Route:
    """One method of the wire."""

    path: str
    request_type: type[Message]
    call: Callable[[Caller, Message], Message]


class Endpoint:
    """All routes, behind authentication and the device's queue.

    Args:
        authenticator: The only source of a call's tenant.
        dispatcher: Of the device that the calls run on.
        memory: `MemoryService`.
        namespaces: `NamespaceService`.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        dispatcher: Dispatcher,
        *,
        memory: MemoryCalls,
        namespaces: NamespaceCalls,
    ) -> None:
        self._authenticator = authenticator
        self._dispatcher = dispatcher
        calls: dict[str, MemoryCalls | NamespaceCalls] = {
            "MemoryService": memory,
            "NamespaceService": namespaces,
        }
        self.routes = {
            route.path: route
            for service in SERVICES
            for route in (_route(method, calls[service.name]) for method in service.methods)
        }

    def authenticate(self, credential: str | None) -> Caller:
        """Who is calling. Comes before a message is read.

        Raises:
            UnauthenticatedError: Nobody that the server knows.
        """
        return self._authenticator.authenticate(credential)

    def start(
        self, caller: Caller, path: str, *, request: Message, deadline_s: float | None
    ) -> Future[Message]:
        """Queues a call.

        Args:
            caller: From `authenticate`.
            path: "/recollect.v1.MemoryService/Attend".
            request: Of the route's type.
            deadline_s: In `time.monotonic()` seconds.

        Returns:
            The response to come, or a RecollectError.

        Raises:
            RecollectError: Refused before it was queued.
        """
        route = self.routes[path]
        return self._dispatcher.submit(lambda: _run(route, caller, request), deadline_s=deadline_s)

    def drain(self) -> None:
        """Refuses new calls; returns when those queued are done."""
        self._dispatcher.drain()


def _run(route: Route, caller: Caller, request: Message) -> Message:
    try:
        return route.call(caller, request)
    except RecollectError:
        raise
    except Exception as defect:
        error = InternalError(error_id=uuid.uuid4().hex)
        log.exception("%s failed; error id %s", route.path, error.error_id)
        raise error from defect


def _route(method: MethodDescriptor, calls: MemoryCalls | NamespaceCalls) -> Route:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
    return Route(
        path=f"/{method.containing_service.full_name}/{method.name}",
        request_type=message_factory.GetMessageClass(method.input_type),
        call=getattr(calls, name),
    )
