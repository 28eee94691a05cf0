"""milvus-lite: Milvus in process, in a file; a flat index by inner product."""

import tempfile
from pathlib import Path

import numpy as np
from _adapter import serve
from pymilvus import DataType, MilvusClient

BATCH = 5000


class Peer:
    """One collection. Values are looked up beside it: the most favourable way."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k = k
        self.folder = tempfile.TemporaryDirectory()
        self.client = MilvusClient(str(Path(self.folder.name) / "memory.db"))
        schema = self.client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        self.client.create_collection("memory", schema=schema, index_params=index)
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0

    def tune(self, effort):
        pass

    def add(self, keys, values):
        ids = np.arange(self.next, self.next + len(keys))
        self.values[ids % len(self.values)] = values
        rows = [{"id": int(i), "vector": key} for i, key in zip(ids, keys)]
        for i in range(0, len(rows), BATCH):
            self.client.insert("memory", rows[i : i + BATCH])
        self.next += len(keys)

    def search(self, queries):
        answers = self.client.search(
            "memory", list(queries), limit=self.k, search_params={"metric_type": "IP"}
        )
        found = np.array([[hit["id"] for hit in hits] for hits in answers], np.int64)
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        self.first += number
        self.client.delete("memory", filter=f"id < {self.first}")


serve(Peer)
