"""Health for probes (grpc.health.v1): the one call that needs no key, so it reads nothing of what is sent."""

from __future__ import annotations

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2


class Health:
    """Answers `Check`: whatever service is asked for, since all of them serve or none does.

    Not the servicer of grpcio-health-checking. That takes a message of any size from anybody, logs a
    traceback for each that is none, and lets anybody hold streams (`Watch`) open; clients that find no
    `Watch` take the server for healthy, by the protocol.

    Attributes:
        is_serving: What to answer.
    """

    SERVICE = health.SERVICE_NAME

    def __init__(self) -> None:
        self.is_serving = False

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server."""
        # As a stream of requests, of which none is asked for.
        check: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_unary_rpc_method_handler(
            self._check, response_serializer=lambda message: message.SerializeToString()
        )
        return grpc.method_handlers_generic_handler(self.SERVICE, {"Check": check})

    async def _check(self, _: object, context: grpc.aio.ServicerContext[bytes, Message]) -> Message:
        del context
        statuses = health_pb2.HealthCheckResponse
        return statuses(status=statuses.SERVING if self.is_serving else statuses.NOT_SERVING)
