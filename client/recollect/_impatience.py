"""Callers who had no time to find out: one alone says nothing of a server, many together do."""

from __future__ import annotations


class Impatience:
    """How long they waited in vain for something that others have, all of them since it was last there.

    Args:
        most_s: What is told by waits that come to so much.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._waited_s = 0.0

    def is_over(self, waited_s: float) -> bool:
        """Notes a wait in vain; whether it, with those before it, tells that there is nothing to wait for."""
        self._waited_s += waited_s
        if self._waited_s < self._most_s:
            return False
        self._waited_s = 0.0
        return True

    def was_wrong(self) -> None:
        """It was there."""
        self._waited_s = 0.0
