"""Results in memory that is shared with the server: they are their caller's until he lets go of them."""

from __future__ import annotations

import os

import numpy as np
import pytest

import recollect
from recollect import _regions as regions
from tests.contract.memories import CheckedMemory
from tests.e2e.shared_memory import DIM, STREAMS, TOKENS, TOP_K, filled, idle_of, pool_of, read
from tests.server_process import ServerProcess


def asked(memory: CheckedMemory, number: int) -> tuple[np.ndarray, recollect.SearchResult[np.ndarray]]:
    """One question of several, and its answer."""
    shape = (2, memory.ns.spec.heads, TOKENS, DIM)
    q = np.random.default_rng(number).standard_normal(shape, dtype=np.float32)
    return q, memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=["values"])


def test_results_outlive_their_client() -> None:
    """Whoever closes a client, or loses its server, loses what it found, or dies of it."""
    with ServerProcess() as server:
        with recollect.connect(server.unix_url) as client:
            memory = filled(client, np.random.default_rng(0))
            q, found = asked(memory, 1)
        pool = pool_of(client)
        server.kill()
        memory.oracle.check_search(0, q, found, streams=STREAMS)
        assert pool._count == 1
        del found
        assert (idle_of(pool), pool._count) == (0, 0)


def test_who_keeps_all_results_goes_on_sharing() -> None:
    """Results that are kept take all regions: the next answers come through the socket, and take longer."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, np.random.default_rng(0))
        pool = pool_of(client)
        kept = [asked(memory, number) for number in range(6)]
        assert idle_of(pool) >= 1
        assert len(pool._kept) == regions._KEPT_MAX
        for q, found in kept:
            memory.oracle.check_search(0, q, found, streams=STREAMS)
        kept.clear()
        assert idle_of(pool) == pool._count <= regions._REGIONS_MAX


def test_scores_alone_hold_no_region() -> None:
    """Who keeps ids and scores, which are small, keeps megabytes of shared memory with them."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, np.random.default_rng(0))
        _, found = asked(memory, 1)
        kept = found.scores, found.ids
        assert idle_of(pool_of(client)) == pool_of(client)._count - 1
        del found
        assert idle_of(pool_of(client)) == pool_of(client)._count >= 1
        assert len(kept) == 2


@pytest.mark.parametrize("stays", ["with both", "with the child"])
def test_a_forked_process_keeps_its_results(stays: str) -> None:
    """What a data loader's worker got from its parent changes when the parent asks for more."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, np.random.default_rng(0))
        _, found = asked(memory, 1)
        assert found.values is not None
        copied = found.values.copy()
        child_reads, parent_writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(child_reads, 1)
            os._exit(0 if np.array_equal(found.values, copied) else 1)
        kept = found.values if stays == "with both" else None
        del found
        for number in range(2, 8):
            asked(memory, number)
        os.write(parent_writes, b"!")
        _, status = os.waitpid(child, 0)
        for descriptor in (child_reads, parent_writes):
            os.close(descriptor)
        assert os.waitstatus_to_exitcode(status) == 0
        assert kept is None or np.array_equal(kept, copied)
        assert pool_of(client)._not_before_s == 0.0
        read(memory)
