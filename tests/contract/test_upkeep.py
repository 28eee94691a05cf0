"""Inverted files over the wire: that a namespace gets one by being read, and what an operator sees of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

import recollect
from recollect_server.application import debt
from recollect_server.application.dispatch import Dispatcher
from recollect_server.domain.arrays import Raw
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels, upkeep
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.kmeans import centroids_of
from tests.clients import blocking_client
from tests.installation import Installation
from tests.server_process import ServerProcess

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

ENTRIES, DIM, CENTRES = 6000, 16, 50
Float = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Result = TypeVar("Result")


class Mixture:
    """Keys around some centres."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self._centres = self.rng.standard_normal((CENTRES, DIM))

    def draw(self, size: int) -> Float:
        """[1, 1, n, D]."""
        noise = 0.3 * self.rng.standard_normal((size, DIM))
        keys: Float = (self._centres[self.rng.integers(CENTRES, size=size)] + noise).astype(np.float32)
        return keys[None, None]


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[recollect.Client]:
    """Of a server in this process."""
    url = "embedded://"
    with blocking_client(url) if request.param == "async" else recollect.connect(url) as made:
        yield made


def filled(
    client: recollect.Client, keys: Float, *, name: str = "n", capacity: int = 2 * ENTRIES
) -> recollect.Namespace:
    """A namespace whose stream "s" holds the keys."""
    ns = client.create_namespace(
        name,
        layers=[0],
        heads=1,
        key_dim=DIM,
        value_dim=DIM,
        capacity=capacity,
        dtype="float32",
        index="ivf",
        recall=0.9,
    )
    for first in range(0, keys.shape[2], 2000):
        part = keys[:, :, first : first + 2000]
        ns.add(0, part, part, streams=["s"])
    return ns


def read_until_indexed(ns: recollect.Namespace, made: Mixture) -> recollect.BankStats:
    """Reads until lists answer, and then until their recall was looked at."""
    for _ in range(600):
        ns.search(0, made.draw(64), top_k=10, streams=["s"])
        bank = ns.stats(streams=["s"]).banks[0]
        if bank.index == "ivf" and bank.sampled:
            return bank
    raise AssertionError(f"still {ns.stats(streams=['s']).banks[0]}")


def recall_of(ns: recollect.Namespace, made: Mixture) -> float:
    """Against exact search."""
    queries = made.draw(200)
    found = ns.search(0, queries, top_k=10, streams=["s"])
    true = ns.search(0, queries, top_k=10, streams=["s"], exact=True)
    both = [np.isin(a, b).mean() for a, b in zip(found.ids[0, 0], true.ids[0, 0], strict=True)]
    return float(np.mean(both))


def test_only_brief_work_is_done_where_calls_come_in(
    client: recollect.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fast device lists are trained where calls come in; or what is brief wakes another thread."""
    threads: dict[str, set[str]] = {"train": set(), "assign": set()}

    def noting(what: str, work: Callable[..., Result]) -> Callable[..., Result]:
        def noted(*arguments: object, **named: object) -> Result:
            threads[what].add(threading.current_thread().name)
            return work(*arguments, **named)

        return noted

    monkeypatch.setattr(Dispatcher, "_work_in", lambda *_: 10**15)
    monkeypatch.setattr("recollect_server.engine.upkeep.centroids_of", noting("train", centroids_of))
    made = Mixture()
    ns = filled(client, made.draw(ENTRIES))
    read_until_indexed(ns, made)
    assert threads["train"] == {"recollect-device"}
    monkeypatch.setattr(InvertedFile, "assign", noting("assign", InvertedFile.assign))
    for _ in range(50):  # the device may have something else to do at first
        more = made.draw(600)
        ns.add(0, more, more, streams=["s"])
        ns.stats()  # in the same lane: after it
        if "recollect-embedded" in threads["assign"]:
            break
    assert "recollect-embedded" in threads["assign"]
    assert threads["train"] == {"recollect-device"}


def test_reads_make_an_index(client: recollect.Client) -> None:
    """A namespace that asks for an inverted file is searched exactly for ever, or finds too little by it."""
    made = Mixture()
    keys = made.draw(ENTRIES)
    ns = filled(client, keys)
    assert ns.stats(streams=["s"]).banks[0].index == "exact"
    bank = read_until_indexed(ns, made)
    assert 0 < bank.probes < bank.lists
    assert recall_of(ns, made) >= 0.87
    more = made.draw(1000)
    ns.add(0, more, more, streams=["s"])
    assert recall_of(ns, made) >= 0.87
    ns.evict(streams=["s"], oldest=3000)
    assert recall_of(ns, made) >= 0.87
    queries = 9 * more[:, :, :20]
    real = queries[0, 0].astype(np.float64) @ np.concatenate([keys[0, 0, 3000:], more[0, 0]]).T
    found = ns.search(0, queries, top_k=1, streams=["s"], exact=True)
    np.testing.assert_allclose(found.scores[0, 0, :, 0], real.max(axis=1), rtol=1e-4)


def test_work_waits_until_calls_have_had_their_share(
    client: recollect.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that calls all the time waits for background work in each of its calls."""
    monkeypatch.setattr(upkeep, "STEP", 500_000)
    monkeypatch.setattr(upkeep, "SLICE", 8_000_000)
    monkeypatch.setattr("recollect_server.application.upkeep.BRIEF", 1)
    monkeypatch.setattr(debt, "IDLE_S", 3600.0)
    made = Mixture()
    ns = filled(client, made.draw(ENTRIES))
    for _ in range(4):
        ns.search(0, made.draw(64), top_k=10, streams=["s"])
    time.sleep(0.5)  # time for all of it
    assert "being made" in ns.stats(streams=["s"]).banks[0].reason, "it goes on though nobody has called"
    for _ in range(5000):
        ns.search(0, made.draw(64), top_k=10, streams=["s"])
        if ns.stats(streams=["s"]).banks[0].index == "ivf":
            return
    raise AssertionError("calls do not pay for it")


def test_work_goes_on_where_no_calls_come(client: recollect.Client) -> None:
    """Lists of a bank that is asked a few times are never made."""
    made = Mixture()
    ns = filled(client, made.draw(ENTRIES))
    for _ in range(4):
        ns.search(0, made.draw(64), top_k=10, streams=["s"])
    for _ in range(100):
        if ns.stats(streams=["s"]).banks[0].index == "ivf":
            return
        time.sleep(0.1)
    raise AssertionError(ns.stats(streams=["s"]).banks[0])


def test_a_namespace_that_goes_while_work_is_queued(client: recollect.Client) -> None:
    """Background work of a namespace that is gone fails, or works on the next one of its name."""
    made = Mixture()
    keys = made.draw(3000)
    for round_number in range(6):
        ns = filled(client, keys + np.float32(round_number))
        for _ in range(1 + 2 * round_number):
            ns.search(0, made.draw(64), top_k=10, streams=["s"])
        if round_number % 2:
            ns.evict(streams=["s"], all=True)
        client.delete_namespace("n")
    ns = filled(client, keys)
    read_until_indexed(ns, made)
    assert recall_of(ns, made) >= 0.87


def test_a_server_ends_while_work_is_queued() -> None:
    """A server that drains waits for background work that only makes more of itself."""
    made = Mixture()
    with recollect.connect("embedded://") as client:
        ns = filled(client, made.draw(ENTRIES))
        for _ in range(10):
            ns.search(0, made.draw(64), top_k=10, streams=["s"])


def test_an_operator_sees_recall(tmp_path: Path) -> None:
    """A recall that is too low is seen by nobody, or a tenant's counts as another's."""
    made, metrics_key = Mixture(), "k" * 32
    environment = {"RECOLLECT_ADMIN__METRICS_KEY": metrics_key}
    with ServerProcess(data_dir=tmp_path, environment=environment) as server:
        with Installation(server) as installation:
            token, _ = installation.tenant("reader"), installation.tenant("other")
            with recollect.connect(server.tcp_url, token=token) as client:
                ns = filled(client, made.draw(ENTRIES))
                read_until_indexed(ns, made)
                seen = installation.admin("GET", "/metrics", token=metrics_key).text
                bank = ns.stats(streams=["s"]).banks[0]
        server.terminate()
        assert server.wait() == 0
        assert "upkeep of an index failed" not in server.log
    counted = {
        tenant: float(value)
        for tenant, value in re.findall(
            r'recollect_recall_sampled_queries_total\{tenant="(\w+)"\} (\S+)', seen
        )
    }
    assert 0 < counted["reader"] <= bank.sampled
    assert not counted.get("other")


def test_an_index_counts_in_quotas(tmp_path: Path) -> None:
    """A tenant fills the machine with indexes that no quota knows of, or cannot even overwrite."""
    made = Mixture()
    stored = ENTRIES * 2 * DIM * 4 + 4096
    with ServerProcess(data_dir=tmp_path) as server, Installation(server) as installation:
        token = installation.tenant("small", bytes_max=stored + 1000)
        with recollect.connect(server.tcp_url, token=token, retries=0) as client:
            ns = filled(client, made.draw(ENTRIES), capacity=ENTRIES)
            assert ns.stats().bytes == stored
            bank = read_until_indexed(ns, made)
            assert stored + 1000 < bank.bytes == ns.stats().bytes < 1.5 * stored
            more = made.draw(100)
            ns.add(0, more, more, streams=["s"])  # overwrites
            with pytest.raises(recollect.ResourceExhaustedError, match="in use") as refused:
                ns.add(0, more, more, streams=["t"])
            assert refused.value.reason == "QUOTA_BYTES"
            ns.evict(streams=["s"], all=True)
            assert ns.stats().bytes == 0
            ns.add(0, more, more, streams=["t"])


def test_work_that_fails_is_not_begun_again_at_once(
    client: recollect.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of an index fills the log and the device with each call, or calls fail with it."""

    def fail(self: InvertedFile, keys: Raw, dtype: Dtype, *, step: int) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(InvertedFile, "assign", fail)
    made = Mixture()
    keys = made.draw(ENTRIES)
    ns = filled(client, keys)
    for _ in range(60):
        queries = made.draw(20)
        found = ns.search(0, queries, top_k=5, streams=["s"])
        best = np.sort(queries[0, 0] @ keys[0, 0].T, axis=1)[:, ::-1][:, :5]
        np.testing.assert_allclose(found.scores[0, 0], best, rtol=1e-4)
    failed = [each for each in caplog.records if "upkeep of an index failed" in each.message]
    assert len(failed) == 1
    assert "being made" not in ns.stats(streams=["s"]).banks[0].reason  # nor is it held on to
