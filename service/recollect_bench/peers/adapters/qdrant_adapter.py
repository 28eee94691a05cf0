"""qdrant-edge: Qdrant's shard in process, on disk, with its optimiser run once after the first load."""

import tempfile

import numpy as np
from _adapter import serve
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    Point,
    Query,
    QueryBatchRequest,
    QueryRequest,
    SearchParams,
    UpdateOperation,
)

BATCH = 4096
FIRST_LOAD = 4096


class Peer:
    """One shard. Values are looked up beside it: the most favourable way."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k = k
        self.folder = tempfile.TemporaryDirectory()
        config = EdgeConfig(EdgeVectorParams(size=dim, distance=Distance.Dot), max_search_threads=threads)
        self.shard = EdgeShard.create(self.folder.name, config)
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0
        self.tune(effort)

    def tune(self, effort):
        self.params = SearchParams(hnsw_ef=effort)

    def add(self, keys, values):
        ids = np.arange(self.next, self.next + len(keys))
        self.values[ids % len(self.values)] = values
        for i in range(0, len(keys), BATCH):
            pairs = zip(ids[i : i + BATCH].tolist(), keys[i : i + BATCH].tolist())
            self.shard.update(UpdateOperation.upsert_points([Point(n, key, {}) for n, key in pairs]))
        self.next += len(keys)
        if len(keys) > FIRST_LOAD:
            self.shard.optimize()

    def search(self, queries):
        wanted = [
            QueryRequest(self.k, query=Query.Nearest(query), with_payload=False, params=self.params)
            for query in queries.tolist()
        ]
        answers = self.shard.query_batch(QueryBatchRequest(wanted))
        found = np.array([[point.id for point in points] for points in answers], np.int64)
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        ids = list(range(self.first, self.first + number))
        self.shard.update(UpdateOperation.delete_points(ids))
        self.first += number


serve(Peer)
