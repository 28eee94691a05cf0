"""A bank with an inverted file on the CPU, and brute force in float64 to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.bank import Bank
from recollect_server.domain.eviction import Selector
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine.kernel_store import KernelStore

DIM, CENTRES = 16, 60


class Mixture:
    """Keys around some centres.

    Args:
        seed: Another one, another mixture.
        noise: Of the keys, around centres whose elements have variance 1.
    """

    def __init__(self, seed: int = 0, *, noise: float = 0.3) -> None:
        self.rng = np.random.default_rng(seed)
        self._noise = noise
        self._centres = self.rng.standard_normal((CENTRES, DIM))

    def draw(self, size: int, *, heads: int = 1, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
        at = self.rng.integers(CENTRES, size=(heads, size))
        noise = self._noise * self.rng.standard_normal((heads, size, DIM))
        return from_float32((self._centres[at] + noise).astype(np.float32), dtype)


class IndexedBank:
    """A bank, and what it should hold.

    Args:
        capacity: Of its ring.
        recall: Asked for.
        index: Asked for.
        heads: Hkv.
        dtype: Of keys.
    """

    def __init__(
        self,
        capacity: int,
        *,
        recall: float = 0.95,
        index: IndexChoice = IndexChoice.IVF,
        heads: int = 1,
        dtype: Dtype = Dtype.FLOAT32,
    ) -> None:
        spec = NamespaceSpec((0,), heads, DIM, DIM, capacity, dtype, index, recall)
        self.store = KernelStore(spec)
        self.bank = Bank(spec, self.store, first_sequence=0, usage=Usage())
        self.heads, self.dtype = heads, dtype
        self._ids = np.zeros(0, np.int64)
        self._keys = np.zeros((heads, 0, DIM))

    @property
    def answers(self) -> str:
        """What answers reads: "ivf" or "exact"."""
        return self.bank.index_state.index

    @property
    def ids(self) -> NDArray[np.int64]:
        """Of the entries that are live."""
        return self._ids

    def add(self, keys: DenseArray) -> None:
        first, count = self.bank.ring.next_sequence, keys.shape[1]
        self.bank.add(keys, keys, now_s=0.0)
        self._ids = np.concatenate([self._ids, np.arange(first, first + count)])
        self._keys = np.concatenate([self._keys, keys.float32()], axis=1)
        self._keep(np.arange(max(0, self._ids.size - self.bank.spec.capacity), self._ids.size))

    def evict(self, selector: Selector) -> None:
        self.bank.evict(selector, now_s=0.0)
        self._keep(np.flatnonzero(np.isin(self._ids, self.bank.ring.ids())))

    def _keep(self, order: NDArray[np.int64]) -> None:
        self._ids, self._keys = self._ids[order], self._keys[:, order]

    def check(self, queries: DenseArray, top_k: int = 10, *, exact: bool = False) -> float:
        """The recall of a search. What it finds must be live, found once, and score as it says."""
        hits = run_through(self.bank.search(queries, top_k, exact=exact))
        ids = self.bank.ids(hits.slots)
        present = ids >= 0
        assert (present == ~np.isneginf(hits.scores)).all()
        assert np.isin(ids[present], self._ids).all(), "an entry that is not live"
        ordered = np.sort(np.where(present, ids, -1 - np.arange(top_k)), axis=-1)
        assert (np.diff(ordered, axis=-1) > 0).all(), "the same entry twice"
        assert (np.diff(np.where(present, hits.scores, -1e30), axis=-1) <= 0).all(), "not in order"
        count = min(top_k, self._ids.size)
        if not count:
            assert not present.any()
            return 1.0
        real = queries.float32().astype(np.float64) @ self._keys.transpose(0, 2, 1)
        order = np.searchsorted(self._ids, ids).clip(max=self._ids.size - 1)
        mine = np.take_along_axis(real, order, axis=-1)
        np.testing.assert_allclose(hits.scores[present], mine[present], rtol=1e-4, atol=1e-4)
        least = np.sort(real, axis=-1)[..., -count]
        good = present & (mine >= least[..., None] - 1e-4)
        recall = float(good.sum() / (good.shape[0] * good.shape[1] * count))
        if exact:
            assert recall == 1.0
        return recall

    def draw(self, made: Mixture, size: int) -> DenseArray:
        """Keys or queries, of the bank's shape."""
        return made.draw(size, heads=self.heads, dtype=self.dtype)

    def upkeep(self) -> None:
        """Does the background work that there is."""
        for _ in range(300):
            if not self.bank.upkeep_work:
                return
            run_through(self.bank.upkeep())
        raise AssertionError("the background work does not end")

    def read(self, made: Mixture, rounds: int = 40, *, queries: int = 64) -> None:
        """Searches, each with the background work after it."""
        for _ in range(rounds):
            run_through(self.bank.search(self.draw(made, queries), 10))
            self.upkeep()

    def trained(self, made: Mixture) -> IndexedBank:
        """Once it is an inverted file that answers."""
        self.read(made)
        assert self.answers == "ivf", self.bank.index_state
        return self
