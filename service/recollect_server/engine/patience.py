"""When lists are tried again that were given up."""

from __future__ import annotations

AT_FIRST, AT_LAST = 0.5, 4.0
"""With so many times the bank's entries written, lists are tried anew that were given up as its keys changed:
by then they are others. Each time that this is of no use it takes twice as many, up to the second."""

GROWN = 2
"""With so many times the entries they are tried in any case."""


class Patience:
    """Of one head."""

    def __init__(self) -> None:
        self._given_up_at = self._written = 0  # entries then, and those written since
        self._unchanged: int | None = None  # written since keys changed
        self._times = AT_LAST

    def wrote(self, entries: int) -> None:
        """So many entries are new."""
        self._written += entries
        if self._unchanged is not None:
            self._unchanged += entries

    def keys_change(self) -> None:
        """They are others than when lists were made."""
        self._unchanged = 0

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

    def gave_up(self, entries: int) -> None:
        """Lists of so many entries are of no use, perhaps because these are of two texts."""
        are_mixed = self._unchanged is not None and self._unchanged < entries
        self._times = AT_FIRST if are_mixed else min(AT_LAST, 2 * self._times)
        self._given_up_at, self._written = entries, 0
