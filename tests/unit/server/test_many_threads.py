"""The kernels with many threads, with fewer than they asked for, and in processes that were forked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import numpy as np
import pytest

from recollect_server.engine import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

PATIENCE_S = 60.0

SEARCH = """
import os, signal, threading
import numpy as np
from recollect_server.engine import kernels

def search(queries=200, rows=3000, bound=lambda is_bound: None):
    rng = np.random.default_rng(queries)
    q, k = (rng.standard_normal((1, n, 64), dtype=np.float32) for n in (queries, rows))
    best = kernels.Best(queries, 8)
    float32 = kernels.FLOAT32
    bound(True)
    kernels.scan(best, q, k, query_dtype=float32, key_dtype=float32, rows=slice(0, rows))
    bound(False)
    # Without a BLAS, which has threads and locks of its own.
    wanted = -np.sort(-np.einsum("qd,kd->qk", q[0], k[0], dtype=np.float64), axis=1)[:, :8]
    np.testing.assert_allclose(best.ordered()[0], wanted, rtol=1e-4, atol=1e-4)

def forked(work):
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]
"""


def run(script: str) -> None:
    """In a process of its own, which ends well."""
    ended = subprocess.run(
        [sys.executable, "-c", SEARCH + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def threads_after() -> Iterator[None]:
    """The process goes on with two."""
    yield
    kernels.use_threads(2)


@pytest.mark.usefixtures("threads_after")
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("threads", [7, 10, 12, 14, 16, 33])
def test_queries_are_shared_out_among_any_number_of_threads(threads: int, heads: int) -> None:
    """On a machine with ten processors or more, a search of some numbers of queries ends the server."""
    kernels.use_threads(threads)
    rng = np.random.default_rng(threads)
    keys = rng.standard_normal((heads, 500, 32), dtype=np.float32)
    for count in (*range(600, 660, 5), 780, 967, 1037):
        q = rng.standard_normal((heads, count, 32), dtype=np.float32)
        best = kernels.Best(heads * count, 3)
        kernels.scan(
            best, q, keys, query_dtype=kernels.FLOAT32, key_dtype=kernels.FLOAT32, rows=slice(0, 500)
        )
        products = q.astype(np.float64) @ keys.astype(np.float64).transpose(0, 2, 1)
        wanted = -np.sort(-products, axis=-1)[..., :3].reshape(-1, 3)
        np.testing.assert_allclose(best.ordered()[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux counts it")
def test_fewer_threads_than_were_asked_for_do() -> None:
    """Where a container allows no more threads, the first large search ends the server."""
    run(
        """
        import resource
        kernels.use_threads(64)
        none = resource.RLIM_INFINITY

        def bound(is_bound):
            pages = int(open("/proc/self/statm").read().split()[0])
            bytes_max = pages * resource.getpagesize() + 128 * 2**20  # a thread's stack takes 8
            resource.setrlimit(resource.RLIMIT_AS, (bytes_max if is_bound else none, none))

        search(bound=bound)
        assert len(os.listdir("/proc/self/task")) < 40
        search()
        """
    )


def test_a_forked_process_searches_and_rests() -> None:
    """A server that a worker starts, where its parent had searched, ends when it first comes to rest."""
    run(
        """
        kernels.use_threads(4)
        for _ in range(5):
            search()

        def work():
            for threads in (4, 3, 4):
                kernels.use_threads(threads)
                search()
                kernels.give_back()

        assert forked(work) == 0
        search()
        kernels.give_back()
        search()
        """
    )


def test_who_is_forked_during_a_search_can_search() -> None:
    """A worker that is forked while its parent searches waits for ever when it opens a memory of its own."""
    run(
        """
        kernels.use_threads(2)
        search()  # imports what it needs, which is no thing to do while forking
        is_over = threading.Event()

        def searching():
            while not is_over.is_set():
                search(400, 3000)
                kernels.give_back()

        def work():
            search()
            kernels.use_threads(3)
            kernels.give_back()
            search()

        thread = threading.Thread(target=searching)
        thread.start()
        try:
            assert [forked(work) for _ in range(4)] == [0] * 4
        finally:
            is_over.set()
            thread.join()
        """
    )


def test_the_number_of_threads_may_change_during_a_search() -> None:
    """Who opens a second memory in a process breaks what the first one finds, or ends it."""
    run(
        """
        is_over = threading.Event()

        def changing():
            while not is_over.is_set():
                for threads in (1, 2, 3):
                    kernels.use_threads(threads)

        thread = threading.Thread(target=changing)
        thread.start()
        try:
            for _ in range(20):
                search()
        finally:
            is_over.set()
            thread.join()
        """
    )
