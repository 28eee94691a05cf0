"""Load on servers that share a registry: callers whose answers are checked, an operator who makes changes."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

import recollect
from recollect.v1 import memory_pb2 as pb
from tests.e2e.admin_api import AWAY, WEIGHT, Admin
from tests.e2e.shell import PATIENCE_S, key_id_of
from tests.oracle import OracleMemory, representable
from tests.server_process import ServerProcess

HEADS, DIM, CAPACITY, TOP_K, TOKENS = 2, 8, 64, 8, 3
SCALE = 1.0
PAUSE_S = 0.01
"""Between two rounds of a thread, so that the threads share a small machine with what they test."""
LIFE = ("tenant.create", "key.issue", "tenant.set-quotas", "namespace.create", "namespace.delete")
"""What happens to a tenant, in this order, one step at each server in turn."""


class Worker(ABC):
    """A thread that does something again and again until it is stopped. What it raises fails the test."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    def turn(self) -> None:
        """Does it once."""

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.turn()
                time.sleep(PAUSE_S)
        except BaseException as failure:
            self.failures.append(failure)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends with the turn under way."""
        self._stop.set()
        self._thread.join(PATIENCE_S)


class Caller(Worker):
    """A tenant's client: adds and attends to a stream of its own, and compares with plain NumPy.

    Attributes:
        answered: Calls that were, all of them rightly.
        refused: Calls that were refused because the registry is away.
    """

    def __init__(self, server: ServerProcess, token: str, namespace: str, *, seed: int) -> None:
        super().__init__()
        self._client = recollect.connect(server.tcp_url, token=token, retries=0, timeout_s=PATIENCE_S)
        self._ns = self._client.namespace(namespace)
        self._stream = [f"stream-{seed}"]
        self._rng = np.random.default_rng(seed)
        self._oracle = OracleMemory(
            heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=CAPACITY, dtype="float16"
        )
        self.answered = 0
        self.refused = 0

    def turn(self) -> None:
        """One add and one attend."""
        for act in (self._add, self._attend):
            try:
                act()
            except recollect.UnavailableError as refused:
                require_away(refused)
                self.refused += 1
            else:
                self.answered += 1

    def stop(self) -> None:
        """Hangs up, too."""
        super().stop()
        self._client.close()

    def _add(self) -> None:
        keys, values = self._draw(), self._draw()
        added = self._ns.add(0, keys, values, streams=self._stream)
        first = [int(each) for each in added.first_ids]
        self._oracle.add(0, keys, values, streams=self._stream, first_ids=first)

    def _attend(self) -> None:
        q = self._draw()
        attended = self._ns.attend(0, q, top_k=TOP_K, streams=self._stream, scale=SCALE, missing_ok=True)
        self._oracle.check_attend(0, q, attended, streams=self._stream, scale=SCALE, top_k=TOP_K)

    def _draw(self) -> NDArray[np.float32]:
        return representable(self._rng.standard_normal((1, HEADS, TOKENS, DIM)), "float16")


@dataclass
class Story:
    """What was done to one tenant, in order.

    Attributes:
        acknowledged: Actions that were, by their names in the audit log.
        unknown: The one behind them that was refused, and so may have happened or not; "" if there is none.
        token: Of the tenant's key.
    """

    acknowledged: list[str] = field(default_factory=list[str])
    unknown: str = ""
    token: str = ""


class Changer(Worker):
    """An operator who makes tenants and changes them, at one server and the other in turn.

    Attributes:
        stories: By tenant.
        refused: Changes that were refused because the registry is away.
    """

    def __init__(self, servers: Sequence[ServerProcess]) -> None:
        super().__init__()
        self.refused = 0
        self._admins = [Admin(server) for server in servers]
        self.stories: dict[str, Story] = {}
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._rests = threading.Event()

    def turn(self) -> None:
        """The life of one tenant; ends at the first refusal."""
        if not self._may_go_on.is_set():
            self._rests.set()
            self._may_go_on.wait(PAUSE_S)
            return
        number = len(self.stories)
        tenant, story = f"t{number}", Story()
        self.stories[tenant] = story
        first = number % 2
        changes = [*LIFE, "key.revoke"] + (["tenant.delete"] if number % 3 == 0 else [])
        for step, action in enumerate(changes):
            story.unknown = action
            if not self._change(action, tenant, story, at=(first + step) % 2):
                self.refused += 1
                return
            story.acknowledged.append(action)
            story.unknown = ""

    @property
    def acknowledged(self) -> int:
        """How many changes were."""
        return sum(len(story.acknowledged) for story in list(self.stories.values()))

    def pause(self) -> None:
        """Returns when nothing is under way."""
        self._rests.clear()
        self._may_go_on.clear()
        assert self._rests.wait(PATIENCE_S) or self.failures

    def stop(self) -> None:
        """Hangs up, too."""
        super().stop()
        for admin in self._admins:
            admin.close()

    def resume(self) -> None:
        """Ends `pause`."""
        self._may_go_on.set()

    def _change(self, action: str, tenant: str, story: Story, *, at: int) -> bool:
        admin, path = self._admins[at], f"/tenants/{tenant}"
        if action == "key.issue":
            issued = admin.change("POST", f"{path}/keys", {"scopes": ["read", "write"], "label": tenant})
            story.token = str(issued["token"]) if issued else ""
            return issued is not None
        if action.startswith("namespace."):
            create = action == "namespace.create"
            request = create_request("kept") if create else pb.DeleteNamespaceRequest(name="kept")
            became = admin.reason("CreateNamespace" if create else "DeleteNamespace", request, story.token)
            assert became in ("OK", AWAY), became
            return became == "OK"
        method, where, body = {
            "tenant.create": ("POST", "/tenants", {"name": tenant}),
            "tenant.set-quotas": ("PUT", f"{path}/quotas", {"weight": WEIGHT}),
            "key.revoke": ("DELETE", f"{path}/keys/{key_id_of(story.token or 'rk_')}", None),
            "tenant.delete": ("DELETE", path, None),
        }[action]
        return admin.change(method, where, body) is not None


def require_away(refused: recollect.UnavailableError) -> None:
    """It has to be the registry that is away, not the server."""
    assert refused.reason == AWAY, refused


def create_request(name: str) -> pb.CreateNamespaceRequest:
    """A namespace that fits a `Caller`."""
    spec = pb.NamespaceSpec(
        layers=[0],
        heads=HEADS,
        key_dim=DIM,
        value_dim=DIM,
        capacity=CAPACITY,
        dtype=pb.DTYPE_FLOAT16,
    )
    return pb.CreateNamespaceRequest(name=name, spec=spec)


class Everybody:
    """Workers that are started together, and stopped when the context ends."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = workers

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.stop()

    def check(self) -> None:
        """Fails with what a worker failed with."""
        for worker in self._workers:
            for failure in worker.failures:
                raise failure
