"""What searches take in the compiled kernels, in multiply-adds: so exact search and lists are compared.

Fitted to times of banks that other work has pushed out of the processor's caches, since questions seldom find
one there.
"""

from __future__ import annotations

from recollect_server.engine import kernels

CALL = 24_000_000
"""Of a search in lists, beside what follows."""

CENTROID = 2.5
"""Of an element of a centroid and a query: its products, and finding those that are large."""

PAIR = 440
"""Of looking with one query into one list, beyond what is in it."""

ROW = 40
"""Of an element of a key: to fetch it from anywhere, and to lay it out for the queries that share it."""

PRODUCT, SELECT = 0.7, 48
"""Of an element of a key and a query that shares it; and of the two, beyond their elements."""

ALONE = 17
"""Of an element of a key of the lists that a query asks by itself."""

FEW = 3
"""Of exact search: so many queries are multiplied with keys as they lie; for more, keys are laid out anew."""

ROUNDED_MIN = 24
"""So many queries may first be multiplied as rounded numbers, where the processor can (`rounded.h`)."""


def exact_work(queries: int, entries: int, dim: int) -> int:
    """What exact search takes, in the same measure as `InvertedFile.search_work` and as carefully."""
    each_key = (8.3 + 5.2 * (queries > FEW) + 0.75 * queries) * dim + 6.8 * queries
    if queries >= ROUNDED_MIN and kernels.rounds_first():
        each_key = min(each_key, (40 + 0.47 * queries) * dim + 4 * queries)
    return int(6_000_000 + 400_000 * queries + each_key * entries)


def rows_in(step: int, each: int) -> int:
    """How many rows that take `each` are a step of background work."""
    return max(64, step // max(1, each))
