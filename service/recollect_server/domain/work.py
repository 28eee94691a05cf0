"""How much work calls are, in multiply-adds of a large matrix product: estimates, for sharing a device.

What is not a product counts as so many of them as it takes as long as. The factors were measured on a
CPU; that they are rough does no harm, since every tenant's are rough alike.
"""

from __future__ import annotations

READ_AS_QUERIES = 8
"""To read a key from memory takes as long as to multiply it with so many queries."""

GATHERED = 32
"""Of a gathered element: random access, and the products that softmax(scores) v or its gradient are."""

MOVED = 12
"""Of a byte that is checked, copied or zeroed."""

NEW = 4
"""Times as much takes a byte that is copied to new memory, which the system clears first."""

BANK = 10_000
"""Of a bank whose entries are looked through for those that go."""

OBJECTS = 300_000
"""Of a bank that is described or freed, whatever it holds: it is made of many small objects."""

CALL = 4_000_000
"""Of a call, however small: its dispatch, its checks, its answer."""


def searched(queries: int, entries: int, dim: int) -> int:
    """To multiply `queries` with `entries` keys of `dim` elements, and to keep the best."""
    return (queries + READ_AS_QUERIES) * entries * dim


def gathered(pairs: int, dim: int) -> int:
    """To fetch `pairs` rows of `dim` elements from anywhere, and to weigh them."""
    return GATHERED * pairs * dim


def moved_to_new(size_bytes: int) -> int:
    """To copy so many bytes to memory that was not used yet."""
    return NEW * MOVED * size_bytes


def moved(size_bytes: int) -> int:
    """To check or copy so many bytes."""
    return MOVED * size_bytes
