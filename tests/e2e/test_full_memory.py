"""A machine whose memory is full: calls that need more are refused, and all else goes on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import recollect
from tests.server_process import ServerProcess

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux alone limits another process"),
]

DIM, BLOCK, BLOCKS = 64, 8192, 40
LEFT_BYTES = 48 * 2**20


def address_space(pid: int) -> int:
    """What a process has of it, in bytes."""
    (kilobytes,) = re.findall(r"^VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def test_what_finds_no_memory_is_refused() -> None:
    """It is told as a defect of the server, which nobody can do anything about; or the server ends."""
    block = np.random.default_rng(0).standard_normal((1, 1, BLOCK, DIM)).astype(np.float32)
    with ServerProcess() as server, recollect.connect(server.tcp_url, retries=0) as client:
        ns = client.create_namespace(
            "n", layers=[0], heads=1, key_dim=DIM, value_dim=DIM, capacity=2**20, dtype="float32"
        )
        ns.add(0, block, block, streams=["s"])
        ns.search(0, block[:, :, :64], top_k=4, streams=["s"])
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
        most = address_space(server.process.pid) + LEFT_BYTES
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (most, unlimited[1]))

        def fill() -> None:
            for number in range(BLOCKS):
                ns.add(0, block, block, streams=[f"s{number}"])

        with pytest.raises(recollect.ResourceExhaustedError, match="too little free memory") as refused:
            fill()
        assert refused.value.reason == "MEMORY_EXHAUSTED"
        stats = ns.stats()
        found = ns.search(0, block[:, :, :64], top_k=4, streams=["s"])
        exact = np.sort(block[0, 0, :64] @ block[0, 0].T, axis=1)[:, ::-1][:, :4]
        np.testing.assert_allclose(found.scores[0, 0], exact, rtol=1e-4)
        assert stats.entries % BLOCK == 0
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, unlimited)
        ns.add(0, block, block, streams=["more"])
        assert ns.stats().entries == stats.entries + BLOCK
        assert "error id" not in server.log
