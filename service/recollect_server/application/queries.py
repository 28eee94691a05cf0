"""Queries as a bank reads them: in the dtype of its keys, however they came."""

from __future__ import annotations

import numpy as np

from recollect_server.domain import int8_rows, work
from recollect_server.domain.arrays import RAW_TYPES, DenseArray, from_float32
from recollect_server.domain.int8_rows import Int8Array
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.steps import Steps


def as_stored(queries: DenseArray | Int8Array, spec: NamespaceSpec) -> Steps[DenseArray]:
    """Queries [B, Hq, T, Dk], which have been validated; those of integers are widened, head by head."""
    yield work.moved(queries.raw.nbytes)
    if isinstance(queries, DenseArray):
        return queries
    raw = np.empty(queries.shape, RAW_TYPES[spec.dtype])
    for row, rows in enumerate(queries.raw):
        for head, of_head in enumerate(rows):
            raw[row, head] = from_float32(int8_rows.unpack(of_head), spec.dtype).raw
            yield work.moved(raw[row, head].nbytes)
    return DenseArray(raw, spec.dtype)
