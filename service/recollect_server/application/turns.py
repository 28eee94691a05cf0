"""From a command to its turn at the device: finds the caller's namespace, queues, waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from recollect_server.application.catalog import Catalog
from recollect_server.application.commands import Command, Namespace
from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.application.memory import Memory
from recollect_server.application.upkeep import Upkeep
from recollect_server.domain.identity import Caller
from recollect_server.domain.steps import Steps

Answer = TypeVar("Answer")
AnyCommand = TypeVar("AnyCommand", bound=Command)


@dataclass(slots=True)
class Times:
    """How long a call waited for the device and worked there; None if it did not come to that.

    Attributes:
        deadline_s: When its caller stops waiting, in `time.monotonic()` seconds; None: never.
    """

    deadline_s: float | None = None
    waited_s: float | None = None
    worked_s: float | None = None


class Turns:
    """Gives commands their turn.

    Args:
        catalog: Finds the caller's namespace.
        memory: The use cases on it; estimates what a command costs.
        dispatcher: Of the device that all memories are on.
        upkeep: Told of what was done.
    """

    def __init__(self, catalog: Catalog, memory: Memory, *, dispatcher: Dispatcher, upkeep: Upkeep) -> None:
        self._catalog = catalog
        self._memory = memory
        self._dispatcher = dispatcher
        self._upkeep = upkeep

    async def take(
        self,
        caller: Caller,
        command: AnyCommand,
        use_case: Callable[[Namespace, AnyCommand], Steps[Answer]],
        *,
        times: Times,
    ) -> Answer:
        """Runs a command on the memory of the caller's namespace.

        Args:
            caller: Whose namespace it is.
            command: What to do.
            use_case: Of `Memory`; does it.
            times: Its deadline; told what it waited and worked.

        Raises:
            RecollectError: There is no such namespace, the call is wrong, or it cannot be taken now.
        """
        namespace = await self._catalog.get(caller, command.namespace)
        job = Job(
            caller.tenant,
            use_case(namespace, command),
            cost=self._memory.cost(namespace, command),
            deadline_s=times.deadline_s,
            weight=namespace.quotas.weight,
            calls_queued_max=namespace.quotas.calls_queued_max,
            lane=command.namespace,
        )
        try:
            future = self._dispatcher.submit(job)
            try:
                answer = future.result() if future.done() else await asyncio.wrap_future(future)
            finally:
                del future  # what it raises holds this frame, and with it the whole message
        finally:
            times.waited_s, times.worked_s = job.waited_s, job.worked_s
        # Not before it: nobody has to wait for that.
        asyncio.get_running_loop().call_soon(self._upkeep.after, namespace, command, job.worked_s or 0.0)
        return answer
