"""Plain exact FAISS with its own settings: IndexFlatIP, from which the oldest are removed."""

import faiss
import numpy as np
from _adapter import serve


class Peer:
    """An index in which row i holds the i-th oldest entry, and an array of values like it."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        faiss.omp_set_num_threads(threads)
        self.k = k
        self.index = faiss.IndexFlatIP(dim)
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0

    def tune(self, effort):
        pass

    def add(self, keys, values):
        self.index.add(keys)
        self.values[np.arange(self.next, self.next + len(keys)) % len(self.values)] = values
        self.next += len(keys)

    def search(self, queries):
        found = self.index.search(queries, self.k)[1] + self.first
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        self.index.remove_ids(faiss.IDSelectorRange(0, number))
        self.first += number


serve(Peer)
