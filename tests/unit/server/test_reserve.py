"""Large buffers grow where they lie; what is reserved for that takes no memory, and is as good as other."""

from __future__ import annotations

import mmap
import platform
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from recollect_server.domain import work
from recollect_server.domain.arrays import Raw, RowBytes, from_float32
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.engine import cpu_buffers, reserve
from recollect_server.engine.cpu_buffers import CpuBuffers
from tests.unit.server.use_cases import steps_of

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="address space is reserved on Linux alone"
)

HEADS, KEY_DIM, VALUE_DIM, CAPACITY = 3, 5, 2, 10_000
SPEC = NamespaceSpec((0,), HEADS, KEY_DIM, VALUE_DIM, capacity=CAPACITY, dtype=Dtype.FLOAT16)


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of a hundred slots are reserved, those of twenty are not."""
    monkeypatch.setattr(reserve, "LARGE_BYTES", 100 * VALUE_DIM * 2)


def numbers(first: int, count: int, dim: int) -> Raw:
    """Of entries from one on, for each head others: [Hkv, count, dim]."""
    entries = (first + np.arange(count))[None, :, None] % 1000
    return (entries + np.arange(HEADS)[:, None, None] / 4 + np.zeros(dim)).astype(np.float16)


def grown(buffers: CpuBuffers, slots: int, *live: slice) -> None:
    """To so many slots."""
    run_through(buffers.growing(slots, live))


def write(buffers: CpuBuffers, slots: slice, *, first: int) -> None:
    """Entries from `first` on."""
    count = slots.stop - slots.start
    keys, values = (
        from_float32(numbers(first, count, dim).astype(np.float32), Dtype.FLOAT16)
        for dim in (KEY_DIM, VALUE_DIM)
    )
    buffers.write([Write(slots=slots, tokens=slice(0, count))], keys, values)


def assert_holds(buffers: CpuBuffers, count: int, *, first: int) -> None:
    """Entries from `first` on lie from slot 0 on."""
    slots = np.tile(np.arange(count), (HEADS, 1, 1))
    np.testing.assert_array_equal(buffers.keys(slots).raw[:, 0], numbers(first, count, KEY_DIM))
    np.testing.assert_array_equal(buffers.values(slots).raw[:, 0], numbers(first, count, VALUE_DIM))


def places(buffers: CpuBuffers) -> list[tuple[int, ...]]:
    """Where keys and values of each head lie."""
    return [tuple(head.ctypes.data for head in rows) for rows in (buffers._keys, buffers._values)]


@pytest.mark.usefixtures("small_is_large")
def test_a_large_bank_grows_where_it_lies() -> None:
    """All that a bank holds is copied each time that it doubles; or what comes then is written elsewhere."""
    buffers = CpuBuffers(SPEC)
    grown(buffers, 20)
    write(buffers, slice(0, 20), first=0)
    grown(buffers, 100, slice(0, 20))  # copied, for the last time
    lies = places(buffers)
    assert all(place % reserve.HUGE_BYTES == 0 for head in lies for place in head)
    held = 20
    for before, after in pairwise((100, 200, 400, 6400)):
        write(buffers, slice(held, before), first=held)
        held = before
        assert sum(steps_of(buffers.growing(after, [slice(0, before)]), 1000)) == 0
        assert places(buffers) == lies
        assert buffers._keys.shape == (HEADS, after, KEY_DIM)
        assert not buffers._keys[:, before:].any()
        assert_holds(buffers, before, first=0)
    write(buffers, slice(400, 6400), first=400)
    assert_holds(buffers, 6400, first=0)


@pytest.mark.usefixtures("small_is_large")
def test_entries_that_do_not_begin_at_slot_0_are_copied() -> None:
    """The oldest have left: those that stay are taken for others, or those that have left are found again."""
    buffers = CpuBuffers(SPEC)
    grown(buffers, 100)
    write(buffers, slice(30, 100), first=0)
    write(buffers, slice(0, 30), first=70)
    before = buffers._keys, buffers._values
    grown(buffers, 200, slice(30, 100), slice(0, 30))
    assert_holds(buffers, 100, first=0)
    assert not any(rows.any() for rows in before), "what they leave behind is zeroed"
    lies = places(buffers)
    run_through(buffers.touch(150))
    grown(buffers, 400, slice(0, 100))
    assert places(buffers) == lies
    assert_holds(buffers, 100, first=0)


@pytest.mark.usefixtures("small_is_large")
def test_memory_is_found_before_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for the system to find memory for a large add; or what is stored is zeroed for it."""
    monkeypatch.setattr(cpu_buffers, "TOUCHED_BYTES", 50 * KEY_DIM * 2)
    buffers = CpuBuffers(SPEC)
    grown(buffers, 200)
    largest = work.moved_to_new(50 * KEY_DIM * 2)
    assert max(steps_of(buffers.touch(150), 1)) == largest
    assert sum(steps_of(buffers.touch(150), 1)) == 0, "it is there"
    write(buffers, slice(0, 120), first=0)
    write(buffers, slice(120, 180), first=120)  # beyond what was touched
    assert len([step for step in steps_of(buffers.touch(200), 1) if step]) == 2 * HEADS
    assert_holds(buffers, 180, first=0)
    write(buffers, slice(180, 200), first=180)
    grown(buffers, 3000, slice(0, 200))
    grown(buffers, CAPACITY, slice(0, 200))
    assert buffers._keys.shape == buffers._room[0].shape
    touching = buffers.touch(CAPACITY)
    next(touching)
    for _ in range(9):  # who is closed in the middle goes on where it was
        next(touching)
    touching.close()
    run_through(buffers.touch(CAPACITY))
    assert_holds(buffers, 200, first=0)
    assert not buffers._keys[:, 200:].any()


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("ends", ["cleared", "given up"])
def test_nothing_stays_in_memory(ends: str) -> None:
    """What one stream stored lies where another's will lie: in the last head, or between heads."""
    buffers = CpuBuffers(SPEC)
    grown(buffers, 50)
    write(buffers, slice(0, 50), first=0)
    if ends == "cleared":
        grown(buffers, 2000, slice(0, 50))
        write(buffers, slice(50, 2000), first=50)
        rooms = buffers._room[0].view(np.uint8), buffers._room[1].view(np.uint8)
        buffers.clear()
        assert buffers._keys.shape == (HEADS, 0, KEY_DIM)
    else:
        made: list[RowBytes] = []

        def noted(spec: NamespaceSpec, slots: int, row_bytes: int) -> RowBytes | None:
            room = reserve.reserve(spec, slots, row_bytes)
            assert room is not None
            made.append(room)
            return room

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_buffers, "reserve", noted)
            growing = buffers.growing(2000, [slice(0, 50)])
            next(growing)
            growing.send(work.moved_to_new(HEADS * KEY_DIM * 2 * 10))
            assert made[0].any()
            growing.close()
        rooms = made[0], made[1]
        assert_holds(buffers, 50, first=0)
    assert not any(rows.any() for rows in rooms)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_what_is_reserved_takes_no_memory() -> None:
    """A bank of some megabytes takes the gigabytes that it might hold one day."""
    spec = NamespaceSpec((0,), 8, 64, 64, capacity=4_000_000, dtype=Dtype.FLOAT16)
    slots = reserve.LARGE_BYTES // 128
    before = resident_bytes()
    buffers = CpuBuffers(spec)
    grown(buffers, slots)
    assert buffers._room[0].nbytes > 3 << 30
    assert resident_bytes() - before < 16 << 20
    buffers._keys[:] = 1
    assert resident_bytes() - before < (16 << 20) + buffers._keys.nbytes
    grown(buffers, 2 * slots, slice(0, slots))
    assert buffers._keys[:, :slots].all()
    buffers.clear()
    assert resident_bytes() - before < 16 << 20


def test_what_is_reserved_is_bounded() -> None:
    """Somebody with many namespaces of the largest capacity uses up all addresses that there are."""
    spec = NamespaceSpec((0,), 1, 64, 64, capacity=16_777_216, dtype=Dtype.FLOAT16)
    slots = reserve.LARGE_BYTES // 128
    room = reserve.reserve(spec, slots, 128)
    assert room is not None
    assert room.shape[1] == reserve.TIMES * slots
    assert reserve.reserve(spec, slots - 1, 128) is None, "a small one is soon copied"
    assert reserve.reserve(spec, spec.capacity, 128) is None, "it will not grow"


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("why", ["no addresses", "another system"])
def test_where_nothing_can_be_reserved_banks_are_copied(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a limit of its address space, or on another system, fails when a bank grows."""

    def refused(*_: object, **__: object) -> object:
        raise OSError("no addresses left")

    if why == "no addresses":
        monkeypatch.setattr(mmap, "mmap", refused)
    else:
        monkeypatch.setattr(platform, "system", lambda: "Plan 9")
    buffers = CpuBuffers(SPEC)
    grown(buffers, 200)
    write(buffers, slice(0, 200), first=0)
    lies = places(buffers)
    grown(buffers, 400, slice(0, 200))
    assert places(buffers) != lies
    assert_holds(buffers, 200, first=0)
