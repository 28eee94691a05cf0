"""A namespace for a workload, filled with a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import recollect
from recollect_bench.datasets import Floats
from recollect_bench.server import Server, memory_server

LAYER, STREAM = 1, "a"
BLOCK = 8192
TOP_K = 32
QUIET_S, PATIENCE_S = 1.0, 4.0
UNDISTURBED_S = 0.25
"""What is made in the background takes turns with the searches of the same namespace."""
Index = Literal["exact", "ivf", "auto"]
Dtype = Literal["float32", "float16", "bfloat16"]


@contextmanager
def server_and_client(*, direct: bool = False) -> Iterator[tuple[Server, recollect.Client]]:
    """A server, and a client on its unix socket.

    Args:
        direct: Whether its calls of one message go without gRPC, as they do by default. What says nothing of
            it is measured over gRPC.
    """
    with (
        memory_server() as server,
        recollect.connect(server.unix_url, timeout_s=600, direct=direct) as client,
    ):
        yield server, client


def namespace(
    client: recollect.Client,
    name: str,
    *,
    dim: int,
    value_dim: int | None = None,
    capacity: int,
    heads: int = 1,
    index: Index = "auto",
    recall: float = 0.95,
    dtype: Dtype = "float32",
) -> recollect.Namespace:
    """An empty namespace of one layer, `LAYER`.

    Args:
        client: Of the server.
        name: Of the namespace.
        dim: Size of a key.
        value_dim: Size of a value; None: that of a key.
        capacity: Entries of a stream.
        heads: Of keys and values.
        index: "exact", "ivf" or "auto".
        recall: To hold.
        dtype: Of what is stored and sent.

    """
    return client.create_namespace(
        name,
        layers=[LAYER],
        heads=heads,
        key_dim=dim,
        value_dim=value_dim or dim,
        capacity=capacity,
        dtype=dtype,
        index=index,
        recall=recall,
    )


def fill(space: recollect.Namespace, keys: Floats, values: Floats, *, stream: str = STREAM) -> int:
    """Adds entries in order, to every head alike.

    Args:
        space: Of heads H.
        keys: [N, D], or [H, N, D].
        values: Likewise.
        stream: To add to.

    Returns:
        The id of the first entry; the others follow.
    """
    first_id = 0
    keys, values = with_heads(keys), with_heads(values)
    for first in range(0, keys.shape[2], BLOCK):
        part = slice(first, first + BLOCK)
        added = space.add(LAYER, keys[:, :, part], values[:, :, part], streams=[stream])
        first_id = first_id if first else added.first_ids[0]
    return first_id


@dataclass(frozen=True, slots=True)
class Engine:
    """What answers a bank's reads, as the server says it.

    Attributes:
        index: "exact" or "ivf".
        lists: Of the inverted file.
        probes: Of those, how many a query looks into.
        reason: Why it searches all, though an inverted file was asked for.
    """

    index: str = "exact"
    lists: int = 0
    probes: int = 0
    reason: str = ""

    def is_like(self, other: Engine) -> bool:
        """Whether the two are alike: how many lists a query looks into moves a little all the time."""
        near = abs(self.probes - other.probes) <= 0.1 * max(self.probes, other.probes)
        return near and replace(self, probes=0) == replace(other, probes=0)

    def __str__(self) -> str:
        if self.index == "ivf":
            return f"ivf, {self.probes} of {self.lists:,} lists"
        return f"{self.index} ({self.reason})" if self.reason else self.index


def engine_of(space: recollect.Namespace, *, stream: str = STREAM) -> Engine:
    """What answers now."""
    (bank,) = space.stats(streams=[stream]).banks
    return Engine(bank.index, lists=bank.lists, probes=bank.probes, reason=bank.reason)


def settle(
    space: recollect.Namespace, queries: Floats, *, seconds: float, at_once: int | None = None
) -> Engine:
    """Searches until what answers has not changed for a while, since indexes are built beside the answers.

    Args:
        space: Returns at once if it can only be exact.
        queries: [M, D], like those that will be asked.
        seconds: At most. A namespace that may take an inverted file and has none yet gets all of it, at most
            `PATIENCE_S` if the server is free to choose.
        at_once: So many of the queries are asked at a time; None: all.

    Returns:
        What answers at the end.
    """
    wanted = space.spec.index
    begun = changed = time.monotonic()
    now = engine_of(space)
    size = at_once or len(queries)
    calls = cycle([queries[first : first + size] for first in range(0, len(queries), size)])
    while wanted != "exact":
        space.search(LAYER, with_heads(next(calls)), top_k=TOP_K, streams=[STREAM])
        before, now, moment = now, engine_of(space), time.monotonic()
        changed = changed if now.is_like(before) else moment
        under_way = "being" in now.reason
        known = (now.index == "ivf" or now.reason) and not under_way
        patience = QUIET_S if known else PATIENCE_S if wanted == "auto" and not under_way else seconds
        if moment - begun > seconds or moment - changed > patience:
            break
        if under_way:
            time.sleep(UNDISTURBED_S)
    return now


def step(
    space: recollect.Namespace, keys: Floats, values: Floats, queries: Floats
) -> tuple[float, NDArray[np.integer]]:
    """Adds, searches with values, and evicts as many as were added: one step of a streaming job.

    Args:
        space: Of one head.
        keys: [N, Dk].
        values: [N, Dv].
        queries: [M, Dk].

    Returns:
        The seconds that it took, and the ids [M, K] that were found.
    """
    k, v, q = with_heads(keys), with_heads(values), with_heads(queries)
    begun = time.perf_counter()
    space.add(LAYER, k, v, streams=[STREAM])
    found = space.search(LAYER, q, top_k=TOP_K, streams=[STREAM], include=["values"])
    space.evict(streams=[STREAM], oldest=len(keys))
    return time.perf_counter() - begun, found.ids[0, 0]


def with_heads(array: Floats) -> Floats:
    """[N, D] or [H, N, D] as [1, H, N, D]."""
    return array[None, None] if array.ndim == 2 else array[None]
