"""hnswlib: HNSW in process; removal is a mark, and new entries take the places of marked ones."""

import hnswlib
import numpy as np
from _adapter import serve


class Peer:
    """An index beside an array of values, in which the value of id i is at i modulo the room."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k = k
        self.index = hnswlib.Index(space="ip", dim=dim)
        self.index.init_index(max_elements=capacity, allow_replace_deleted=True)
        self.index.set_num_threads(threads)
        self.tune(effort)
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0

    def tune(self, effort):
        self.index.set_ef(effort)

    def add(self, keys, values):
        ids = np.arange(self.next, self.next + len(keys))
        self.index.add_items(keys, ids, replace_deleted=True)
        self.values[ids % len(self.values)] = values
        self.next += len(keys)

    def search(self, queries):
        found = self.index.knn_query(queries, k=self.k)[0].astype(np.int64)
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        for entry in range(self.first, self.first + number):
            self.index.mark_deleted(entry)
        self.first += number


serve(Peer)
