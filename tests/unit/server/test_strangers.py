"""What tells keys of another text, and when lists are tried again that were given up."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.engine.patience import Patience
from recollect_server.engine.strangers import PARTS_MAX, TOLD, UNLIKE, Strangers

ENTRIES = 1000


def far(squared: float, size: int = 64) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Keys at such a squared distance, in squared radii."""
    return np.full(size, squared**0.5, dtype=np.float32)


def of_a_bank(usual: float = 1.2) -> Strangers:
    strangers = Strangers(ENTRIES)
    for _ in range(4):
        assert not strangers.are(far(usual), of=ENTRIES // 4)
    return strangers


def test_what_is_there_at_first_is_usual() -> None:
    """A bank whose keys lie far from all centroids, as those of a sphere do, would be all strangers."""
    strangers = of_a_bank(usual=4.0)
    assert not strangers.are(far(4.0), of=64)
    assert strangers.are(far(4.0 * UNLIKE + 0.5), of=64)


@pytest.mark.parametrize("size", [1, 3, TOLD, 500])
def test_a_change_is_told_within_a_few_keys(size: int) -> None:
    """Keys that come one by one never tell, or hundreds do not."""
    strangers = of_a_bank()
    told_after = next(n for n in range(0, 1000, size) if strangers.are(far(3.4, 1), of=size))
    assert told_after < TOLD


def test_one_odd_key_tells_nothing() -> None:
    """Every text has some: each would be multiplied with every query."""
    strangers = of_a_bank()
    for number in range(200):
        assert not strangers.are(far(8.0 if number % 20 == 0 else 1.0, 1), of=1)


def test_a_text_that_returns_is_known() -> None:
    """After one page of another text nothing is put into lists any more."""
    strangers = of_a_bank()
    assert strangers.are(far(3.4), of=512)
    assert not strangers.are(far(1.2), of=512)


def test_what_lists_without_a_radius_say_is_forgotten() -> None:
    """A list of equal keys has none: all others are infinitely far, and so is every later mean with them."""
    strangers = of_a_bank()
    assert strangers.are(np.full(8, np.inf, dtype=np.float32), of=8)
    assert [strangers.are(far(1.2), of=32) for _ in range(8)][-1] is False


def test_slow_changes_are_usual() -> None:
    """Keys that move a little all the time, as in training, end up in no list."""
    strangers = of_a_bank(usual=1.0)
    for number in range(300):
        assert not strangers.are(far(1.0 + number / 60), of=64)


def test_they_lie_in_few_parts() -> None:
    """A bank of two texts in turn would be thousands of small parts, each a call of the kernels."""
    strangers = of_a_bank()
    for number in range(3 * PARTS_MAX):
        if strangers.are(far(9.0), of=512):
            strangers.slots.add(slice(1000 * number, 1000 * number + 512))
        strangers.are(far(1.0), of=512)
    assert len(list(strangers.slots)) == PARTS_MAX


def waits(patience: Patience, entries: int) -> int:
    """Entries that are written until lists may be made."""
    written = 0
    while not patience.is_over(entries):
        patience.wrote(100)
        written += 100
    return written


def test_lists_are_tried_again_when_the_keys_are_others() -> None:
    """Four times the bank's entries go by, searched exactly, before lists are made of the new text."""
    patience = Patience()
    assert patience.is_over(ENTRIES)
    patience.keys_change()
    patience.wrote(ENTRIES // 4)
    patience.gave_up(ENTRIES)
    assert waits(patience, ENTRIES) == ENTRIES // 2
    assert patience.has_given_up
    patience.succeeded()
    assert not patience.has_given_up


def test_lists_of_no_use_are_tried_ever_less() -> None:
    """A bank for which they are never of use spends its time making them."""
    patience = Patience()
    patience.keys_change()
    waited = []
    for _ in range(6):
        patience.gave_up(ENTRIES)
        waited.append(waits(patience, ENTRIES))
    assert waited == [500, 500, 1000, 2000, 4000, 4000]


def test_lists_that_never_were_of_use_are_seldom_tried() -> None:
    """Keys without any order are taken for a text that changes."""
    patience = Patience()
    patience.gave_up(ENTRIES)
    assert waits(patience, ENTRIES) == 4 * ENTRIES


def test_a_bank_that_has_doubled_tries_them() -> None:
    """A bank that was too small for lists is searched exactly for as long as it grows."""
    patience = Patience()
    patience.gave_up(ENTRIES)
    assert not patience.is_over(2 * ENTRIES - 1)
    assert patience.is_over(2 * ENTRIES)
