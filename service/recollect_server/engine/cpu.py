"""The CPU as a device."""

from __future__ import annotations

import logging
import os

import numpy as np

from recollect_server.domain.arrays import DenseArray, Float32, from_float32
from recollect_server.domain.ports import Store
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine import faiss_cpu, kernels
from recollect_server.engine.faiss_store import FaissStore
from recollect_server.engine.kernel_store import KernelStore

FEWEST = 4096
"""Numbers; of fewer, NumPy's own conversion takes less time than a call of the kernels."""

log = logging.getLogger(__name__)


class CpuDevice:
    """Implements the `Device` port.

    Args:
        threads: For one search; 0: as many as there are processors for.
        compiled: False searches with FAISS and NumPy, as where the kernels were not compiled.
    """

    name = "cpu"

    def __init__(
        self,
        *,
        threads: int = 0,
        compiled: bool = True,
    ) -> None:
        self._compiled = compiled and kernels.available()
        if self._compiled:
            kernels.use_threads(threads or len(os.sched_getaffinity(0)))
            log.info("searching on the CPU with the compiled kernels (%s)", kernels.instruction_set())
        elif threads:
            faiss_cpu.use_threads(threads)
        self._searcher = faiss_cpu.Searcher()

    def store(self, spec: NamespaceSpec) -> Store:
        """An empty store."""
        if self._compiled:
            return KernelStore(spec)
        return FaissStore(spec, self._searcher)

    def narrowed(self, values: Float32, dtype: Dtype) -> DenseArray:
        """See `Device.narrowed`."""
        if not self._compiled or values.size < FEWEST or dtype is Dtype.FLOAT32:
            return from_float32(values, dtype)
        rows = np.ascontiguousarray(values)
        return DenseArray(kernels.converted(rows, dtype=Dtype.FLOAT32, to_dtype=dtype), dtype)
