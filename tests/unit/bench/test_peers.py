"""A peer behind its adapter: a real process, which here has the test's own Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recollect_bench import datasets
from recollect_bench.peers import installed
from recollect_bench.peers.installed import PEERS, reason_absent
from recollect_bench.peers.process import ADAPTERS, Peer, PeerError
from recollect_bench.truth import recall

DATA = datasets.make("sphere", entries=300, queries=20, dim=8, value_dim=3)
HELD = 200


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment for plain FAISS, which the test has installed anyway, and none for the others."""
    python = tmp_path / "faiss" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(installed, "HOME", tmp_path)
    return tmp_path


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    """FAISS with some entries."""
    with Peer("faiss", dim=8, value_dim=3, capacity=250, top_k=5) as opened:
        opened.add(DATA.keys[:HELD], DATA.values[:HELD])
        yield opened


def test_a_peer_answers_in_its_own_process(peer: Peer) -> None:
    """What a peer found is garbled on its way, or its time is not its own."""
    seconds, ids = peer.search(DATA.queries)
    assert ids.shape == (20, 5)
    assert recall(ids, DATA.keys[:HELD], DATA.queries) == 1
    assert seconds > 0
    assert peer.tune(DATA.keys[:HELD], DATA.queries) == 1


def test_the_streaming_job_adds_searches_and_evicts(peer: Peer) -> None:
    """A peer is judged by entries that it has not got yet, or no longer has; or its values are others'."""
    for number in range(2):
        part = slice(HELD + 50 * number, HELD + 50 * (number + 1))
        step = peer.step(DATA.keys[part], DATA.values[part], DATA.queries, evict=50)
        held = slice(50 * number, part.stop)
        assert recall(step.ids, DATA.keys[held], DATA.queries, first_id=held.start) == 1
        np.testing.assert_array_equal(step.values, DATA.values[step.ids])
        assert step.seconds == pytest.approx(sum(step.parts_s.values()))


def test_what_a_peer_cannot_do_is_said(peer: Peer) -> None:
    """A peer's failure ends the benchmark without its reason, or the peer is lost for what it can do."""
    with pytest.raises(PeerError, match="faiss: "):
        peer.search(DATA.keys[:, :3])
    assert peer.search(DATA.queries)[1].shape == (20, 5)


def test_a_peer_that_does_not_open_is_said(home: Path) -> None:
    """A broken environment hangs the benchmark."""
    (home / "faiss" / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(PeerError, match=r"faiss ended \(exit status 3\)"):
        Peer("faiss", dim=8, capacity=10, top_k=1)


def test_absent_peers_have_a_reason(home: Path) -> None:
    """A peer that could not be installed is dropped without a word."""
    (home / "usearch.log").write_text("ERROR: something\nERROR: no wheel for this Python\n")
    assert reason_absent("faiss") is None
    assert reason_absent("hnswlib") == "not installed: run make bench-peers"
    assert reason_absent("usearch") == "could not be installed: ERROR: no wheel for this Python"


def test_every_peer_has_an_adapter_and_exact_versions() -> None:
    """A peer is listed that nothing can run, or two runs measure different versions of it."""
    for name, kind in PEERS.items():
        assert (ADAPTERS / f"{name}_adapter.py").is_file()
        assert all("==" in package for package in (*kind.packages, *kind.bare))
