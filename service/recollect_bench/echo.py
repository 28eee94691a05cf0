"""The least that a call over gRPC costs: a server that answers with so many bytes, and does nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio

METHOD = "/bench.Echo/Call"
MESSAGE_BYTES_MAX = 256 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
]
STOP_TIMEOUT_S = 10.0

Echo = Callable[[bytes], bytes]

_KNOWS_POLLER = (1, 76) <= tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 83)
ENVIRONMENT = {"GRPC_EXPERIMENTS": "-event_engine_poller_for_python" if _KNOWS_POLLER else ""}
"""What makes gRPC faster for the server (`recollect serve` sets it) makes it faster here."""


@contextmanager
def echo(reply_bytes: int) -> Iterator[Echo]:
    """Starts the server in a process of its own, on a unix socket; yields a call over one connection."""
    with tempfile.TemporaryDirectory(prefix="recollect-") as folder:
        address = f"unix://{Path(folder) / 'echo'}"
        command = [sys.executable, "-m", "recollect_bench.echo", address, str(reply_bytes)]
        environment = {**os.environ, **ENVIRONMENT}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            try:
                server.stdout.readline()
                with grpc.insecure_channel(address, options=OPTIONS) as channel:
                    yield channel.unary_unary(METHOD, request_serializer=_as_is, response_deserializer=_as_is)
            finally:
                server.kill()
                server.wait(STOP_TIMEOUT_S)


def _as_is(message: bytes) -> bytes:
    return message


async def _serve(address: str, reply: bytes) -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return reply

    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Call": grpc.unary_unary_rpc_method_handler(answer)  # without serializers: bytes as they come
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    server.add_insecure_port(address)
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], bytes(int(sys.argv[2]))))
