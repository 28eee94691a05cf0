"""Load from processes of its own, so that a client's work is not taken for the server's."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

import recollect

HEADS, DIM, LAYER = 8, 64, 0
SMALL_ENTRIES, SMALL_TOP_K = 4096, 32
READY, GO = "ready", "go"


@dataclass
class Times:
    """What a load saw.

    Attributes:
        ok_s: How long each call took that was answered with what it asked for.
        refused_s: How long each refusal took.
        reasons: Of the refusals, counted.
    """

    ok_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def run(self, call: Callable[[], object]) -> None:
        """Makes one call and notes how it went."""
        begun_s = time.perf_counter()
        try:
            call()
        except recollect.RecollectError as error:
            self.refused_s.append(time.perf_counter() - begun_s)
            self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
        else:
            self.ok_s.append(time.perf_counter() - begun_s)

    def add(self, other: Times) -> None:
        """Takes in what another load saw."""
        self.ok_s += other.ok_s
        self.refused_s += other.refused_s
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """A quantile in milliseconds; nan of nothing."""
    return float(np.quantile(seconds, share)) * 1000 if seconds else float("nan")


def median_ms(seconds: Sequence[float]) -> float:
    """The median in milliseconds; nan of nothing."""
    return statistics.median(seconds) * 1000 if seconds else float("nan")


def make_namespace(
    client: recollect.Client, name: str, *, entries: int, streams: Sequence[str] = ("a",)
) -> recollect.Namespace:
    """A namespace in float16 with so many random entries in each stream."""
    generator = np.random.default_rng(0)
    namespace = client.create_namespace(
        name, layers=[LAYER], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=entries
    )
    size = min(entries, 8192)
    for _ in range(entries // size):
        for stream in streams:
            block = generator.standard_normal((1, HEADS, size, DIM), dtype=np.float32)
            namespace.add(LAYER, block, block, streams=[stream])
    return namespace


def small_attend(namespace: recollect.Namespace) -> Callable[[], object]:
    """One decoding step: 8 heads x 1 query."""
    queries = np.random.default_rng(1).standard_normal((1, HEADS, 1, DIM), dtype=np.float32)
    return lambda: namespace.attend(LAYER, queries, top_k=SMALL_TOP_K, streams=["a"])


class Load:
    """A process that makes calls from when it is told to until it is told to stop.

    Args:
        url: Of the server.
        token: Of the tenant.
        namespace: Which exists.
        make_call: From the namespace, for each thread; looked up by name in the new process.
        pause_s: Of each thread, between two calls.
        threads: Calls in flight.
        is_background: Whether it runs at the lowest priority.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        namespace: str,
        make_call: Callable[[recollect.Namespace], Callable[[], object]],
        pause_s: float = 0.0,
        threads: int = 1,
        is_background: bool = False,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve,
            args=(there, url, token, namespace, make_call, pause_s, threads, is_background),
            daemon=True,
        )
        self._process.start()
        there.close()  # so that a load that dies is noticed
        if self._here.recv() != READY:
            raise RuntimeError("the load did not get ready")

    def start(self) -> None:
        """Begins to call."""
        self._here.send(GO)

    def stop(self) -> Times:
        """Ends it; what it saw since `start`."""
        self._here.send(None)
        times = self._here.recv()
        assert isinstance(times, Times)
        return times

    def run(self, seconds: float) -> Times:
        """Calls for so long."""
        self.start()
        time.sleep(seconds)
        return self.stop()

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _serve(
    there: Connection,
    url: str,
    token: str | None,
    name: str,
    make_call: Callable[[recollect.Namespace], Callable[[], object]],
    pause_s: float,
    threads: int,
    is_background: bool,
) -> None:
    if is_background:
        os.nice(19)
    with recollect.connect(url, token=token, retries=0, timeout_s=None) as client:
        calls = [make_call(client.namespace(name)) for _ in range(threads)]
        there.send(READY)
        while there.recv() == GO:
            stop, parts = threading.Event(), [Times() for _ in calls]
            workers = [
                threading.Thread(target=_loop, args=(call, part, stop, pause_s))
                for call, part in zip(calls, parts, strict=True)
            ]
            for worker in workers:
                worker.start()
            there.recv()
            stop.set()
            for worker in workers:
                worker.join()
            total = Times()
            for part in parts:
                total.add(part)
            there.send(total)


def _loop(call: Callable[[], object], times: Times, stop: threading.Event, pause_s: float) -> None:
    while not stop.is_set():
        times.run(call)
        if pause_s:
            time.sleep(pause_s)
