"""Rings at capacity, and the traps of the systems before this one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.memories import DTYPES, Dtype, Memories


@pytest.mark.parametrize("dtype", DTYPES)
def test_after_the_first_overflow_the_pairs_are_right(memories: Memories, dtype: Dtype) -> None:
    """Lucidrains' memory resets its index when full, and returns wrong pairs from then on."""
    memory = memories(capacity=16, dtype=dtype)
    memory.add(["a"], 16)
    memory.check(["a"])
    memory.add(["a"], 5)
    memory.check(["a"], top_k=16)
    assert len(memory.ids("a")) == 16


def test_rows_only_ever_see_their_own_stream(memories: Memories) -> None:
    """Lucidrains' batch offsets drift: after rows of different fill, row b reads another row's entries."""
    memory = memories(capacity=12)
    streams = ["r0", "r1", "r2", "r3"]
    owner: dict[float, int] = {}
    for step in range(6):
        lengths = [3, 0, 5, 1 + step % 2]
        spec = memory.ns.spec
        keys = memory.draw(4, spec.heads, 5, spec.key_dim)
        values = memory.draw(4, spec.heads, 5, spec.value_dim)
        values[..., 0] = np.arange(4)[:, None, None]  # each value carries its row
        added = memory.ns.add(0, keys, values, streams=streams, lengths=lengths)
        memory.oracle.add(0, keys, values, streams=streams, first_ids=added.first_ids, lengths=lengths)
        if step == 3:
            memory.ns.evict(streams=["r2"], all=True)
            memory.oracle.forget("r2", [0])
        found = memory.check_search(streams, top_k=8, missing_ok=True)
        assert found.values is not None
        for row in range(4):
            owner.update(dict.fromkeys(found.values[row, ..., 0][found.ids[row] >= 0].tolist(), row))
            assert set(found.values[row, ..., 0][found.ids[row] >= 0].tolist()) <= {float(row)}
    assert owner == {0.0: 0, 2.0: 2, 3.0: 3}


def test_unwritten_slots_do_not_dilute_the_softmax(memories: Memories) -> None:
    """Meliad attends to unwritten slots as to keys of zero: with one entry, the output must be its value."""
    memory = memories(capacity=1000)
    memory.add(["a"], 1)
    q = memory.queries(1, 3)
    out = memory.ns.attend(0, q, top_k=32, streams=["a"], scale=1.0)
    value = memory.oracle.bank("a", 0).values[0]
    np.testing.assert_allclose(out.output[0], np.repeat(value[:, None], 3, axis=1), rtol=1e-6)
    np.testing.assert_allclose(out.lse[0], memory.oracle.scores(0, q[0], "a")[..., 0], rtol=1e-5, atol=1e-6)


def test_ids_of_minus_one_are_masked(memories: Memories) -> None:
    """FAISS answers -1 where there are fewer entries: it must not index the last slot."""
    memory = memories(capacity=3)
    memory.add(["a"], 7)
    found = memory.check_search(["a"], top_k=10)
    assert (found.ids[..., 3:] == -1).all()
    assert found.keys is not None
    assert (found.keys[..., 3:, :] == 0).all()
    assert found.values is not None
    assert (found.values[..., 3:, :] == 0).all()
    memory.check_attend(["a"], top_k=10)


def test_reset_of_one_row(memories: Memories) -> None:
    """A document start in one row cleared another row, or left something of the old document."""
    memory = memories()
    memory.add(["a", "b"], 8)
    memory.ns.evict(streams=["a"], all=True)
    memory.oracle.forget("a", [0])
    memory.check(["a", "b"], missing_ok=True)
    memory.add(["a", "b"], 3)
    memory.check(["a", "b"])
    assert len(memory.ids("a")) == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 3, 7, 10, 11])
def test_several_times_around_the_ring(memories: Memories, dtype: Dtype, step: int) -> None:
    """First in, first out broke at some position of the ring."""
    memory = memories(capacity=10, dtype=dtype)
    for turn in range(-(-35 // step)):
        memory.add(["a", "b"], step, lengths=[step, step - turn % 2])
        if turn % 3 == 0 or step > 3:
            memory.check(["a", "b"])


def test_more_than_the_capacity_in_one_add(memories: Memories) -> None:
    """Only the last entries of an add longer than the memory stay, with their own ids."""
    memory = memories(capacity=10)
    memory.add(["a"], 4)
    added = memory.add(["a"], 37)
    assert added.evicted == 31
    assert memory.ids("a") == list(range(added.next_sequences[0] - 10, added.next_sequences[0]))
    memory.check(["a"], top_k=12)
    memory.add(["a"], 10)
    memory.check(["a"], top_k=12)


def test_wrap_without_being_full(memories: Memories) -> None:
    """Live entries that wrap around the buffer's end while it is not full were read in one piece."""
    memory = memories(capacity=10)
    memory.add(["a"], 8)
    memory.ns.evict(streams=["a"], oldest=6)
    memory.oracle.bank("a", 0).keep([6, 7])
    memory.add(["a"], 5)
    assert len(memory.ids("a")) == 7
    memory.check(["a"], top_k=9)
    memory.add(["a"], 2)
    memory.check(["a"], top_k=9)


def test_buffers_grow_with_their_entries(memories: Memories) -> None:
    """Entries were lost or reordered when a buffer grew, wrapped or not; or it grew beyond need."""
    memory = memories(capacity=1000, key_dim=3, value_dim=2)
    entry_bytes = 2 * (3 + 2) * 4
    memory.add(["a"], 60)
    assert memory.ns.stats().bytes == 64 * entry_bytes + 4096
    memory.ns.evict(streams=["a"], oldest=50)
    memory.oracle.bank("a", 0).keep(range(50, 60))
    memory.add(["a"], 30)  # wraps in 64 slots
    memory.check(["a"], top_k=48)
    memory.add(["a"], 50)  # grows out of the wrapped state
    memory.check(["a"], top_k=48)
    memory.add(["a"], 200)
    memory.check(["a"], top_k=48)
    assert memory.ns.stats().bytes <= 1000 * entry_bytes + 4096


def test_a_memory_of_one_entry(memories: Memories) -> None:
    """Capacity 1 is allowed, and holds the newest."""
    memory = memories(capacity=1)
    for tokens in (1, 1, 3):
        memory.add(["a"], tokens)
        memory.check(["a"], top_k=2)
