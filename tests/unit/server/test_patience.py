"""Waits for callers, bounded by one timer for all."""

from __future__ import annotations

import asyncio

import pytest

from recollect_server.rpc.patience import Patience


async def waits(patience: Patience, seconds: float) -> str:
    """How a wait of so many seconds ends."""
    try:
        with patience.wait():
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "ran out"
    return "done"


async def test_each_wait_has_its_own_end() -> None:
    """A wait that began later ends with the oldest, or one that is over ends another."""
    patience = Patience(0.2)
    first = [asyncio.create_task(waits(patience, seconds)) for seconds in (9.0, 0.0, 9.0)]
    await asyncio.sleep(0.1)
    later = asyncio.create_task(waits(patience, 0.15))
    assert await asyncio.gather(*first, later) == ["ran out", "done", "ran out", "done"]
    # Whoever waits after a pause finds a timer that has gone off with nobody there.
    await asyncio.sleep(0.3)
    assert await waits(patience, 9.0) == "ran out"


async def test_an_error_is_not_taken_for_a_wait_that_ran_out() -> None:
    """What fails while it is awaited is reported as a caller that was too slow, or is counted for ever."""
    patience = Patience(0.01)
    with pytest.raises(ZeroDivisionError), patience.wait():
        raise ZeroDivisionError
    await asyncio.sleep(0.05)
    assert await waits(patience, 0.0) == "done"


async def test_a_caller_that_leaves_is_no_caller_that_is_late() -> None:
    """A cancelled call is answered DEADLINE_EXCEEDED, and goes on."""
    patience = Patience(9.0)
    task = asyncio.create_task(waits(patience, 9.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_while_the_wait_runs_out_stays_cancelled() -> None:
    """The server's own stop is swallowed by a wait that runs out at the same moment."""
    patience = Patience(0.01)
    task = asyncio.create_task(waits(patience, 9.0))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, task.cancel)
    [ended] = await asyncio.gather(task, return_exceptions=True)
    assert ended == "ran out" or isinstance(ended, asyncio.CancelledError)
    assert await waits(patience, 0.0) == "done"
