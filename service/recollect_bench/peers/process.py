"""One peer, in a process of its own environment's Python."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recollect_bench.datasets import Floats
from recollect_bench.peers.installed import PEERS
from recollect_bench.truth import Ids, recall

ADAPTERS = Path(__file__).parent / "adapters"
THREADS = os.cpu_count() or 1
"""A peer has as many as the memory server."""
STOP_TIMEOUT_S = 10.0

RECALL_GOAL = 0.965
"""Before anything is evicted, so that 0.95 is left once much has come and gone: graphs wear out."""


class PeerError(Exception):
    """A peer could not do what it was asked, with its own words."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the streaming job: how long it took inside the peer, and what was found."""

    seconds: float
    parts_s: dict[str, float]
    ids: Ids
    values: Floats


class Peer:
    """A running peer. Every time is taken in its process, around its own calls.

    Args:
        name: Of the peer.
        dim: Size of a key.
        value_dim: Size of a value; None: that of a key.
        capacity: Entries that it has to hold at once.
        top_k: Entries for each query.

    Raises:
        PeerError: It did not open.
    """

    def __init__(
        self, name: str, *, dim: int, value_dim: int | None = None, capacity: int, top_k: int
    ) -> None:
        kind = PEERS[name]
        self.name, self.evicts, self.note = name, kind.evicts, kind.note
        settings = {"dim": dim, "value_dim": value_dim or dim, "capacity": capacity, "k": top_k}
        settings |= {"threads": THREADS, "effort": kind.efforts[0]}
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [str(kind.python), str(ADAPTERS / f"{name}_adapter.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            self._ask("open", settings=settings)
        except PeerError:
            self.close()
            raise

    def add(self, keys: Floats, values: Floats) -> float:
        """Appends entries; ids go on from the last. Returns seconds."""
        return _seconds(self._ask("add", keys, values)[0])

    def search(self, queries: Floats) -> tuple[float, Ids]:
        """The k best ids of each query. Returns seconds, and ids [M, k]."""
        fields, arrays = self._ask("search", queries)
        return _seconds(fields), arrays[0].astype(np.int64)

    def step(self, keys: Floats, values: Floats, queries: Floats, *, evict: int) -> Step:
        """Adds, searches with values, and evicts the oldest, if it can."""
        evict = evict if self.evicts else 0
        fields, (ids, found) = self._ask("step", keys, values, queries, evict=evict)
        parts = {n: float(str(fields[n])) for n in ("add_s", "search_s", "evict_s")}
        return Step(_seconds(fields), parts, ids.astype(np.int64), found.astype(np.float32))

    def set_effort(self, effort: int) -> None:
        """Sets how hard it searches: one of its kind's efforts."""
        self._ask("tune", effort=effort)

    def tune(self, keys: Floats, queries: Floats, *, recall_goal: float = RECALL_GOAL) -> float:
        """Lets it search as hard as it must to answer well, and no harder.

        Args:
            keys: [N, D], all that it holds.
            queries: [M, D], a sample.
            recall_goal: To be reached with the least effort; with the largest, if none reaches it.

        Returns:
            The recall reached.
        """
        reached = 0.0
        for effort in PEERS[self.name].efforts:
            self.set_effort(effort)
            reached = recall(self.search(queries)[1], keys, queries)
            if reached >= recall_goal:
                break
        return reached

    def close(self) -> None:
        """Ends it: by the end of its input, so that it can end what it started, or else at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, op: str, *arrays: Floats, **fields: object
    ) -> tuple[Mapping[str, object], Sequence[NDArray[np.generic]]]:
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        arrays = tuple(np.ascontiguousarray(array) for array in arrays)
        about = [[array.dtype.str, list(array.shape)] for array in arrays]
        try:
            sink.write(json.dumps({"op": op, "arrays": about, **fields}).encode() + b"\n")
            for array in arrays:
                sink.write(array.data)
            sink.flush()
            line = source.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise PeerError(f"{self.name} ended (exit status {self._process.wait()})")
        answer = json.loads(line)
        found = []
        for dtype, shape in answer.pop("arrays"):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found.append(np.frombuffer(source.read(size), dtype).reshape(shape))
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer, found


def _seconds(fields: Mapping[str, object]) -> float:
    return float(str(fields["seconds"]))
