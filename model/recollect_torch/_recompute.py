"""Activation checkpointing computes forward again, inside backward: which forward pass is it?

Autograd numbers its nodes as it makes them, each thread on its own, and a recompute runs inside of a node
that forward made. Reentrant checkpointing has one such node, made before the checkpointed part runs. The
other kind recomputes in the first node of that part that backward comes to: the last that was made. So the
node's number tells which forward pass is meant, in whichever order backward comes.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch._C._autograd import _get_sequence_nr
from torch.autograd.graph import Node

if TYPE_CHECKING:
    from recollect_torch._session import Session

STRETCHES_MAX = 256
"""Of a thread; forward passes of the oldest are refused when there are more."""

_OUTDATED = -1
"""A generation that no session has."""


class Moment(NamedTuple):
    """A point of a thread's time, by autograd's count.

    Attributes:
        thread: The thread's identifier.
        number: What the thread's next node is numbered.
    """

    thread: int
    number: int


def now() -> Moment:
    """This moment of this thread."""
    return Moment(threading.get_ident(), _get_sequence_nr())


def recomputing() -> bool:
    """Whether a backward pass is under way here: who computes forward then, computes it again."""
    return torch._C._current_graph_task_id() != -1


@dataclass(slots=True)
class Stretch:
    """Forward passes of one layer, one after the other, that met with the same.

    Attributes:
        session: What they ran in; None where they ran in none.
        generation: The session's then: how often it had moved on.
        answered: Whether the memory answered, if it was asked.
        first: No node that the first of them made has a lower number.
        last: The number at which the last of them began.
    """

    session: weakref.ref[Session] | None
    generation: int
    answered: bool
    first: int
    last: int

    def same_as(self, other: Stretch) -> bool:
        """Whether both met with the same."""
        return (
            self.session is other.session
            and self.generation == other.generation
            and self.answered == other.answered
        )


class History:
    """A layer's forward passes, for as long as one of them may be recomputed.

    Each thread has a list of its own, since its numbers mean nothing on another. Autograd's threads have
    none, and others may call backward for what they did not run: what is recomputed is looked for on the
    thread that ran forward last, too, and refused where the two say otherwise.

    Parts may be checkpointed inside of others. A recompute of the outer part is then what the inner part
    knows as forward, and autograd may have run it on a thread of its own; so what it was is kept here.
    """

    def __init__(self) -> None:
        self._of_thread: dict[int, list[Stretch]] = {}
        self._thread = 0
        self._inner: list[Stretch] = []  # reentrant ones that are computed again next, last first
        self._outer: tuple[Moment, Stretch] | None = None  # the reentrant recompute before this one

    def note(self, passed: Stretch, *, began: Moment, since: Moment | None) -> None:
        """A forward pass is over.

        Args:
            passed: What it met with, by itself.
            began: When it began.
            since: When what it met with began to hold, if that is known.
        """
        self._thread = began.thread
        self._inner.clear()
        self._outer = None
        stretches = self._of_thread.setdefault(began.thread, [])
        if stretches and stretches[-1].last > began.number:  # of another thread, which is gone
            stretches.clear()
        if stretches and stretches[-1].same_as(passed):
            stretches[-1].last = began.number
            return
        # What the checkpointed part computed before it came to this layer is its own too.
        after = stretches[-1].last if stretches else -1
        if since is not None and since.thread == began.thread and since.number > after:
            passed.first = min(passed.first, since.number)
        stretches.append(passed)
        if len(stretches) > STRETCHES_MAX:
            stretches[1].first, stretches[1].generation = stretches[0].first, _OUTDATED
            del stretches[0]

    def repeated(self) -> Stretch | None:
        """What the forward pass met with that is computed again now; None if no forward pass is known.

        Raises:
            RuntimeError: It may be one of this thread, or one of the thread that ran forward last.
        """
        node = _node()
        here = self._of_thread.get(threading.get_ident())
        last = self._of_thread.get(self._thread)
        if node is None:  # a callback, after the last
            stretches = here or last
            return stretches[-1] if stretches else None
        if not (here or last):
            return None
        moment, number = now(), node._sequence_nr()
        reentrant = "CheckpointFunction" in node.name()  # those of other libraries have the same name
        if reentrant and self._inner and torch.is_grad_enabled():
            stretch = self._inner.pop()
        elif not reentrant and self._outer is not None and _before(self._outer[0], moment.thread, number):
            stretch = self._outer[1]
        else:
            stretch = _only([_met(stretches, number, reentrant) for stretches in (here, last) if stretches])
        if not torch.is_grad_enabled():
            self._inner.append(stretch)
        elif reentrant:
            self._outer = moment, stretch
        return stretch


def _met(stretches: list[Stretch], number: int, reentrant: bool) -> Stretch:
    """What a thread's forward pass met with in which this node was made, if it was made there."""
    if reentrant:
        index = bisect_right(stretches, number, key=lambda stretch: stretch.last)
        return stretches[min(index, len(stretches) - 1)]
    index = bisect_right(stretches, number, key=lambda stretch: stretch.first) - 1
    return stretches[max(index, 0)]


def _only(found: list[Stretch]) -> Stretch:
    if not found[0].same_as(found[-1]):
        raise RuntimeError(
            "a layer is recomputed on a thread that ran it too, though another one ran it last, in another "
            "session or generation, so which forward pass is meant cannot be told: call backward on the "
            "thread that ran forward when activation checkpointing is on"
        )
    return found[0]


def _node() -> Node | None:
    """What backward is at on this thread."""
    return torch._C._current_autograd_node()


def _before(moment: Moment, thread: int, number: int) -> bool:
    return moment.thread == thread and moment.number <= number
