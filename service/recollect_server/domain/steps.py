"""Work on a device, cut into steps, so that a long call of one tenant does not hold up the others."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

Result = TypeVar("Result")

Steps = Generator[int, int, Result]
"""A piece of work that pauses now and then.

It yields what it has done since it last paused, in multiply-adds (`domain.work`), and is sent how many the
next step may take at most. That is a wish: a step that cannot be made smaller is done whole. Between two
steps others may run, but never another call of the same namespace. What changes something does so in the last
step, whole, after it has yielded what that will take: so it can be closed at any pause and has done nothing.
What is of use to who comes next yields `Kept`.
"""


class Kept(int):
    """What was done before a pause at which nobody gives the work up, though its caller has gone."""


UNBOUNDED = 2**62
"""For a step that nobody waits behind."""


def run_through(steps: Steps[Result]) -> Result:
    """Does all the steps at once, for callers that have the device to themselves."""
    try:
        next(steps)
        while True:
            steps.send(UNBOUNDED)
    except StopIteration as finished:
        result: Result = finished.value
        return result


def kept(steps: Steps[Result]) -> Steps[Result]:
    """The same steps, which are taken to their end once they have begun."""
    try:
        done = next(steps)
        while True:
            left = yield Kept(done)
            done = steps.send(left)
    except StopIteration as finished:
        result: Result = finished.value
        return result
    finally:
        steps.close()


def in_steps(steps: Steps[Result], each: int) -> Generator[int, None, Result]:
    """The same steps, of so much work each, within others that are not told how long they may be."""
    try:
        yield next(steps)
        while True:
            yield steps.send(each)
    except StopIteration as finished:
        result: Result = finished.value
        return result


def in_one_step(work: Callable[[], Result], *, multiply_adds: int = 0) -> Steps[Result]:
    """Work that cannot be cut."""
    yield multiply_adds
    return work()
