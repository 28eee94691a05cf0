"""Evictions from the midst of a bank: what stays moves together, a little at a time, and in place."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.domain import work
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.bank import LOOKED_BYTES, Bank
from recollect_server.domain.eviction import ByIds, Oldest
from recollect_server.domain.ports import Device
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import UNBOUNDED, run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine import codes, cpu_buffers, ivf, kernels
from recollect_server.engine.cpu import CpuDevice
from recollect_server.engine.ranges import placed
from recollect_server.engine.torch_device import TorchDevice
from tests.unit.server.indexed_bank import DIM as KEY_DIM
from tests.unit.server.indexed_bank import IndexedBank, Mixture
from tests.unit.server.use_cases import steps_of

HEADS, DIM, CAPACITY = 2, 3, 3000
SPEC = NamespaceSpec((0,), HEADS, DIM, DIM, CAPACITY, Dtype.FLOAT32)
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


@pytest.fixture(
    params=[CpuDevice(), CpuDevice(compiled=False), TorchDevice("cpu")], ids=["cpu", "faiss", "torch"]
)
def device(request: pytest.FixtureRequest) -> Device:
    """Every kind of store."""
    device: Device = request.param
    return device


def add(bank: Bank, tokens: int) -> None:
    """Each entry is its id, in all that it has."""
    first = bank.ring.next_sequence
    ids = np.arange(first, first + tokens, dtype=np.float32)
    array = from_float32(np.tile(ids[None, :, None], (HEADS, 1, DIM)), Dtype.FLOAT32)
    bank.add(array, array, now_s=0.0)


@pytest.mark.parametrize("budget", [1, 5_000, UNBOUNDED])
@pytest.mark.parametrize("turned", [0, 170, 2900])
def test_entries_move_a_little_at_a_time(device: Device, budget: int, turned: int) -> None:
    """An eviction from a large bank holds up all tenants; or what moves overwrites what has not moved yet."""
    bank = Bank(SPEC, device.store(SPEC), first_sequence=1, usage=Usage())
    for tokens in (CAPACITY, turned, 60):
        add(bank, tokens)
    bank.evict(Oldest(20), now_s=0.0)
    ids = bank.ring.ids()
    gone = ids[np.random.default_rng(turned).random(ids.size) < 0.1]
    steps = steps_of(bank.evicting(ByIds(gone), now_s=0.0), budget)
    assert steps[:2] == [work.BANK, work.moved(LOOKED_BYTES * ids.size)]
    if isinstance(device, CpuDevice):
        each = 2 * work.moved(SPEC.entry_bytes)
        assert max(steps[2:]) <= max(min(budget, each * cpu_buffers.MOVED_TOGETHER), each)
    kept = np.setdiff1d(ids, gone)
    assert bank.ring.ids().tolist() == kept.tolist()
    slots = np.tile(bank.ring.slots_of_ids(kept), (HEADS, 1, 1))
    for fetch in (bank.keys, bank.values):
        np.testing.assert_array_equal(fetch(slots).float32()[:, 0, :, 0], np.tile(kept, (HEADS, 1)))
    add(bank, CAPACITY - kept.size + 5)
    assert bank.ring.ids().tolist() == [*kept.tolist(), *range(int(ids[-1]) + 1, bank.ring.next_sequence)][5:]


def test_what_is_older_than_the_first_gap_stays() -> None:
    """To evict one of the latest entries of a bank moves all of it."""
    bank = Bank(SPEC, CpuDevice().store(SPEC), first_sequence=0, usage=Usage())
    add(bank, CAPACITY)
    steps = steps_of(bank.evicting(ByIds(np.array([2990])), now_s=0.0), UNBOUNDED)
    assert sum(steps) <= work.BANK + work.moved(LOOKED_BYTES * CAPACITY) + 9 * 2 * work.moved(
        SPEC.entry_bytes
    )


@needs_kernels
@pytest.mark.parametrize("turned", [0, 1500])
def test_lists_follow_a_little_at_a_time(turned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists name what lay there before; or are made anew at once, however many entries there are."""
    monkeypatch.setattr(ivf, "MOVED_TOGETHER", 100)
    monkeypatch.setattr(cpu_buffers, "MOVED_TOGETHER", 100)
    made, bank = Mixture(), IndexedBank(6000, heads=2)
    for tokens in (6000, turned):
        bank.add(bank.draw(made, tokens))
    bank.trained(made)
    bank.add(bank.draw(made, 300))  # which are in no list yet
    chosen = bank.ids[np.random.default_rng(0).random(bank.ids.size) < 0.3]
    steps = steps_of(bank.bank.evicting(ByIds(chosen), now_s=0.0), UNBOUNDED)
    assert max(steps[2:]) <= 100 * max(ivf.MOVED, 2 * work.moved(2 * 2 * KEY_DIM * 4))
    bank.evict(ByIds(chosen))  # what should be there now, too
    assert bank.answers == "ivf"
    assert bank.check(bank.draw(made, 200)) >= 0.93
    assert bank.check(bank.draw(made, 50), exact=True) == 1.0
    bank.read(made, 5)
    bank.add(bank.draw(made, 1000))
    assert bank.check(bank.draw(made, 200)) >= 0.93


@needs_kernels
def test_codes_follow_to_any_place() -> None:
    """Codes of entries that move around the end of their buffer are those of others."""
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((4, 256)).astype(np.float32)
    keys, assigned = rng.standard_normal((500, 256)).astype(np.float32), rng.integers(4, size=500)
    one = codes.Codes(centroids, 500)
    one.put(0, assigned, keys, Dtype.FLOAT32)
    before = one._rows.copy()
    order = (430 + np.flatnonzero(rng.random(400) < 0.8)) % 500
    run_through(one.moving(order, 500, head=430))
    np.testing.assert_array_equal(one._rows[(430 + np.arange(order.size)) % 500], before[order])


@pytest.mark.parametrize(("entries", "head"), [(0, 0), (10, 0), (10, 4), (7, 9), (10, 9)])
def test_placed(entries: int, head: int) -> None:
    """What lies around the end is put elsewhere, twice or never."""
    slots = np.full(10, -1)
    for part, place in placed(entries, 10, head=head, most=3):
        assert 0 < part.stop - part.start <= 3
        slots[place : place + part.stop - part.start] = np.arange(part.start, part.stop)
    wanted = np.full(10, -1)
    wanted[(head + np.arange(entries)) % 10] = np.arange(entries)
    assert slots.tolist() == wanted.tolist()
