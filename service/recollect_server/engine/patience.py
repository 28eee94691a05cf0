"""When lists are tried again that were given up."""

from __future__ import annotations

AT_FIRST, AT_LAST = 0.5, 4.0
"""With so many times the bank's entries written, lists are tried anew that were given up as its keys changed:
by then they are others. Each time that this is of no use, it takes twice as many, up to the second."""

GROWN = 2
"""With so many times the entries they are tried in any case."""


class Patience:
    """Of one head."""

    def __init__(self) -> None:
        self._given_up_at = self._written = 0  # entries then, and those written since
        self._times = AT_LAST

    def wrote(self, entries: int) -> None:
        """So many entries are new."""
        self._written += entries

    @property
    def has_given_up(self) -> bool:
        """Whether lists were of no use."""
        return self._given_up_at > 0

    def is_over(self, entries: int) -> bool:
        """Whether lists may be made, of so many entries."""
        return entries >= GROWN * self._given_up_at or self._written >= self._times * self._given_up_at

    def succeeded(self) -> None:
        """There are lists."""
        self._given_up_at = 0

    def gave_up(self, entries: int, *, keys_changed: bool) -> None:
        """Lists of so many entries are of no use, perhaps because keys are others than they were."""
        self._times = AT_FIRST if keys_changed else min(AT_LAST, 2 * self._times)
        self._given_up_at, self._written = entries, 0
