"""A memory whose calls are large enough to share memory with its server, and what its client shares."""

from __future__ import annotations

import numpy as np

import recollect
from recollect import _regions as regions
from tests.contract.memories import CheckedMemory, Memories

STREAMS = ["a", "b"]
TOKENS, TOP_K, DIM = 300, 40, 32


def filled(client: recollect.Client, rng: np.random.Generator, *, capacity: int = 2000) -> CheckedMemory:
    """A memory whose adds are 0.9 MB and whose reads are 9 MB."""
    memory = Memories(client, rng)(capacity=capacity, key_dim=DIM, value_dim=2 * DIM, dtype="float32")
    memory.add(STREAMS, 600, lengths=[600, 555])
    return memory


def read(memory: CheckedMemory, *, streams: list[str] = STREAMS) -> None:
    """A large read is as the oracle says."""
    q = memory.queries(len(streams), TOKENS)
    found = memory.ns.search(0, q, top_k=TOP_K, streams=streams, include=["keys", "values"])
    memory.oracle.check_search(0, q, found, streams=streams)


def idle_of(pool: regions.RegionPool) -> int:
    """How many of its regions are free."""
    pool.may_keep()  # looks which are free again
    return len(pool._idle)


def pool_of(client: object) -> regions.RegionPool:
    """The regions that a client holds, an async one's beneath its blocking face."""
    found = client
    for name in ("_inner", "_runner", "_transport"):
        found = vars(found).get(name, found)
    pool = vars(found)["_regions"]
    assert isinstance(pool, regions.RegionPool)
    return pool
