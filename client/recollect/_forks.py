"""What of a client is made anew where a process is forked: the child has its memory, and not its threads."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What holds locks, connections, or calls of other threads."""

    def forked(self) -> None:
        """In the child, before anything else: forgets what is the parent's. Locks may be held for ever."""


_made: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renewed_in_child(each: Forkable) -> None:
    """Has it told in each process that is forked from now on, as long as it lives."""
    _made.add(each)


def _forked() -> None:
    for each in list(_made):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
