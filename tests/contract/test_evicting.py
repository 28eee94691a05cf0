"""Eviction by every selector, and ids that never come back."""

from __future__ import annotations

import time

import numpy as np
import pytest

import recollect
from tests.contract.memories import DTYPES, CheckedMemory, Dtype, Memories


@pytest.fixture
def memory(memories: Memories) -> CheckedMemory:
    """Two streams with 8 of 10 entries, in a ring that has wrapped."""
    memory = memories(layers=(0, 1), capacity=10)
    memory.add(["a", "b"], 8)
    memory.add(["a", "b"], 8)
    memory.ns.evict(streams=["a", "b"], oldest=2, layers=[0])
    for stream in ("a", "b"):
        memory.oracle.bank(stream, 0).keep(range(2, 10))
    memory.check(["a", "b"])
    return memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_evict_ids(memories: Memories, dtype: Dtype) -> None:
    """Eviction from the middle removed the wrong entries, or disturbed those that stay."""
    memory = memories(capacity=10, dtype=dtype)
    memory.add(["a", "b"], 14)
    ids = memory.ids("a")
    gone = [ids[0], ids[3], ids[4], ids[9], ids[0] - 1, ids[9] + 100]  # the last two are not stored
    assert memory.ns.evict(streams=["a"], ids=gone).evicted == 4
    memory.oracle.bank("a", 0).keep([1, 2, 5, 6, 7, 8])
    memory.check(["a", "b"], top_k=8)
    memory.add(["a", "b"], 3)
    memory.check(["a", "b"], top_k=8)
    memory.add(["a", "b"], 9)
    memory.check(["a", "b"], top_k=8)


def test_evict_oldest(memory: CheckedMemory) -> None:
    """Not the oldest went, or more than asked for."""
    assert memory.ns.evict(streams=["a"], oldest=3, layers=[0]).evicted == 3
    memory.oracle.bank("a", 0).keep(range(3, 8))
    memory.check(["a", "b"])
    assert memory.ns.evict(streams=["a"], oldest=100).evicted == 5
    memory.oracle.bank("a", 0).keep([])
    memory.check(["a", "b"])
    memory.add(["a"], 2)
    memory.check(["a", "b"])


def test_evict_before_sequence(memory: CheckedMemory) -> None:
    """Entries from the sequence on went too, or older ones stayed."""
    ids = memory.ids("b")
    assert memory.ns.evict(streams=["b"], before_sequence=ids[5]).evicted == 5
    memory.oracle.bank("b", 0).keep([5, 6, 7])
    memory.check(["a", "b"])
    assert memory.ns.evict(streams=["b"], before_sequence=ids[5]).evicted == 0


def test_evict_older_than(memory: CheckedMemory) -> None:
    """Age was measured from anything but the add, or young entries went."""
    assert memory.ns.evict(streams=["a"], older_than_s=3600).evicted == 0
    memory.check(["a"])
    second = int(time.time())
    # Ages are kept to the second: wait until the entries are of an earlier one.
    while int(time.time()) < second + 2:
        time.sleep(0.05)
    memory.add(["a"], 1)
    assert memory.ns.evict(streams=["a"], older_than_s=0.9).evicted == 8
    memory.oracle.bank("a", 0).keep([8])
    memory.check(["a", "b"])


def test_evict_all_forgets_the_stream(memory: CheckedMemory) -> None:
    """A forgotten stream still exists, or its memory was not freed."""
    before = memory.ns.stats()
    assert memory.ns.evict(streams=["a"], all=True).evicted == 8
    memory.oracle.forget("a", [0, 1])
    after = memory.ns.stats()
    assert (after.streams, after.entries) == (1, 8)
    assert after.bytes == before.bytes // 2
    with pytest.raises(recollect.NotFoundError):
        memory.check_search(["a"])
    memory.check(["a", "b"], missing_ok=True)


def test_evict_all_of_one_layer(memory: CheckedMemory) -> None:
    """Forgetting one layer touched another."""
    memory.add(["a"], 4, layer=1)
    assert memory.ns.evict(streams=["a"], layers=[0], all=True).evicted == 8
    memory.oracle.forget("a", [0])
    memory.check(["a"])
    memory.check(["a"], layer=1)


def test_evict_reaches_every_layer_unless_told(memory: CheckedMemory) -> None:
    """Without layers, all of them are meant."""
    memory.add(["a", "b"], 4, layer=1)
    assert memory.ns.evict(streams=["a", "b"], oldest=1).evicted == 4
    for stream in ("a", "b"):
        for layer in (0, 1):
            memory.oracle.bank(stream, layer).keep(range(1, len(memory.ids(stream, layer=layer))))
    memory.check(["a", "b"])
    memory.check(["a", "b"], layer=1)


def test_evict_from_a_stream_that_does_not_exist(memory: CheckedMemory) -> None:
    """An unknown stream must refuse the whole call, or count as empty with missing_ok."""
    with pytest.raises(recollect.NotFoundError):
        memory.ns.evict(streams=["a", "nobody"], all=True)
    memory.check(["a", "b"])
    assert memory.ns.evict(streams=["a", "nobody"], oldest=1, missing_ok=True).evicted == 1


def test_ids_go_on_after_everything_was_evicted(memory: CheckedMemory) -> None:
    """An id came back after its stream had become empty."""
    last = memory.ids("a")[-1]
    memory.ns.evict(streams=["a"], oldest=100)
    memory.oracle.bank("a", 0).keep([])
    assert memory.add(["a"], 2).first_ids == (last + 1,)


def test_ids_never_come_back_after_a_stream_was_forgotten(memory: CheckedMemory) -> None:
    """A stream made anew gave out ids of the one before: a stale backward would be silently wrong."""
    q = memory.queries(1, 2)
    out = memory.ns.attend(0, q, top_k=4, streams=["a"], scale=0.7)
    assert out.ids is not None
    last = memory.ids("a")[-1]
    for _ in range(3):
        memory.ns.evict(streams=["a"], all=True)
        memory.oracle.forget("a", [0, 1])
        added = memory.add(["a"], 10)  # the oracle refuses ids that were given out before
        assert added.first_ids[0] > last
        last = added.next_sequences[0] - 1
        with pytest.raises(recollect.StaleEntryError):
            memory.check_backward(q, out.ids, ["a"])


def test_ids_never_come_back_after_a_namespace_was_made_again(
    memories: Memories, client: recollect.Client, name: str
) -> None:
    """A namespace made again under its name gave out ids of the one before."""
    last = -1
    for _ in range(3):
        memory = memories(name=f"again-{name}", capacity=2000, key_dim=1, value_dim=1, heads=1)
        added = memory.add(["a"], 2000)
        assert added.first_ids[0] > last
        last = added.next_sequences[0] - 1
        client.delete_namespace(f"again-{name}")


def test_freed_buffers_do_not_leak_into_new_streams(memories: Memories) -> None:
    """A new stream found what a forgotten one had stored."""
    memory = memories(capacity=8)
    memory.add(["secret"], 8)
    memory.ns.evict(streams=["secret"], all=True)
    memory.oracle.forget("secret", [0])
    memory.add(["fresh"], 1)
    found = memory.check_search(["fresh"], top_k=8)
    assert np.count_nonzero(found.ids >= 0) == found.ids[..., 0].size
