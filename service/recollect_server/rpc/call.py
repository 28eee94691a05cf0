"""One call on its way through the server."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from recollect_server.application.admission import Admitted
from recollect_server.application.turns import Times
from recollect_server.domain.audit import Origin, origin_of
from recollect_server.domain.errors import InternalError, RecollectError
from recollect_server.domain.identity import Caller
from recollect_server.domain.telemetry import CallRecord

REQUEST_ID_LENGTH_MAX = 128

DEADLINE_S_MAX = 10.0 * 365 * 86_400
"""What is beyond is no deadline: some clients write one at the end of time for none."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a call before anything of its message is read.

    Attributes:
        path: "/recollect.v1.MemoryService/Attend".
        credential: What its caller showed, or None.
        transport: "grpc", "direct" or "embedded".
        source: Host of the caller, "unix", or "".
        deadline_s: When it stops waiting, in `time.monotonic()` seconds; None: never.
        request_id: For logs; "" to have one made.
        traceparent: W3C trace context, or "".
    """

    path: str
    credential: str | None
    transport: str
    source: str = ""
    deadline_s: float | None = None
    request_id: str = ""
    traceparent: str = ""


@dataclass(slots=True)
class Call:
    """A call whose caller is known.

    Attributes:
        caller: Who; the only source of the tenant.
        origin: The same, for the audit log.
        times: At the device.
        admitted: What counts the bytes that it holds, once it is let in.
    """

    caller: Caller
    origin: Origin
    times: Times
    admitted: Admitted | None = None


@dataclass(slots=True)
class Trail:
    """What a call leaves behind, for `Telemetry`."""

    arrival: Arrival
    started_ns: int = field(default_factory=time.time_ns)
    started_s: float = field(default_factory=time.perf_counter)
    caller: Caller | None = None
    times: Times = field(default_factory=Times)
    request_bytes: int = 0
    response_bytes: int = 0

    def known(self, caller: Caller) -> Call:
        """The call, now that its caller is known."""
        self.caller = caller
        self.times.deadline_s = self.arrival.deadline_s
        return Call(caller, origin_of(caller, self.arrival.source), self.times)

    def ended(self, status: str, error: RecollectError | None = None) -> CallRecord:
        """The record of the whole call."""
        request_id = self.arrival.request_id
        return CallRecord(
            method=self.arrival.path.rpartition("/")[2],
            transport=self.arrival.transport,
            tenant=self.caller.tenant if self.caller else "",
            key_id=self.caller.key_id if self.caller else "",
            status=status,
            reason=error.reason if error else "",
            error_id=error.error_id if isinstance(error, InternalError) else "",
            request_id=request_id[:REQUEST_ID_LENGTH_MAX] or os.urandom(16).hex(),
            source=self.arrival.source,
            traceparent=self.arrival.traceparent,
            started_ns=self.started_ns,
            total_s=time.perf_counter() - self.started_s,
            waited_s=self.times.waited_s,
            worked_s=self.times.worked_s,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
        )
