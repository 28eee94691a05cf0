"""Exact search over the tensors of a bank, in ways that `torch_choice` chooses among."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from recollect_server.engine import attention_torch
from recollect_server.engine.torch_merge import best_of, empty, merged

SCORES_BYTES_MAX = 256 * 1024 * 1024
"""Scores are made in tiles of so many bytes, and half-precision keys widened: it bounds the scratch."""

FAISS_TOP_K_MAX = 2048
"""A larger k aborts the process inside FAISS."""


class ExactSearch(Protocol):
    """One way to search and to attend. Heads are batched: H kv heads, N queries of each."""

    @property
    def name(self) -> str:
        """For settings, reports and tests."""
        ...

    def takes(self, top_k: int) -> bool:
        """Whether it can answer for so many neighbours."""
        ...

    def top_k_of(
        self, queries: Tensor, keys: Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[Tensor, Tensor]:
        """The best of the live slots.

        Args:
            queries: [H, N, D], of the keys' dtype.
            keys: [H, slots, D]; rows are contiguous.
            live: At most two slices of slots.
            top_k: May be more than there are.

        Returns:
            Scores float32 [H, N, K], best first, and slots int64; -inf and -1 where there is no entry.
        """
        ...

    def weigh(self, scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """softmax(scale * scores) v, for scores and slots as found in values [H, slots, Dv].

        Returns:
            Output float32 [H, N, Dv], 0 in a row without entries; LSE [H, N], -inf there.
        """
        ...


class ProductSearch:
    """A batched matrix product and a top-k, tile by tile. Runs anywhere."""

    name = "product"

    def takes(self, top_k: int) -> bool:
        """See `ExactSearch.takes`."""
        return top_k > 0

    def top_k_of(
        self, queries: Tensor, keys: Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.top_k_of`."""
        heads, count, dim = queries.shape
        rows_max = max(1, SCORES_BYTES_MAX // (4 * heads * max(dim, min(count, 256))))
        best = empty(queries, top_k)
        for segment in live:
            for first in range(segment.start, segment.stop, rows_max):
                block = keys[:, first : min(first + rows_max, segment.stop)]
                size = max(1, SCORES_BYTES_MAX // (4 * heads * block.shape[1]))
                for done in range(0, count, size):
                    part = slice(done, done + size)
                    scores = products(queries[:, part], block)
                    found, rows = scores.topk(min(top_k, block.shape[1]), dim=-1)
                    before = best[0][:, part], best[1][:, part]
                    best[0][:, part], best[1][:, part] = merged(before, (found, rows + first), top_k)
        return best

    def weigh(self, scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.weigh`."""
        return attention_torch.weigh(scores, slots, values, scale)


class FaissSearch:
    """`faiss.knn_gpu` for each head and slice, in place.

    Raises:
        RuntimeError: The FAISS that is installed is for the CPU.
    """

    name = "faiss"

    def __init__(self, device: torch.device) -> None:
        self._search = _knn_gpu(device)

    def takes(self, top_k: int) -> bool:
        """See `ExactSearch.takes`."""
        return top_k <= FAISS_TOP_K_MAX

    def top_k_of(
        self, queries: Tensor, keys: Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.top_k_of`."""
        scores, slots = empty(queries, top_k)
        if not queries.shape[1]:
            return scores, slots
        for head in range(queries.shape[0]):
            parts = []
            for segment in live:
                # FAISS pads beyond the rows and aborts on an empty database: ask for what there is.
                kept = min(top_k, segment.stop - segment.start)
                found, rows = self._search(queries[head], keys[head, segment], kept)
                # Where FAISS finds nothing it says row -1, and a score that is not -inf.
                parts.append((found.masked_fill(rows < 0, float("-inf")), rows + segment.start))
            if parts:
                found, rows = (torch.cat([part[i] for part in parts], dim=1) for i in range(2))
                scores[head], slots[head] = best_of(found, rows, top_k)
        return scores, slots

    def weigh(self, scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.weigh`."""
        return attention_torch.weigh(scores, slots, values, scale)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """q.k in float32 [H, N, n] of queries [H, N, D] and keys [H, n, D] in any storage."""
    if queries.is_cuda and queries.dtype is not torch.float32:
        return torch.bmm(queries, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(queries.float(), keys.float().transpose(1, 2))


def searches_for(device: torch.device) -> list[ExactSearch]:
    """The ways that there are on a device, the most dependable one first.

    Raises:
        RuntimeError: A GPU is asked for, but the FAISS that is installed is for the CPU.
    """
    if device.type != "cuda":
        return [ProductSearch()]
    ways: list[ExactSearch] = [FaissSearch(device), ProductSearch()]
    if has_triton():
        ways.append(fused_search())
    return ways


def fused_search() -> ExactSearch:
    """The Triton kernels.

    Raises:
        ModuleNotFoundError: Triton is not installed.
    """
    from recollect_server.engine.triton_fused import FusedSearch

    return FusedSearch()


def has_triton() -> bool:
    """Whether Triton is installed; PyTorch for CUDA brings it along."""
    return importlib.util.find_spec("triton") is not None


def faiss_has_gpu() -> bool:
    """Whether the FAISS that is installed was built for GPUs."""
    import faiss

    return hasattr(faiss, "StandardGpuResources")


class _Knn(Protocol):
    def __call__(self, queries: Tensor, keys: Tensor, top_k: int) -> tuple[Tensor, Tensor]: ...


def _knn_gpu(device: torch.device) -> _Knn:
    import faiss

    importlib.import_module("faiss.contrib.torch_utils")  # teaches FAISS to take tensors

    gpu: Any = faiss
    if not faiss_has_gpu():
        raise RuntimeError(
            "the FAISS that is installed has no GPU support; install recollect[gpu] in place of [cpu]"
        )
    # Not thread-safe, so one for the device's one thread.
    resources = gpu.StandardGpuResources()

    def search(queries: Tensor, keys: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        # Without the device entered, FAISS may read another card's stream and return garbage.
        with torch.cuda.device(device):
            scores, rows = gpu.knn_gpu(resources, queries, keys, top_k, metric=gpu.METRIC_INNER_PRODUCT)
        return scores.float(), rows

    return search
