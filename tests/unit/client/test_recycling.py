"""Memory of large results that is used again: never while somebody has it, and not for ever."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from recollect import _recycling
from recollect._recycling import FROM_BYTES, Recycling

BYTES = np.dtype(np.uint8)
PATIENCE_S = 20.0


def filled(recycling: Recycling, value: int, size: int = FROM_BYTES) -> npt.NDArray[np.generic]:
    """A result whose bytes are all alike."""
    array = recycling.empty((size,), BYTES)
    array[...] = value
    return array


def address(array: npt.NDArray[np.generic]) -> int:
    """Where it lies."""
    return int(array.ctypes.data)


def happens(condition: Callable[[], bool]) -> bool:
    """Whether it does, in time."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()


def test_the_memory_of_a_result_that_is_gone_is_used_again() -> None:
    """Each large result needs new pages, which can take longer than receiving it."""
    recycling = Recycling()
    first = filled(recycling, 1, 3 * FROM_BYTES)
    where = address(first)
    del first
    again = recycling.empty((3, FROM_BYTES // 2), np.dtype(np.uint16))
    assert address(again) == where
    assert again.shape == (3, FROM_BYTES // 2)
    assert again.dtype == np.dtype(np.uint16)
    assert again.flags.writeable


@pytest.mark.parametrize(
    "kept",
    [
        lambda array: array,
        lambda array: array[5:9],
        lambda array: array.reshape(-1, 2)[::3].T,
        memoryview,
        lambda array: torch.from_numpy(array)[7:],
        lambda array: array.view(np.uint16)[:3],
    ],
    ids=["whole", "slice", "strides", "buffer", "tensor", "other dtype"],
)
def test_never_while_something_views_it(kept: Callable[[npt.NDArray[np.generic]], object]) -> None:
    """A result that somebody still has turns into another call's."""
    recycling = Recycling()
    array = filled(recycling, 1)
    view, where = kept(array), address(array)
    del array
    gc.collect()
    others = [filled(recycling, 2) for _ in range(3)]
    assert where not in map(address, others)
    assert int(np.asarray(view).reshape(-1)[0]) in (1, 0x0101)
    del view
    gc.collect()
    assert address(filled(recycling, 3)) == where


def test_small_and_much_smaller_results_take_no_large_block() -> None:
    """Who keeps a small result keeps the memory of a large one with it."""
    recycling = Recycling()
    array = filled(recycling, 1, 9 * FROM_BYTES)
    where = address(array)
    del array
    assert address(recycling.empty((10,), BYTES)) != where
    assert address(recycling.empty((2 * FROM_BYTES,), BYTES)) != where
    assert address(recycling.empty((9 * FROM_BYTES,), BYTES)) == where


def test_what_is_not_used_again_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has made one large search holds its memory for ever, and a thread with it."""
    monkeypatch.setattr(_recycling, "_REST_S", 0.05)
    recycling = Recycling()
    array = filled(recycling, 1)
    time.sleep(0.3)
    assert recycling._is_watched  # somebody has it still
    del array
    assert happens(lambda: not recycling._is_watched)
    assert not recycling._idle
    assert not recycling._freed
    del array_again(recycling)[:]
    assert happens(lambda: not recycling._is_watched)


def array_again(recycling: Recycling) -> list[npt.NDArray[np.generic]]:
    """One more, after the watcher has gone."""
    again = [filled(recycling, 2)]
    assert recycling._is_watched
    return again


def test_what_waits_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large results at once leave as much memory behind."""
    monkeypatch.setattr(_recycling, "_KEPT_BYTES_MAX", 5 * FROM_BYTES)
    recycling = Recycling()
    arrays = [filled(recycling, number) for number in range(20)]
    del arrays
    recycling.empty((100 * FROM_BYTES,), BYTES)
    assert sum(block.memory.size for block in recycling._idle) <= 5 * FROM_BYTES


def test_threads_do_not_get_the_same_memory() -> None:
    """Two calls at once write to one block."""
    recycling, wrong = Recycling(), list[int]()

    def work(number: int) -> None:
        for _ in range(50):
            array = filled(recycling, number)
            time.sleep(0)
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not wrong


def test_a_forked_process_has_its_own() -> None:
    """Results of parent and child overwrite each other, or the child waits for a lock for ever."""
    recycling = _recycling.RESULTS
    before = filled(recycling, 1)
    del before
    with recycling._lock:
        child = os.fork()
        if child == 0:
            array = filled(recycling, 7)
            os._exit(int(np.asarray(array)[0]))
    mine = filled(recycling, 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (mine == 3).all()
