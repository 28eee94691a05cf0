"""Memory is zeroed, all of it and nothing else, also where whole pages are given back."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from recollect_server.engine import zeroing
from recollect_server.engine.zeroing import LARGE_BYTES, zero

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("gives_back", [True, False])
@pytest.mark.parametrize("more", [-1, 0, 1, PAGE - 1, 5 * PAGE + 3])
@pytest.mark.parametrize("first", [0, 1, PAGE - 1, PAGE])
def test_all_of_it_is_zeroed_and_nothing_else(
    first: int, more: int, gives_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a stream that is gone stay where another one's will lie, or another's are lost."""
    if not gives_back:
        monkeypatch.setattr(zeroing, "_madvise", lambda: None)
    around = np.full(LARGE_BYTES + 9 * PAGE, 7, np.uint8)
    to_page = -around.ctypes.data % PAGE
    part = slice(to_page + first, to_page + first + LARGE_BYTES + more)
    zero(around[part])
    assert not around[part].any()
    assert (around[: part.start] == 7).all()
    assert (around[part.stop :] == 7).all()
    around[part] = 3  # it is there to be used
    assert (around[part] == 3).all()


def test_an_array_of_any_kind() -> None:
    """A buffer of heads is zeroed in part only."""
    array = np.ones((3, 1000, 129), np.float32)
    zero(array)
    assert not array.any()
    zero(np.zeros((2, 0, 5), np.float16))
    whole = np.ones((3, 1000, 258), np.float32)
    zero(whole[:, :, ::2])
    assert not whole[:, :, ::2].any()
    assert (whole[:, :, 1::2] == 1).all()
