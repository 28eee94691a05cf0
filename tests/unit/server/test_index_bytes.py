"""What an index takes is counted where keys and values are."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from recollect_server.domain.bank import Bank
from recollect_server.domain.eviction import ByIds, Oldest
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine import kernels, upkeep
from recollect_server.engine.torch_device import TorchDevice
from recollect_server.engine.torch_rule import IndexRule
from tests.unit.server.indexed_bank import DIM, IndexedBank, Mixture

compiled = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

SLOT_BYTES, LIST_BYTES = 4, 2
"""What an entry needs at least: its place in a list, and the list's name."""


def stored_bytes(bank: Bank) -> int:
    """Of the buffers for keys and values."""
    return bank.ring.allocated * bank.spec.entry_bytes


@compiled
def test_an_index_is_counted() -> None:
    """A tenant with an index stores more than its quota says, or bytes stay counted when it is gone."""
    made, bank, usage = Mixture(), IndexedBank(8000), Usage()
    bank.bank = Bank(bank.bank.spec, bank.store, first_sequence=0, usage=usage)

    def check(*, at_least: int, at_most: int) -> None:
        index_bytes = usage.bytes - stored_bytes(bank.bank)
        assert usage.bytes == bank.bank.allocated_bytes
        assert at_least <= index_bytes <= at_most

    bank.add(bank.draw(made, 3000))
    check(at_least=0, at_most=0)
    bank.trained(made)
    lists = bank.bank.index_state.lists
    least = 3000 * (SLOT_BYTES + LIST_BYTES) + lists * DIM * 4
    check(at_least=least, at_most=2 * least + 100 * lists)
    bank.add(bank.draw(made, 5000))  # the buffers grow, and the lists with them
    bank.read(made)
    lists = bank.bank.index_state.lists
    least = 8000 * (SLOT_BYTES + LIST_BYTES) + lists * DIM * 4
    check(at_least=least, at_most=2 * least + 100 * lists)
    bank.evict(ByIds(bank.ids[1000:6000:2]))
    check(at_least=8000 * LIST_BYTES, at_most=2 * least + 100 * lists)
    bank.evict(Oldest(1500))
    bank.bank.clear()
    assert (usage.bytes, usage.entries) == (0, 0)


@compiled
def test_a_sample_is_counted_while_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many banks that are indexed at once take much more than anybody counts."""
    monkeypatch.setattr(upkeep, "SLICE", 1)
    made, bank, seen = Mixture(), IndexedBank(3000), [0]
    bank.add(bank.draw(made, 3000))
    for _ in range(2):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
    while bank.bank.upkeep_work:
        run_through(bank.bank.upkeep())
        seen.append(bank.bank.allocated_bytes - stored_bytes(bank.bank))
    assert bank.answers == "ivf"
    assert max(seen) >= 3000 * DIM * 4
    assert seen[-1] < 3000 * DIM * 4


@compiled
def test_making_an_index_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and drafts stay in memory when the index that was made of them is there, or was given up."""
    monkeypatch.setattr(upkeep, "STEP", upkeep.STEP // 64)
    made, bank = Mixture(), IndexedBank(20_000)
    bank.add(bank.draw(made, 20_000))
    tracemalloc.start()
    try:
        bank.trained(made)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What was made in the lists is the compiled library's, and not seen here.
    assert held < bank.store.index_bytes + 200_000


def test_an_index_of_a_gpu_is_counted() -> None:
    """A tenant whose banks are on a GPU stores more there than its quota says."""
    made, usage = Mixture(), Usage()
    rule = IndexRule(index="ivf", recall=0.9, entries_min=1000, auto_entries_min=1000)
    spec = NamespaceSpec((0,), 1, DIM, DIM, 4000, Dtype.FLOAT32, IndexChoice.IVF, 0.9)
    bank = Bank(spec, TorchDevice("cpu", index=rule).store(spec), first_sequence=0, usage=usage)
    keys = made.draw(3000)
    bank.add(keys, keys, now_s=0.0)
    for _ in range(60):
        run_through(bank.search(made.draw(64), 10))
    assert bank.index_state.index == "ivf"
    assert usage.bytes - stored_bytes(bank) >= 3000 * (SLOT_BYTES + LIST_BYTES)
    bank.clear()
    assert usage.bytes == 0
