"""Documents as batch rows."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_torch.demo.corpus import Document
from recollect_torch.demo.rows import SEGMENT, DocumentRows


def documents(*sizes: int) -> list[Document]:
    """Documents whose bytes tell which document they are of."""
    return [Document(f"d{i}", np.full(size, i, dtype=np.uint8)) for i, size in enumerate(sizes)]


def test_rows_read_on_where_they_stopped() -> None:
    """A memory is filled with segments that are not the text before."""
    text = np.arange(3 * SEGMENT + 1, dtype=np.int64) % 251
    rows = DocumentRows([Document("d", text.astype(np.uint8))], rows=1, seed=0)
    batches = [rows.next() for _ in range(3)]
    assert [b.started for b in batches] == [(0,), (), ()]
    assert np.concatenate([b.ids[0].numpy() for b in batches]).tolist() == text[:-1].tolist()
    assert np.concatenate([b.targets[0].numpy() for b in batches]).tolist() == text[1:].tolist()


def test_a_row_that_starts_a_document_says_so() -> None:
    """A row goes on with the memory of another document."""
    rows = DocumentRows(documents(3 * SEGMENT, 2 * SEGMENT), rows=2, seed=0)
    seen: list[int | None] = [None, None]
    for _ in range(12):
        batch = rows.next()
        for row in range(2):
            document = int(batch.ids[row, 0])
            assert (batch.ids[row] == document).all()
            if row not in batch.started:
                assert document == seen[row]
            seen[row] = document


def test_the_seed_decides_the_order() -> None:
    """Control and continuation see different data, or all seeds see the same."""
    many = documents(*range(9 * SEGMENT, SEGMENT, -64))
    first, again, other = (DocumentRows(many, rows=4, seed=seed) for seed in (1, 1, 2))
    orders = [[rows.next().ids[:, 0].tolist() for _ in range(20)] for rows in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]


def test_documents_shorter_than_a_segment_are_refused() -> None:
    """A row waits for ever for a document that is long enough."""
    with pytest.raises(ValueError, match="256"):
        DocumentRows(documents(SEGMENT), rows=1, seed=0)
