"""Calls for the device: one that holds it until it is let go, and one that notes its steps."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.domain.steps import Steps, in_one_step

PATIENCE_S = 60.0


class Gate:
    """A call that holds the device until it is let go."""

    def __init__(self, dispatcher: Dispatcher, *, tenant: str = "gate", cost: int = 0) -> None:
        self._go = threading.Event()
        self._began = threading.Event()
        self.held: Future[None] = dispatcher.submit(Job(tenant, in_one_step(self._hold), cost))
        assert self._began.wait(PATIENCE_S)

    def open(self) -> None:
        """Lets go."""
        self._go.set()

    def _hold(self) -> None:
        self._began.set()
        assert self._go.wait(PATIENCE_S)


def noted(seen: list[str], name: str, *, steps: int, work: int) -> Steps[str]:
    """A call of several steps that notes each."""
    yield 0
    for _ in range(steps):
        seen.append(name)
        yield work
    return name
