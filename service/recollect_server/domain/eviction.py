"""Eviction: which entries of a bank go. At capacity the oldest go (`Ring.push`); here are those asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.ring import Int64, Ring


@dataclass(frozen=True, slots=True)
class ByIds:
    """These entries, where they still exist."""

    ids: Int64

    def __post_init__(self) -> None:
        # In order, so that each of thousands of banks looks up its few entries in a million ids.
        object.__setattr__(self, "ids", np.sort(self.ids))


@dataclass(frozen=True, slots=True)
class Oldest:
    """So many, the oldest first."""

    entries: int


@dataclass(frozen=True, slots=True)
class BeforeSequence:
    """All whose id is smaller."""

    sequence: int


@dataclass(frozen=True, slots=True)
class OlderThan:
    """All that were added longer ago than this; kept to the second."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Everything:
    """All; the stream is forgotten and its memory freed."""


Selector = ByIds | Oldest | BeforeSequence | OlderThan | Everything


def in_words(selector: Selector) -> str:
    """What a selector selects, briefly, for the audit log."""
    match selector:
        case ByIds(ids):
            return f"{ids.size} ids"
        case Oldest(entries):
            return f"the oldest {entries}"
        case BeforeSequence(sequence):
            return f"before sequence {sequence}"
        case OlderThan(age_s):
            return f"older than {age_s:g} s"
        case Everything():
            return "all"


def as_text(selector: Selector) -> str:
    """A text of its own for each; of ids a digest, since NumPy shows but a few of many."""
    if isinstance(selector, ByIds):
        return f"ids {hashlib.blake2b(selector.ids.tobytes(), digest_size=16).hexdigest()}"
    return repr(selector)


def condemned(ring: Ring, selector: Selector, *, now_s: float) -> NDArray[np.bool_]:
    """Which live entries of a ring the selector names.

    Args:
        ring: The bank's bookkeeping.
        selector: What to evict.
        now_s: The time, in the clock that the entries were added by.

    Returns:
        bool [count], oldest first.
    """
    match selector:
        case ByIds(ids):
            live = ring.ids()
            places = np.searchsorted(ids, live).clip(max=max(0, ids.size - 1))
            return ids[places] == live if ids.size else np.zeros(ring.count, dtype=np.bool_)
        case Oldest(entries):
            return np.arange(ring.count) < entries
        case BeforeSequence(sequence):
            return ring.ids() < sequence
        case OlderThan(age_s):
            return ring.seconds() < now_s - age_s
        case Everything():
            return np.ones(ring.count, dtype=np.bool_)


def is_prefix(mask: NDArray[np.bool_]) -> bool:
    """Whether the condemned are the oldest without exception, so that no data has to move."""
    return not np.any(mask[1:] & ~mask[:-1])
