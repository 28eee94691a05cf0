"""Bytes that are written before anybody else has them."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from recollect_server.rpc.fresh_bytes import fresh_bytes


@pytest.mark.parametrize("size", [2, 3, 100, 1_000_000])
def test_what_is_written_is_what_the_bytes_are(size: int) -> None:
    """A message has other contents than what was gathered for it."""
    wanted = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    raw, memory = fresh_bytes(size)
    assert (type(raw), len(raw), memory.size) == (bytes, size, size)
    memory[:] = wanted
    assert raw == wanted.tobytes()
    assert hash(raw) == hash(wanted.tobytes())


def test_nobody_else_has_them() -> None:
    """Two messages share memory: what one caller is sent is written over by what another one is."""
    made = [fresh_bytes(2) for _ in range(100)]
    for number, (_, memory) in enumerate(made):
        memory[:] = number
    assert [raw for raw, _ in made] == [bytes((number, number)) for number in range(100)]


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_bytes_that_everybody_shares_are_refused(size: int) -> None:
    """The empty bytes, or those of one, change everywhere in the process."""
    with pytest.raises(ValueError, match=f"size is {size}"):
        fresh_bytes(size)


def test_they_go_with_their_last_owner() -> None:
    """Each part that is sent stays in memory for ever, or goes while it is being sent."""
    raw, memory = fresh_bytes(1000)
    memory[:] = 7
    gc.collect()
    del memory
    gc.collect()
    others = [fresh_bytes(1000) for _ in range(10)]
    for _, memory in others:
        memory[:] = 1
    assert raw == bytes((7,)) * 1000
