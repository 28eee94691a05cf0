"""LanceDB, embedded: a table of keys and values on disk, searched without an index (its exact scan)."""

import tempfile

import lancedb
import numpy as np
import pyarrow as pa
from _adapter import serve


class Peer:
    """One table. Its threads are those of its own pools."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k, self.dims = k, (dim, value_dim)
        self.folder = tempfile.TemporaryDirectory()
        vector, value = (pa.list_(pa.float32(), size) for size in self.dims)
        self.schema = pa.schema([("id", pa.int64()), ("vector", vector), ("value", value)])
        self.table = lancedb.connect(self.folder.name).create_table("memory", schema=self.schema)
        self.first = self.next = 0

    def tune(self, effort):
        pass

    def add(self, keys, values):
        ids = pa.array(np.arange(self.next, self.next + len(keys)))
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), a.shape[1]) for a in (keys, values)]
        self.table.add(pa.Table.from_arrays([ids, *columns], schema=self.schema))
        self.next += len(keys)

    def search(self, queries):
        wanted = (
            self.table.search(list(queries), vector_column_name="vector").distance_type("dot").limit(self.k)
        )
        rows = wanted.select(["id", "value"]).to_arrow()
        order = np.argsort(np.asarray(rows["query_index"]), kind="stable")
        shape = (len(queries), self.k)
        ids = np.asarray(rows["id"])[order].reshape(shape)
        values = rows["value"].combine_chunks().flatten().to_numpy().reshape(-1, self.dims[1])
        return ids, values[order].reshape(*shape, self.dims[1])

    def evict(self, number):
        self.first += number
        self.table.delete(f"id < {self.first}")


serve(Peer)
