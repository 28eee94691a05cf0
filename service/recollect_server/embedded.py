"""`embedded://`: the same endpoint in the caller's process, without a socket.

The client finds `open_transport` through the entry point `recollect.transports`, so it never imports
the server; requests and replies are the messages of the wire.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import NamedTuple

from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.dispatch import DRAINING_RETRY_S
from recollect_server.bootstrap import build_embedded_core
from recollect_server.domain.errors import DeadlineExceededError, DrainingError, RecollectError
from recollect_server.lifecycle import Core
from recollect_server.rpc.call import Arrival
from recollect_server.rpc.endpoint import Received, Response, Route, Sent
from recollect_server.rpc.status import detail_of, status_of
from recollect_server.rpc.streams import SearchStream
from recollect_server.settings import Settings


class EmbeddedReply(NamedTuple):
    """What gRPC would have sent: a status, and a response or what went wrong."""

    code: str
    message: str
    response: Message | None
    detail: pb.ErrorDetail | None


class EmbeddedTransport:
    """Calls an endpoint, which lives in an event loop of its own; thread-safe.

    Args:
        core: What to call; started here, and stopped by `close`.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()  # of what follows: nothing comes in once the loop is being ended
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        # A daemon: a client that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="recollect-embedded", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(core.start(), self._loop).result()

    def call(
        self, method: str, request: Message, *, timeout_s: float | None, credential: str | None
    ) -> EmbeddedReply:
        """Makes one call and waits for its reply; never raises what a status can say."""
        arrival = Arrival(
            path=method,
            credential=credential,
            transport="embedded",
            deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
        )

        async def receive(_: Route) -> Received:
            return Received(request, request.ByteSize())

        with self._lock:
            if self._is_closing:
                return _failed(_closed())
            answer = self._core.endpoint.call(arrival, receive, send=_as_message)
            future = asyncio.run_coroutine_threadsafe(answer, self._loop)
        try:
            return EmbeddedReply("OK", "", future.result(timeout_s), None)
        except FutureTimeoutError:
            # What has begun may end, and its effect stays, as with a call whose client hung up.
            future.cancel()
            return _failed(DeadlineExceededError(f"no reply within {timeout_s} s"))
        except CancelledError:
            return _failed(_closed())
        except RecollectError as error:
            return _failed(error)
        finally:
            del future  # it holds the error, and that this frame, which holds the request

    def close(self) -> None:
        """Waits for what is queued; the memories go when nothing refers to the transport any more."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        """Nobody is left who waits for an answer."""
        await self._core.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _as_message(response: Response) -> Sent[Message]:
    # In one process there is no message to be too large: what a stream would carry is one part.
    return Sent(await response.whole() if isinstance(response, SearchStream) else response, 0)


def open_transport() -> EmbeddedTransport:
    """A memory of this process's own, on the device and with the limits of the settings."""
    return EmbeddedTransport(build_embedded_core(Settings()))


def _closed() -> DrainingError:
    return DrainingError("the memory of this process was closed", retry_after_s=DRAINING_RETRY_S)


def _failed(error: RecollectError) -> EmbeddedReply:
    return EmbeddedReply(status_of(error).name, error.message, None, detail_of(error))
