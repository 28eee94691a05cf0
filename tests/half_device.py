"""A device whose index misses half of the entries, so that anybody sees who did not ask for exact search."""

from __future__ import annotations

from collections.abc import Sequence

from recollect_server.domain.arrays import DenseArray, Float32
from recollect_server.domain.ports import Attention, Device, Hits, IndexState, Store
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import Steps
from recollect_server.engine.row_by_row import RowByRow

STATE = IndexState(index="ivf", lists=64, probes=8, recall=0.5, sampled=1_000, reason="")
FALLEN_BACK = IndexState(reason="the keys lie too evenly for lists")


class HalfDevice:
    """Stores that look at the older half alone, unless the namespace or the call wants exact search."""

    def __init__(self, real: Device) -> None:
        self._real = real
        self.made: list[NamespaceSpec] = []

    @property
    def name(self) -> str:
        """See `Device.name`."""
        return self._real.name

    def store(self, spec: NamespaceSpec) -> Store:
        """See `Device.store`."""
        self.made.append(spec)
        return HalfStore(self._real.store(spec), spec.index)

    def narrowed(self, values: Float32, dtype: Dtype) -> DenseArray:
        """See `Device.narrowed`."""
        return self._real.narrowed(values, dtype)


class HalfStore(RowByRow):
    """All that a store is, by another one; with `AUTO` it says that it fell back."""

    def __init__(self, real: Store, index: IndexChoice) -> None:
        self._index = index
        self._real = real
        self.growing, self.touch, self.write = real.growing, real.touch, real.write
        self.compacting, self.clear = real.compacting, real.clear
        self.upkeep_work, self.upkeep, self.search_work = real.upkeep_work, real.upkeep, real.search_work
        self.keys, self.values, self.attend_backward = real.keys, real.values, real.attend_backward

    @property
    def index_state(self) -> IndexState:
        """See `Store.index_state`."""
        return {IndexChoice.IVF: STATE, IndexChoice.AUTO: FALLEN_BACK}.get(self._index, IndexState())

    @property
    def index_bytes(self) -> int:
        """See `Store.index_bytes`."""
        return self._real.index_bytes

    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """See `Store.search`."""
        return self._real.search(queries, self._seen(live, exact), top_k, exact=True)

    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """See `Store.attend`."""
        return self._real.attend(queries, self._seen(live, exact), top_k, scale=scale, exact=True)

    def _seen(self, live: Sequence[slice], exact: bool) -> Sequence[slice]:
        if exact or self._index is not IndexChoice.IVF:
            return live
        return [slice(each.start, (each.start + each.stop) // 2) for each in live]
