"""usearch: HNSW in process; removal marks entries, and keys of new ones take their places."""

import numpy as np
from _adapter import serve
from usearch.index import Index


class Peer:
    """An index beside an array of values, in which the value of id i is at i modulo the room."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k, self.threads = k, threads
        self.index = Index(ndim=dim, metric="ip", dtype="f32", expansion_search=effort)
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0

    def tune(self, effort):
        self.index.expansion_search = effort

    def add(self, keys, values):
        ids = np.arange(self.next, self.next + len(keys))
        self.index.add(ids.astype(np.uint64), keys, threads=self.threads)
        self.values[ids % len(self.values)] = values
        self.next += len(keys)

    def search(self, queries):
        found = self.index.search(queries, self.k, threads=self.threads).keys.astype(np.int64)
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        self.index.remove(np.arange(self.first, self.first + number, dtype=np.uint64), threads=self.threads)
        self.first += number


serve(Peer)
