"""The inverted file of a GPU's banks, on CPU tensors: what it answers, and that it says when it does not."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import pytest
import torch

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.bank import Bank
from recollect_server.domain.eviction import ByIds, Oldest
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine import torch_index
from recollect_server.engine.torch_device import TorchDevice, TorchStore
from recollect_server.engine.torch_lists import Lists
from recollect_server.engine.torch_rule import IndexRule

HEADS, DIM, CENTRES = 2, 16, 60
Float = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def finds_no_memory(*_: object, **__: object) -> NoReturn:
    """In place of what takes some, on a card that is full."""
    raise torch.OutOfMemoryError("CUDA out of memory")


class Mixture:
    """Keys around some centres, which can be moved."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.centres = self.rng.standard_normal((CENTRES, DIM))

    def draw(self, size: int) -> DenseArray:
        at = self.rng.integers(CENTRES, size=(HEADS, size))
        noise = self.rng.standard_normal((HEADS, size, DIM))
        return from_float32((self.centres[at] + 0.3 * noise).astype(np.float32), Dtype.FLOAT32)


def bank_of(capacity: int, *, recall: float = 0.95, index: str = "ivf") -> Bank:
    """An empty bank, indexed from 1,000 entries on."""
    rule = IndexRule(index=index, recall=recall, entries_min=1000, auto_entries_min=1000)
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=capacity, dtype=Dtype.FLOAT32)
    store = TorchDevice("cpu", index=rule).store(spec)
    return Bank(spec, store, first_sequence=0, usage=Usage())


def add(bank: Bank, keys: DenseArray) -> None:
    bank.add(keys, keys, now_s=0.0)


def recall_of(bank: Bank, queries: DenseArray, top_k: int = 10) -> float:
    """Of an ordinary search against float64, tie-aware; what is found must be live and really score so."""
    hits = run_through(bank.search(queries, top_k))
    slots = np.concatenate([np.arange(s.start, s.stop) for s in bank.ring.segments()])
    keys = bank._store.keys(np.tile(slots, (HEADS, 1, 1))).float32()[:, 0].astype(np.float64)
    exact = np.einsum("htd,hnd->htn", queries.float32(), keys)
    present = hits.slots >= 0
    assert np.isin(hits.slots[present], slots).all()
    ordered = np.sort(np.where(present, hits.slots, -1 - np.arange(top_k)), axis=-1)
    assert (np.diff(ordered, axis=-1) > 0).all(), "the same slot twice"
    by_slot = np.full((*exact.shape[:2], bank.ring.allocated), -np.inf)
    by_slot[:, :, slots] = exact
    real = np.take_along_axis(by_slot, hits.slots.clip(min=0), axis=-1)
    np.testing.assert_allclose(hits.scores[present], real[present], atol=1e-3)
    least = np.sort(exact, axis=-1)[..., -min(top_k, slots.size)]
    return float((np.where(present, real, -np.inf) >= least[..., None] - 1e-4).mean())


def trained(bank: Bank, made: Mixture) -> None:
    """Reads until the inverted file answers."""
    for _ in range(200):
        if bank.index_state.index == "ivf":
            return
        run_through(bank.search(made.draw(64), 10))
    raise AssertionError(f"still {bank.index_state}")


def test_recall_is_held_while_a_ring_goes_round() -> None:
    """After adds and evictions in place, entries are missing, stale, or found twice."""
    made, bank = Mixture(), bank_of(4000)
    add(bank, made.draw(4000))
    trained(bank, made)
    for _ in range(12):
        add(bank, made.draw(700))
        assert recall_of(bank, made.draw(100)) >= 0.92
    assert bank.index_state.index == "ivf"
    assert bank.index_state.sampled > 0
    bank.evict(Oldest(1500), now_s=0.0)
    assert recall_of(bank, made.draw(100)) >= 0.92
    add(bank, made.draw(900))
    assert recall_of(bank, made.draw(100)) >= 0.92
    assert bank.index_state.index == "ivf"


def test_growth_and_compaction_keep_the_lists() -> None:
    """Lists name the slots that entries had before they moved."""
    made, bank = Mixture(), bank_of(8000)
    add(bank, made.draw(2000))
    trained(bank, made)
    add(bank, made.draw(1500))  # a larger buffer
    assert bank.ring.allocated > 2000
    assert recall_of(bank, made.draw(100)) >= 0.92
    bank.evict(ByIds(np.arange(100, 1500, 3)), now_s=0.0)
    assert recall_of(bank, made.draw(100)) >= 0.92
    assert bank.index_state.index == "ivf"


def test_entries_that_come_while_it_is_trained() -> None:
    """What was written between two pieces of training is in no list."""
    made, bank = Mixture(), bank_of(3000)
    add(bank, made.draw(3000))
    for _ in range(60):
        run_through(bank.search(made.draw(1), 5))
        add(bank, made.draw(37))
        if bank.index_state.index == "ivf":
            break
    trained(bank, made)
    for _ in range(20):  # the first probes were found with one query: samples correct them
        run_through(bank.search(made.draw(64), 10))
    assert recall_of(bank, made.draw(100)) >= 0.92


def test_drifted_keys() -> None:
    """Keys of another mixture than that of the training are found no more, and nobody notices."""
    made, bank = Mixture(), bank_of(3000)
    add(bank, made.draw(3000))
    trained(bank, made)
    made.centres = made.rng.standard_normal((CENTRES, DIM)) + 2.0
    for _ in range(8):
        add(bank, made.draw(600))
        for _ in range(3):
            run_through(bank.search(made.draw(64), 10))
    assert recall_of(bank, made.draw(200)) >= 0.92


def test_recall_while_keys_change() -> None:
    """The first calls that ask for keys of another text do not find them, and only later ones do."""
    text, other, bank = Mixture(), Mixture(), bank_of(6000)
    other.centres = other.rng.standard_normal((CENTRES, DIM))[::-1]
    add(bank, text.draw(6000))
    trained(bank, text)
    for _ in range(12):
        add(bank, other.draw(600))
        assert recall_of(bank, other.draw(100)) >= 0.93, bank.index_state
    state = bank.index_state
    assert state.index == "ivf" or "changed" in state.reason or "trained" in state.reason


@pytest.mark.parametrize("size", [1, 3, 64, 100])
def test_strangers_go_where_every_query_looks(size: int) -> None:
    """Adds of a token each never tell that a text has changed; or a single odd key does."""
    lists = Lists(torch.eye(4)[None, :2], 1024, head=0)
    known, strange = torch.eye(4)[None, :1], torch.eye(4)[None, 2:3]
    _, fit = lists.add(known.expand(1, 64, 4))
    for odd in (False, True, False, False):
        _, fit = lists.add(strange if odd else known, near=float(fit), least=0.85)
    assert lists.spill.count.item() == 0
    for _ in range(200 // size):
        _, fit = lists.add(strange.expand(1, size, 4), near=float(fit), least=0.85)
    assert lists.spill.count.item() >= 200 - 2 * 64
    assert float(fit) < 0.2


@pytest.mark.parametrize("kind", ["zero", "equal", "sphere"])
def test_what_lists_cannot_hold_is_searched_exactly_and_said(kind: str) -> None:
    """Keys without clusters lose recall in silence."""
    made, bank = Mixture(), bank_of(3000, recall=0.99)
    raw = made.rng.standard_normal((HEADS, 3000, DIM)).astype(np.float32)
    raw = np.zeros_like(raw) if kind == "zero" else np.ones_like(raw) if kind == "equal" else raw
    add(bank, from_float32(raw, Dtype.FLOAT32))
    for _ in range(100):
        run_through(bank.search(made.draw(64), 10))
    state = bank.index_state
    assert recall_of(bank, made.draw(100)) >= 0.97
    assert state.index == "ivf" or state.reason
    if kind == "equal":
        assert state.index == "exact"
        assert "lists" in state.reason


def test_exact_is_exact_and_few_or_no_entries_are_searched_so() -> None:
    """A caller who asks for all neighbours gets most of them."""
    made, bank = Mixture(), bank_of(4000, recall=0.5)
    assert (run_through(bank.search(made.draw(3), 5)).slots == -1).all()
    add(bank, made.draw(500))
    assert recall_of(bank, made.draw(50)) == 1.0
    assert "fewer" in bank.index_state.reason
    add(bank, made.draw(3500))
    trained(bank, made)
    queries = made.draw(200)
    best = run_through(bank.search(queries, 10, exact=True)).scores
    keys = bank._store.keys(np.tile(np.arange(4000), (HEADS, 1, 1))).float32()[:, 0]
    scores = np.einsum("htd,hnd->htn", queries.float32(), keys)
    np.testing.assert_allclose(best, -np.sort(-scores, axis=-1)[..., :10], atol=1e-4)


def test_a_namespace_without_an_index_gets_none() -> None:
    """A namespace that asked for exact search is answered by an inverted file."""
    made, bank = Mixture(), bank_of(3000, index="exact")
    add(bank, made.draw(3000))
    for _ in range(20):
        run_through(bank.search(made.draw(64), 10))
    assert bank.index_state.index == "exact"
    assert not bank.index_state.reason


@pytest.mark.parametrize("index", list(IndexChoice))
def test_the_namespace_says_which_index(index: IndexChoice) -> None:
    """A GPU answers by what it likes, not by what the namespace asked for."""
    made = Mixture()
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=5000, dtype=Dtype.FLOAT32, index=index)
    bank = Bank(spec, TorchDevice("cpu").store(spec), first_sequence=0, usage=Usage())
    add(bank, made.draw(5000))
    for _ in range(60):
        run_through(bank.search(made.draw(64), 10))
    state = bank.index_state
    assert state.index == ("ivf" if index is IndexChoice.IVF else "exact")
    assert ("fewer" in state.reason) == (index is IndexChoice.AUTO)


def test_the_namespace_says_which_recall() -> None:
    """A namespace that asked for nearly all neighbours is searched as little as one that wants half."""
    probes = []
    for recall in (0.5, 0.97):
        made = Mixture()
        spec = NamespaceSpec(
            (0,), HEADS, DIM, DIM, capacity=5000, dtype=Dtype.FLOAT32, index=IndexChoice.IVF, recall=recall
        )
        bank = Bank(spec, TorchDevice("cpu").store(spec), first_sequence=0, usage=Usage())
        add(bank, made.draw(5000))
        trained(bank, made)
        assert recall_of(bank, made.draw(200)) >= recall - 0.03
        probes.append(bank.index_state.probes)
    assert probes[0] < probes[1]


def test_what_a_search_takes_is_told() -> None:
    """Fair queues count a search of few lists like one of all entries, or one of many queries like one."""
    made, bank = Mixture(), bank_of(4000)
    add(bank, made.draw(4000))
    assert bank.search_work(64) == HEADS * work.searched(64, 4000, DIM)
    trained(bank, made)
    assert 0 < bank.search_work(1) < bank.search_work(64) < HEADS * work.searched(64, 4000, DIM)


def test_upkeep_is_done_after_reads() -> None:
    """A dispatcher that offers idle time is kept busy for ever, or waits for steps that never come."""
    made, bank = Mixture(), bank_of(3000)
    add(bank, made.draw(3000))
    store, live = bank._store, [slice(0, 3000)]
    assert isinstance(store, TorchStore)
    assert not store.upkeep_work(live)
    assert not run_through(store.upkeep(live))


@pytest.mark.parametrize("what", ["add", "centroids_of", "recall_of"])
def test_background_work_that_fails_fails_no_read(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read that was answered fails since training found no memory, or half-made lists are kept."""
    made, bank = Mixture(), bank_of(4000)
    add(bank, made.draw(2000))
    with monkeypatch.context() as patch:
        patch.setattr(Lists if what == "add" else torch_index, what, finds_no_memory)
        for _ in range(60):
            assert recall_of(bank, made.draw(64)) == 1.0
        store = bank._store
        assert isinstance(store, TorchStore)
        assert store.index_bytes == 0
        assert "could not be" in bank.index_state.reason
        assert len(caplog.records) == 1
        assert "CUDA out of memory" in caplog.text
    add(bank, made.draw(1500))  # now it is tried again
    trained(bank, made)
    assert recall_of(bank, made.draw(100)) >= 0.92


def test_comparing_that_fails_keeps_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good inverted file is thrown away, or a read fails, since it could not be compared just then."""
    made, bank = Mixture(), bank_of(4000)
    add(bank, made.draw(4000))
    trained(bank, made)
    with monkeypatch.context() as patch:
        patch.setattr(torch_index, "recall_of", finds_no_memory)
        assert recall_of(bank, made.draw(100)) >= 0.92
    assert bank.index_state.index == "ivf"
    for _ in range(5):
        assert recall_of(bank, made.draw(100)) >= 0.92


@pytest.mark.parametrize("what", ["begin_at", "add", "renumbered"])
def test_lists_that_cannot_follow_are_given_up(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An add, an eviction or a read fails since lists found no memory, or what they missed is not found."""
    made, bank = Mixture(), bank_of(4000)
    add(bank, made.draw(4000))
    trained(bank, made)
    with monkeypatch.context() as patch:
        patch.setattr(Lists, what, finds_no_memory)
        add(bank, made.draw(300))
        bank.evict(ByIds(np.arange(500, 3000, 7)), now_s=0.0)
        assert recall_of(bank, made.draw(64)) == 1.0
    assert bank.index_state.index == "exact"
    assert recall_of(bank, made.draw(64)) == 1.0
