"""Chroma: its server on loopback, HNSW by inner product; it has no place for values, so they stay here."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chromadb
import numpy as np
from _adapter import serve


class Peer:
    """One collection. Values are looked up beside it: the most favourable way."""

    def __init__(self, dim, value_dim, capacity, k, threads, effort):
        self.k = k
        self.folder = tempfile.TemporaryDirectory()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", self.folder.name]
        self.server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
        for _ in range(60):
            try:
                client = chromadb.HttpClient(
                    "127.0.0.1", port, settings=chromadb.Settings(anonymized_telemetry=False)
                )
                break
            except ValueError:
                time.sleep(0.5)
        hnsw = {"space": "ip", "ef_search": effort, "num_threads": threads}
        self.collection = client.create_collection("memory", configuration={"hnsw": hnsw})
        self.most = min(5000, client.get_max_batch_size())
        self.values = np.zeros((capacity * 2, value_dim), np.float32)
        self.first = self.next = 0

    def tune(self, effort):
        self.collection.modify(configuration={"hnsw": {"ef_search": effort}})

    def add(self, keys, values):
        ids = np.arange(self.next, self.next + len(keys))
        self.values[ids % len(self.values)] = values
        for i in range(0, len(keys), self.most):
            self.collection.add(
                ids=[str(n) for n in ids[i : i + self.most]], embeddings=keys[i : i + self.most]
            )
        self.next += len(keys)

    def search(self, queries):
        answers = self.collection.query(query_embeddings=queries, n_results=self.k, include=[])
        found = np.array([[int(n) for n in ids] for ids in answers["ids"]], np.int64)
        return found, self.values[found % len(self.values)]

    def evict(self, number):
        self.collection.delete(ids=[str(n) for n in range(self.first, self.first + number)])
        self.first += number

    def close(self):
        self.server.kill()
        self.server.wait()


serve(Peer)
