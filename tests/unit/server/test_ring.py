"""Sequence arithmetic, against a plain list of ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recollect_server.domain.eviction import (
    BeforeSequence,
    ByIds,
    Everything,
    OlderThan,
    Oldest,
    condemned,
    is_prefix,
)
from recollect_server.domain.ring import ALLOCATED_MIN, Ring


def push(ring: Ring, tokens: int, *, second: int = 0) -> int:
    """Grows as a bank does, then pushes."""
    allocated = ring.allocation_for(tokens)
    if allocated > ring.allocated:
        ring.grow(allocated, ids=ring.ids_in_front(allocated))
    return ring.push(tokens, second=second)


def keep(ring: Ring, order: NDArray[np.int64]) -> None:
    """Compacts as a bank does."""
    ring.keep(order.size, ids=ring.ids_kept(order))


steps = st.lists(st.tuples(st.sampled_from(["push", "drop", "keep"]), st.integers(0, 90)), max_size=30)


@given(capacity=st.sampled_from([1, 2, 7, 64, 65, 200]), steps=steps)
def test_any_sequence(capacity: int, steps: list[tuple[str, int]]) -> None:
    """Ids, slots or counts of a ring differ from those of a list that drops its oldest."""
    ring, ids, next_id = Ring(capacity, first_sequence=100), list[int](), 100
    for what, number in steps:
        if what == "push":
            wanted = max(0, len(ids) + number - capacity)
            if (allocated := ring.allocation_for(number)) > ring.allocated:
                ring.grow(allocated, ids=ring.ids_in_front(allocated))
            writes = ring.writes_for(number)
            assert push(ring, number) == wanted
            for write in writes:
                slots_written = np.arange(write.slots.start, write.slots.stop)
                tokens = np.arange(write.tokens.start, write.tokens.stop)
                assert ring.ids_of_slots(slots_written).tolist() == (next_id + tokens).tolist()
            ids = [*ids, *range(next_id, next_id + number)][-capacity:]
            next_id += number
        elif what == "drop":
            ring.drop_oldest(number)
            ids = ids[number:]
        else:
            order = np.flatnonzero(np.arange(len(ids)) % (number + 2) > 0).astype(np.int64)
            keep(ring, order)
            ids = [ids[i] for i in order]
        assert ring.ids().tolist() == ids
        assert ring.count == len(ids)
        assert ring.next_sequence == next_id
        assert ring.first_id == (ids[0] if ids else next_id)
        assert ring.allocated <= capacity
        slots = [slot for part in ring.segments() for slot in range(part.start, part.stop)]
        assert len(ring.segments()) <= 2
        assert len(set(slots)) == len(slots) == len(ids)
        assert ring.ids_of_slots(np.array(slots, dtype=np.int64)).tolist() == ids
        assert ring.slots_of_ids(np.array(ids, dtype=np.int64)).tolist() == slots
        assert (ring.slots_of_ids(np.array([99, -1, next_id])) == -1).all()


@given(steps=st.lists(st.tuples(st.sampled_from(["push", "drop", "keep"]), st.integers(0, 40)), max_size=60))
def test_times_of_any_sequence(steps: list[tuple[str, int]]) -> None:
    """An entry gets another's time once some were evicted, from anywhere."""
    ring, seconds = Ring(50, first_sequence=7), list[int]()
    for now, (what, number) in enumerate(steps):
        if what == "push":
            push(ring, number, second=now // 3)
            seconds = [*seconds, *[now // 3] * number][-50:]
        elif what == "drop":
            ring.drop_oldest(number)
            seconds = seconds[number:]
        else:
            order = np.flatnonzero(np.arange(len(seconds)) % (number + 2) > 0).astype(np.int64)
            keep(ring, order)
            seconds = [seconds[i] for i in order]
        assert ring.seconds().tolist() == seconds


def test_bookkeeping_stays_small() -> None:
    """Ids take memory though they have no gaps, or times of evicted entries pile up."""
    ring = Ring(4096, first_sequence=0)
    for second in range(100_000):
        push(ring, 10, second=second)
    assert len(ring._ages._firsts) < 1000
    has_ids = [ring._ids is not None]
    keep(ring, np.flatnonzero(np.arange(4096) != 2000))
    has_ids.append(ring._ids is not None)
    push(ring, 4096, second=100_001)
    has_ids.append(ring._ids is not None)
    assert has_ids == [False, True, False]


def test_writes_cover_what_is_kept() -> None:
    """Tokens of an add were written to the wrong slots, or those evicted at once were written too."""
    ring = Ring(100, first_sequence=0)
    push(ring, 100)
    writes = ring.writes_for(130)
    assert ring.ids().tolist() == list(range(100)), "nothing has changed yet"
    assert ring.push(130, second=0) == 130
    tokens = [token for write in writes for token in range(write.tokens.start, write.tokens.stop)]
    assert tokens == list(range(30, 130))
    slots = [slot for write in writes for slot in range(write.slots.start, write.slots.stop)]
    assert sorted(slots) == list(range(100))
    assert ring.ids_of_slots(np.array(slots)).tolist() == [100 + token for token in tokens]


@pytest.mark.parametrize(
    ("capacity", "tokens", "wanted"),
    [(10, 1, 10), (1000, 1, ALLOCATED_MIN), (1000, 65, 65), (1000, 5000, 1000), (1000, 0, 0)],
)
def test_a_first_buffer(capacity: int, tokens: int, wanted: int) -> None:
    """A small stream takes much memory, or a large one is copied often."""
    assert Ring(capacity, first_sequence=0).allocation_for(tokens) == wanted


def test_buffers_double() -> None:
    """Adding token by token copies the buffer each time."""
    ring, sizes = Ring(1000, first_sequence=0), set[int]()
    for _ in range(1000):
        push(ring, 1)
        sizes.add(ring.allocated)
    assert sorted(sizes) == [64, 128, 256, 512, 1000]


@pytest.mark.parametrize(
    ("selector", "gone"),
    [
        (ByIds(np.array([11, 13, 99, -1])), [11, 13]),
        (Oldest(2), [10, 11]),
        (Oldest(0), []),
        (Oldest(99), [10, 11, 12, 13, 14]),
        (BeforeSequence(12), [10, 11]),
        (BeforeSequence(-5), []),
        (OlderThan(5.0), [10, 11, 12]),
        (OlderThan(100.0), []),
        (Everything(), [10, 11, 12, 13, 14]),
    ],
)
def test_selectors(
    selector: ByIds | Oldest | BeforeSequence | OlderThan | Everything, gone: list[int]
) -> None:
    """A selector names the wrong entries."""
    ring = Ring(8, first_sequence=10)
    push(ring, 3, second=100)
    push(ring, 2, second=109)
    mask = condemned(ring, selector, now_s=110.0)
    assert ring.ids()[mask].tolist() == gone


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [([], True), ([1, 1, 0], True), ([0, 0], True), ([1, 1], True), ([0, 1], False), ([1, 0, 1], False)],
)
def test_only_a_prefix_needs_no_data_to_move(mask: list[int], wanted: bool) -> None:
    """Entries from the middle were dropped from the head instead."""
    assert is_prefix(np.array(mask, dtype=np.bool_)) is wanted
