"""How a search is cut: a tile is some queries times some keys, as large as the next step may be.

Keys are the outer loop and queries the inner one, so that what it takes to get at a block of keys (widening
half precision, copying) is done once for all queries.
"""

from __future__ import annotations

from collections.abc import Callable

from recollect_server.domain.steps import Steps
from recollect_server.domain.work import READ_AS_QUERIES

TILE_QUERIES = 256
"""A small tile has at most so many queries, and at least `TILE_ROWS_MIN` keys: thinner products are slow."""

TILE_ROWS_MIN = 1024


def rows_of_tile(left: int, *, queries: int, rows: int, dim: int) -> int:
    """How many of the next `rows` keys to take for `queries`, if a step may take `left` multiply-adds."""
    if (queries + READ_AS_QUERIES) * rows * dim <= left:
        return rows
    fitting = left // ((min(queries, TILE_QUERIES) + READ_AS_QUERIES) * dim)
    return min(rows, max(TILE_ROWS_MIN, fitting))


def queries_of_tile(left: int, *, queries: int, rows: int, dim: int) -> int:
    """How many of the `queries` that remain to take for a block of `rows` keys; at least one."""
    fitting = left // (rows * dim) - READ_AS_QUERIES
    # A last sliver would cost more than the little that it exceeds the wish by.
    return queries if 5 * fitting >= 4 * queries else max(1, fitting)


def tokens_of_part(left: int, *, tokens: int, each: int, most: int) -> int:
    """How many of `tokens` that take `each` multiply-adds to do in one step; from 1 to `most`."""
    return min(tokens, most, max(1, left // each))


def in_parts(
    heads: int, tokens: int, *, each: int, most: int, do: Callable[[int, slice], None]
) -> Steps[None]:
    """Does something for the tokens of each head, as many of them in a step as it may take.

    Args:
        heads: How many.
        tokens: Of each head.
        each: Multiply-adds of one token.
        most: Tokens of a step.
        do: Given a head and which of its tokens.
    """
    left = yield 0
    for head in range(heads):
        first = 0
        while first < tokens:
            size = tokens_of_part(left, tokens=tokens - first, each=each, most=most)
            do(head, slice(first, first + size))
            first += size
            left = yield size * each
