"""Keys and values of what a search found, fetched a part at a time: all at once they hold up everybody."""

from __future__ import annotations

from recollect_server.domain import work
from recollect_server.domain.arrays import Int64, Raw
from recollect_server.domain.bank import Bank
from recollect_server.domain.steps import Steps


def fetch_pairs(bank: Bank, slots: Int64, keys: Raw, values: Raw) -> Steps[None]:
    """Fills in the pairs of a bank's slots.

    Args:
        bank: That was searched.
        slots: [Hq, T, K], -1 where there is no entry.
        keys: [Hq, T, K, Dk], or [..., 0] if they are not wanted.
        values: [Hq, T, K, Dv], or [..., 0].
    """
    heads, tokens, top_k = slots.shape
    each = work.gathered(heads * top_k, keys.shape[-1] + values.shape[-1])
    left, first = (yield 0), 0
    while first < tokens:
        size = min(tokens - first, max(1, left // each))
        part = slice(first, first + size)
        if keys.shape[-1]:
            bank.keys(slots[:, part], into=keys[:, part])
        if values.shape[-1]:
            bank.values(slots[:, part], into=values[:, part])
        first += size
        left = yield size * each
