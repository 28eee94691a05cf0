"""What a bank with an inverted file answers: no entry that is gone, and as many of the best as was asked."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from recollect_server.domain.arrays import DenseArray, Int64, from_float32
from recollect_server.domain.eviction import ByIds, Everything, Oldest
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import Steps, run_through
from recollect_server.engine import ivf, kernels, upkeep
from recollect_server.engine.kernel_store import KernelStore
from tests.unit.server.indexed_bank import DIM, IndexedBank, Mixture

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

SAMPLED = 0.02
"""By so much may the recall of some hundred queries differ from that of all."""


def full(made: Mixture, entries: int) -> IndexedBank:
    """A bank of so many entries of float32, full."""
    bank = IndexedBank(entries)
    bank.add(bank.draw(made, entries))
    return bank


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_recall_is_what_was_asked(dtype: Dtype, recall: float) -> None:
    """Reads find fewer of the true neighbours than the namespace was made for."""
    made, bank = Mixture(), IndexedBank(4000, recall=recall, heads=2, dtype=dtype)
    bank.add(bank.draw(made, 4000))
    assert bank.check(bank.draw(made, 50)) == 1.0  # so far by exact search
    bank.trained(made)
    for top_k in (1, 10, 30):
        assert bank.check(bank.draw(made, 300), top_k) >= recall - SAMPLED
    assert bank.check(bank.draw(made, 1), 10) >= 0.5
    bank.check(bank.draw(made, 50), exact=True)
    state = bank.bank.index_state
    assert 0 < state.probes <= state.lists // 2
    assert state.sampled > 0
    assert state.recall is not None
    assert state.recall >= recall - 3 * SAMPLED


def test_it_does_less_than_exact_search() -> None:
    """An inverted file that looks at everything is an expensive way to search exactly."""
    made = Mixture()
    bank = full(made, 8000).trained(made)
    state = bank.bank.index_state
    assert state.probes < state.lists / 4


@pytest.mark.parametrize("exact", [False, True])
def test_one_step_or_many(exact: bool) -> None:
    """A search in lists that is cut, because others wait, answers otherwise than a whole one."""
    made = Mixture()
    bank = full(made, 4000).trained(made)
    bank.add(bank.draw(made, 200))  # pending
    for queries in (1, 3, 70):
        q = bank.draw(made, queries)
        whole = run_through(bank.bank.search(q, 10, exact=exact))
        steps = bank.bank.search(q, 10, exact=exact)
        next(steps)
        done = 0
        try:
            while True:
                steps.send(20_000)
                done += 1
        except StopIteration as finished:
            cut = finished.value
        assert done > 1
        np.testing.assert_array_equal(cut.slots, whole.slots)
        np.testing.assert_allclose(cut.scores, whole.scores, rtol=1e-5, atol=1e-5)


def test_what_was_added_is_found_at_once() -> None:
    """A memory does not know what it has just been told until some background work was done."""
    made, other = Mixture(), Mixture(1)
    bank = IndexedBank(8000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    for count in (1, 40, 300):
        new = bank.draw(other, count)
        new = DenseArray(new.raw * np.float32(5), new.dtype)  # each is its own nearest
        bank.add(new)
        assert bank.check(new, 1) == 1.0
        found = bank.bank.ids(run_through(bank.bank.search(new, 1)).slots)
        assert np.isin(found, bank.ids[4000:]).all()


def test_recall_is_held_while_a_ring_goes_round() -> None:
    """After overwriting, entries are missing, found twice, or found though they are gone."""
    made = Mixture()
    bank = full(made, 3000).trained(made)
    for count in (1, 255, 257, 700, 1500, 2999, 3000, 4000):
        bank.add(bank.draw(made, count))
        assert bank.check(bank.draw(made, 100)) >= 0.9
        bank.check(bank.draw(made, 5), exact=True)
        bank.upkeep()
        assert bank.check(bank.draw(made, 100)) >= 0.9
    assert bank.answers == "ivf"


def test_eviction() -> None:
    """Evicted entries are found, or entries that moved to another slot are not."""
    made = Mixture()
    bank = full(made, 4000).trained(made)
    bank.evict(Oldest(700))
    assert bank.check(bank.draw(made, 100)) >= 0.9
    bank.evict(ByIds(bank.ids[100:2000:3]))
    assert bank.check(bank.draw(made, 100)) >= 0.9
    bank.add(bank.draw(made, 1500))  # goes round
    bank.evict(ByIds(bank.ids[::7]))
    assert bank.check(bank.draw(made, 100)) >= 0.9
    bank.upkeep()
    assert bank.check(bank.draw(made, 100)) >= 0.9
    bank.check(bank.draw(made, 20), exact=True)


@pytest.mark.parametrize("more", [500, 3000, 9000])
def test_evicting_everything_and_beginning_anew(more: int) -> None:
    """Lists of a bank that was emptied name slots that are not there, or that hold something else now."""
    made = Mixture()
    bank = IndexedBank(20_000)
    bank.add(bank.draw(made, 3000))
    bank.trained(made)
    bank.evict(Everything())
    assert bank.check(bank.draw(made, 3)) == 1.0
    bank.upkeep()
    bank.add(bank.draw(made, more))  # at once, so that the buffer grows while it is empty
    assert bank.check(bank.draw(made, 50)) >= 0.9
    bank.read(made)
    assert bank.check(bank.draw(made, 200)) >= 0.95 - SAMPLED


@pytest.mark.parametrize("gone", [0, 300])
def test_growth(gone: int) -> None:
    """Lists name the slots that entries had in a smaller buffer, or stay as few as they were."""
    made, bank = Mixture(), IndexedBank(20_000)
    bank.add(bank.draw(made, 2000))
    bank.trained(made)
    bank.evict(Oldest(gone))  # then those that stay move to the front
    lists = bank.bank.index_state.lists
    for count in (100, 3000, 6000):
        bank.add(bank.draw(made, count))
        assert bank.check(bank.draw(made, 50)) >= 0.9
        bank.upkeep()
        assert bank.answers == "ivf"
        assert bank.check(bank.draw(made, 50)) >= 0.9
    bank.read(made)
    assert bank.bank.index_state.lists > lists
    assert bank.check(bank.draw(made, 200)) >= 0.95 - SAMPLED


@pytest.mark.parametrize("moves", ["grows", "is compacted"])
def test_lists_that_cannot_follow_are_given_up(moves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ends while lists follow their entries: some say from then on what lay there before."""
    made, bank = Mixture(), IndexedBank(8000, heads=2)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    bank.evict(Oldest(10))  # so that to grow is to move, too
    moving, followed = ivf.InvertedFile.moving, [0]

    def full(file: ivf.InvertedFile, order: Int64 | None, slots: int, *, head: int) -> Steps[None]:
        followed[0] += 1
        if followed[0] == 2:
            raise MemoryError("for the test")
        return moving(file, order, slots, head=head)

    monkeypatch.setattr(ivf.InvertedFile, "moving", full)
    if moves == "grows":
        bank.add(bank.draw(made, 2000))
    else:
        bank.evict(ByIds(bank.ids[100:2000:2]))
    assert followed == [2]
    assert bank.answers == "exact"
    assert bank.check(bank.draw(made, 50)) == 1.0
    bank.trained(made)  # anew
    assert bank.check(bank.draw(made, 400)) >= 0.95 - SAMPLED


def test_recall_of_one_is_exact() -> None:
    """Somebody who wants every neighbour gets nearly every one."""
    made, bank = Mixture(), IndexedBank(3000, recall=1.0)
    bank.add(bank.draw(made, 3000))
    bank.read(made, 10)
    assert bank.answers == "exact"
    assert "1.0" in bank.bank.index_state.reason
    assert bank.check(bank.draw(made, 100)) == 1.0


def test_exact_has_no_index() -> None:
    """A namespace that wants none spends memory and work on one."""
    made, bank = Mixture(), IndexedBank(3000, index=IndexChoice.EXACT)
    bank.add(bank.draw(made, 3000))
    run_through(bank.bank.search(bank.draw(made, 64), 10))
    assert not bank.bank.upkeep_work
    assert not run_through(bank.bank.upkeep())
    assert bank.bank.index_state.reason == ""
    assert bank.check(bank.draw(made, 100)) == 1.0


def test_few_entries_are_searched_exactly() -> None:
    """Lists are made of what is searched in no time."""
    made, bank = Mixture(), IndexedBank(1000)
    bank.add(bank.draw(made, 1000))
    bank.read(made, 10)
    assert bank.answers == "exact"
    assert bank.bank.index_state.reason
    assert bank.check(bank.draw(made, 50)) == 1.0


def keys_of(what: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((1, 3000, DIM)).astype(np.float32)
    if what == "on a sphere":
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    elif what == "all equal":
        keys[:] = keys[:, :1]
    elif what == "all zero":
        keys[:] = 0
    elif what == "a few, many times":
        keys[:] = keys[:, np.arange(3000) % 7]
    elif what == "half zero":
        keys[:, ::2] = 0
    elif what == "of all sizes":
        keys *= np.exp(3 * rng.standard_normal((3000, 1))).astype(np.float32)
    return keys


@pytest.mark.parametrize(
    "what",
    ["on a sphere", "all equal", "all zero", "a few, many times", "half zero", "of all sizes"],
)
def test_keys_that_lists_are_bad_for(what: str) -> None:
    """Keys without clusters, or all in one, are not found, and nothing says that lists are of no use."""
    rng = np.random.default_rng(1)
    keys, bank = keys_of(what), IndexedBank(3000)
    bank.add(from_float32(keys, Dtype.FLOAT32))

    def queries(count: int) -> DenseArray:
        return from_float32(rng.standard_normal((1, count, DIM)).astype(np.float32), Dtype.FLOAT32)

    for _ in range(40):
        run_through(bank.bank.search(queries(64), 10))
        bank.upkeep()
    recall = bank.check(queries(200))
    if bank.answers == "exact":
        assert recall == 1.0
        assert bank.bank.index_state.reason
    else:
        assert recall >= 0.95 - SAMPLED
    bank.check(queries(5), exact=True)
    bank.add(from_float32(keys[:, :1000], Dtype.FLOAT32))
    bank.upkeep()
    assert bank.check(queries(50)) >= 0.85


def test_queries_without_a_direction() -> None:
    """A query of zeroes, to which all are alike, finds less than it asked for."""
    made = Mixture()
    bank = full(made, 3000).trained(made)
    zero = from_float32(np.zeros((1, 4, DIM), np.float32), Dtype.FLOAT32)
    assert bank.check(zero, 10) == 1.0


def test_attend_uses_what_search_finds() -> None:
    """An attend is over other entries than the search of the same queries finds."""
    made = Mixture()
    bank = full(made, 4000).trained(made)
    q = bank.draw(made, 60)
    hits = run_through(bank.bank.search(q, 8))
    out = run_through(bank.bank.attend(q, 8, scale=0.3))
    np.testing.assert_array_equal(out.slots, hits.slots)
    weights = np.exp(0.3 * hits.scores.astype(np.float64))
    lse = np.log(weights.sum(axis=-1))
    np.testing.assert_allclose(out.lse, lse, rtol=1e-5)
    values = bank.bank.values(hits.slots).float32().astype(np.float64)
    wanted = np.einsum("htk,htkd->htd", weights / weights.sum(axis=-1, keepdims=True), values)
    np.testing.assert_allclose(out.output, wanted, atol=1e-4)


def test_auto_searches_exactly_what_is_faster_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are searched though that takes longer."""
    monkeypatch.setitem(upkeep.ENTRIES_MIN, IndexChoice.AUTO, 1024)
    monkeypatch.setattr(ivf, "CALL", 10**9)
    made, bank = Mixture(), IndexedBank(2000, index=IndexChoice.AUTO)
    bank.add(bank.draw(made, 2000))
    bank.read(made, 10)
    assert bank.answers == "exact"
    assert "faster" in bank.bank.index_state.reason
    assert bank.check(bank.draw(made, 100)) == 1.0
    assert not bank.bank.upkeep_work


@pytest.mark.parametrize("queries", [1, 64, 512])
def test_each_number_of_queries_has_its_own_choice(monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    """Lists that are worth it for few queries only are given up for all, or asked by all."""
    monkeypatch.setitem(upkeep.ENTRIES_MIN, IndexChoice.AUTO, 1024)
    monkeypatch.setattr(ivf, "CALL", 0)
    monkeypatch.setattr(ivf, "PAIR", 2 * 10**5)
    made, bank = Mixture(), IndexedBank(8000, index=IndexChoice.AUTO)
    bank.add(bank.draw(made, 8000))
    bank.read(made, 10)
    assert bank.answers == "ivf"
    index = bank.store._index
    assert index is not None
    assert (index.file_for(0, queries, 8000) is None) == (queries > 1)
    assert bank.check(bank.draw(made, queries)) >= (1.0 if queries > 1 else 0.5)


def test_memory_of_an_entry() -> None:
    """An index takes as much memory as what it is of."""
    rng = np.random.default_rng(0)
    entries, dim = 65_536, 64
    spec = NamespaceSpec((0,), 1, dim, 1, entries, Dtype.FLOAT32, IndexChoice.IVF, 0.9)
    centres = rng.standard_normal((200, dim)).astype(np.float32)
    keys = centres[rng.integers(200, size=entries)][None] + np.float32(0.2)
    keys += 0.2 * rng.standard_normal(keys.shape, dtype=np.float32)
    store = KernelStore(spec)
    run_through(store.growing(entries, []))
    values = np.zeros((1, entries, 1), np.float32)
    whole = slice(0, entries)
    store.write([Write(whole, whole)], *(from_float32(a, Dtype.FLOAT32) for a in (keys, values)))
    for first in range(0, 1024, 64):
        run_through(
            store.search(from_float32(keys[:, first : first + 64].copy(), Dtype.FLOAT32), [whole], 10)
        )
    while store.upkeep_work([whole]):
        run_through(store.upkeep([whole]))
    assert store.index_state.index == "ivf"
    assert store._index is not None
    assert store._index.bytes / entries <= 16


def test_an_outgrown_buffer_is_freed() -> None:
    """Background work holds on to the keys that it last saw, which may be half of a server's memory."""
    made, bank = Mixture(), IndexedBank(8000)
    bank.add(bank.draw(made, 2000))
    bank.read(made)
    assert bank.answers == "ivf"
    outgrown = weakref.ref(bank.store._keys)
    bank.add(bank.draw(made, 6000))
    assert outgrown() is None


def test_a_bank_that_shrinks_is_searched_exactly() -> None:
    """Of what eviction left so small that nothing measures its recall, lists go on missing entries."""
    made = Mixture()
    bank = full(made, 3000).trained(made)
    bank.evict(Oldest(2500))
    assert bank.check(bank.draw(made, 300)) == 1.0
    bank.add(bank.draw(made, 2500))
    bank.read(made)
    assert bank.answers == "ivf"
    assert bank.check(bank.draw(made, 300)) >= 0.95 - SAMPLED
