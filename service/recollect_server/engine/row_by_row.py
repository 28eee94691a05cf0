"""Reads of several banks, for stores that have no way to do them together; and their answers as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect_server.domain.arrays import DenseArray
from recollect_server.domain.ports import Attention, Store
from recollect_server.domain.steps import Steps


class RowByRow:
    """Part of a store: one row after another."""

    __slots__ = ()

    def attend_rows(
        self,
        rows: Sequence[tuple[Store, Sequence[slice]]],
        queries: DenseArray,
        top_k: int,
        *,
        scale: float,
        exact: bool = False,
    ) -> Steps[Attention]:
        """See `Store.attend_rows`."""
        found = []
        for row, (store, live) in enumerate(rows):
            asked = queries.row(row)
            found.append((yield from store.attend(asked, live, top_k, scale=scale, exact=exact)))
        return stacked(found)


def stacked(found: Sequence[Attention]) -> Attention:
    """Rows as one."""
    return Attention(
        output=np.stack([row.output for row in found]),
        lse=np.stack([row.lse for row in found]),
        slots=np.stack([row.slots for row in found]),
    )


def joined(parts: Sequence[Attention]) -> Attention:
    """Rows of all, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Attention(
        output=np.concatenate([part.output for part in parts]),
        lse=np.concatenate([part.lse for part in parts]),
        slots=np.concatenate([part.slots for part in parts]),
    )
