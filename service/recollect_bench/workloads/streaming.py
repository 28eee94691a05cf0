"""The streaming job of memorizing attention: add 512, search 512 with values, evict the oldest 512."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import recollect
from recollect_bench import datasets, memory
from recollect_bench.datasets import DataSet
from recollect_bench.memory import TOP_K, fill, namespace, server_and_client, settle
from recollect_bench.peers.installed import reason_absent
from recollect_bench.peers.process import Peer, PeerError
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import SPIN_S, Spread
from recollect_bench.truth import recall

ENTRIES, STEP, STEPS, ON_END = 65_536, 512, 40, 8
CHECKED_EVERY, STEPS_LEAST = 4, 3
SAMPLE, SETTLE_S = 512, 10.0
GOALS = {"mixture": 10.0, "sphere": 3.0}
GOAL, GOAL_LUCIDRAINS = 5.0, 10.0
OURS, DIRECT = "over gRPC", "without gRPC"


@dataclass(slots=True)
class Contender:
    """One that does the job.

    Attributes:
        step: Does step number n; returns seconds and ids.
        evicts: Whether its oldest entries go.
        note: For the reader.
        seconds: Of the steps so far.
        recalls: Of those that were checked.
    """

    step: Callable[[int], tuple[float, NDArray[np.integer]]]
    evicts: bool = True
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """The mean of those that were checked."""
        return float(np.mean(self.recalls))


def run(scale: Scale) -> Outcome:
    """Steps per second over gRPC against peers in process, for each data set."""
    outcome = Outcome()
    for name in scale.data or datasets.names():
        _one(name, scale, outcome)
    return outcome


def _one(name: str, scale: Scale, outcome: Outcome) -> None:
    entries, step = scale.size(ENTRIES), scale.size(STEP, least=32)
    data = datasets.make(name, entries=entries + (STEPS + 2) * step, queries=8 * step, seed=scale.seed)
    job = _Job(data, entries, step)
    peers: list[Peer] = []
    try:
        with server_and_client() as (_, client), server_and_client(direct=True) as (_, directly):
            contenders = {OURS: Contender(_ours(client, job)), DIRECT: Contender(_ours(directly, job))}
            for peer in scale.peers:
                reason = reason_absent(peer)
                if reason is None:
                    try:
                        peers.append(opened := _peer(peer, job))
                        contenders[peer] = Contender(
                            _theirs(opened, job), evicts=opened.evicts, note=opened.note
                        )
                    except PeerError as error:
                        reason = str(error)
                if reason is not None:
                    outcome.absent[peer] = reason
            _take_turns(contenders, job, scale)
    finally:
        for opened in peers:
            opened.close()
    _report(name, contenders, outcome)


@dataclass(frozen=True, slots=True)
class _Job:
    data: DataSet
    entries: int
    step: int

    def added(self, number: int) -> slice:
        first = self.entries + number * self.step
        return slice(first, first + self.step)

    def queries(self, number: int) -> datasets.Floats:
        first = number * self.step % len(self.data.queries)
        return self.data.queries[first : first + self.step]

    def recall(self, number: int, ids: NDArray[np.integer], *, evicts: bool) -> float:
        oldest = number * self.step if evicts else 0
        return recall(
            ids, self.data.keys[oldest : self.added(number).stop], self.queries(number), first_id=oldest
        )


def _ours(client: recollect.Client, job: _Job) -> Callable[[int], tuple[float, NDArray[np.integer]]]:
    data = job.data
    # As stored and sent by default; what is asked and judged is float32 for all.
    space = namespace(client, "streaming", dim=data.dim, capacity=job.entries + job.step, dtype="float16")
    first_id = fill(space, data.keys[: job.entries], data.values[: job.entries])
    settle(space, job.queries(0), seconds=SETTLE_S)

    def step(number: int) -> tuple[float, NDArray[np.integer]]:
        part = job.added(number)
        seconds, ids = memory.step(space, data.keys[part], data.values[part], job.queries(number))
        return seconds, ids - first_id

    return step


def _peer(name: str, job: _Job) -> Peer:
    """A peer that holds the entries, searching as hard as recall needs."""
    data = job.data
    peer = Peer(name, dim=data.dim, capacity=job.entries + job.step, top_k=TOP_K)
    try:
        peer.add(data.keys[: job.entries], data.values[: job.entries])
        peer.tune(data.keys[: job.entries], data.queries[:SAMPLE])
    except PeerError:
        peer.close()
        raise
    return peer


def _theirs(peer: Peer, job: _Job) -> Callable[[int], tuple[float, NDArray[np.integer]]]:
    def step(number: int) -> tuple[float, NDArray[np.integer]]:
        part = job.added(number)
        done = peer.step(job.data.keys[part], job.data.values[part], job.queries(number), evict=job.step)
        return done.seconds, done.ids

    return step


def _take_turns(contenders: dict[str, Contender], job: _Job, scale: Scale) -> None:
    """Some steps on end, then the next one's; who has used up his time is done, but for a few steps.

    On end, since that is what such a job does. After each step alone a contender that keeps its index in the
    background would do so in the time of the others.
    """
    share_s, steps = scale.seconds_max / 2, min(STEPS, 2 * scale.rounds + 1)
    for first in range(0, steps, ON_END):
        for contender in contenders.values():
            if len(contender.seconds) < STEPS_LEAST or sum(contender.seconds) <= share_s:
                time.sleep(SPIN_S)
                _some_steps(contender, job, range(first, min(steps, first + ON_END)))


def _some_steps(contender: Contender, job: _Job, numbers: range) -> None:
    answers: list[tuple[int, NDArray[np.integer]]] = []
    for number in numbers:
        seconds, ids = contender.step(number)
        if number:  # the first warms up
            contender.seconds.append(seconds)
        if number % CHECKED_EVERY == 1:
            answers.append((number, ids))
    contender.recalls += [job.recall(number, ids, evicts=contender.evicts) for number, ids in answers]


def _report(name: str, contenders: dict[str, Contender], outcome: Outcome) -> None:
    ours, directly = contenders.pop(OURS), contenders.pop(DIRECT)
    if not contenders:
        outcome.figures += [_alone(name, ours), _alone(f"{name}, {DIRECT}", directly)]
    for peer, theirs in contenders.items():
        goal = {"usearch": GOALS.get(name, GOAL), "lucidrains": GOAL_LUCIDRAINS}.get(peer)
        outcome.figures.append(_beside(f"{name}, against {peer}", ours, theirs, goal))
        if goal is not None:
            outcome.figures.append(_beside(f"{name}, {DIRECT}, against {peer}", directly, theirs, goal))


def _alone(case: str, ours: Contender) -> Figure:
    return Figure("streaming", case, _said(ours), recall=ours.recall)


def _beside(case: str, ours: Contender, theirs: Contender, goal: float | None) -> Figure:
    return Figure(
        "streaming",
        case,
        _said(ours),
        _said(theirs),
        ratio=Spread.of(theirs.seconds).median_s / Spread.of(ours.seconds).median_s,
        goal="" if goal is None else f">= {goal:g}",
        recall=ours.recall,
        their_recall=theirs.recall,
        note=theirs.note,
    )


def _said(contender: Contender) -> str:
    spread = Spread.of(contender.seconds)
    return f"{1 / spread.median_s:.1f} steps/s, {spread}, slowest {max(contender.seconds) * 1e3:.3g} ms"
