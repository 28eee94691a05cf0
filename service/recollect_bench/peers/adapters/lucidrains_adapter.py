"""lucidrains' memorizing-transformers-pytorch: its KNNMemory, with room enough that it never overflows.

After its first overflow it forgets all that it held and its answers are wrong, so nothing is evicted here.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _adapter import serve
from memorizing_transformers_pytorch.knn_memory import KNNMemory


class Peer:
    """One KNNMemory of one index."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        torch.set_num_threads(threads)
        self.k = k
        self.folder = tempfile.TemporaryDirectory()
        file = str(Path(self.folder.name) / "memory.memmap")
        # Without worker processes: they would be sent the whole index for each call.
        self.memory = KNNMemory(dim, max_memories=capacity * 2, memmap_filename=file, multiprocessing=False)
        knn = self.memory.knns[0]
        search = knn.search

        # It returns no ids: they are noted as they pass, to judge its answers by.
        def noting(*args, **options):
            self.found = search(*args, **options)
            return self.found

        knn.search = noting
        self.tune(effort)

    def tune(self, effort):
        self.memory.knns[0].index.hnsw.efSearch = effort

    def add(self, keys, values):
        self.memory.add(torch.from_numpy(np.stack((keys, values), axis=1))[None])

    def search(self, queries):
        pairs, _ = self.memory.search(torch.from_numpy(queries)[None], self.k)
        return self.found, pairs[0, :, :, 1].numpy()


serve(Peer)
