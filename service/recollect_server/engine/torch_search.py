"""Exact search over tensors: `faiss.knn_gpu` on a GPU, a matrix product and a top-k elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(queries [N, D], keys [n, D], top_k <= n) -> scores float32 [N, K] descending, rows int64 [N, K]."""


def search_for(device: torch.device) -> Search:
    """The search for a device.

    Raises:
        RuntimeError: A GPU is asked for, but the FAISS that is installed is for the CPU.
    """
    return _gpu_search(device) if device.type == "cuda" else product_search


def faiss_has_gpu() -> bool:
    """Whether the FAISS that is installed was built for GPUs."""
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def product_search(queries: Tensor, keys: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Scores in float32 and their top-k."""
    scores, rows = (queries.float() @ keys.float().T).topk(top_k, dim=1)
    return scores, rows


def _gpu_search(device: torch.device) -> Search:
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
