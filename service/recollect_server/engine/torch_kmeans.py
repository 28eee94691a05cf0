"""Centroids of an inverted file: spherical k-means on a sample, in steps."""

from __future__ import annotations

import torch
from torch import Tensor

from recollect_server.domain.steps import Steps

ROUNDS = 6
CHUNK_ELEMENTS = 16 * 1024 * 1024
"""Products with the centroids are made so many at a time."""


def centroids_of(sample: Tensor, lists: int, *, generator: torch.Generator) -> Steps[Tensor]:
    """Unit vectors float32 [lists, D] that rows of the sample [m, D] are near to; m >= lists.

    Yields the multiply-adds of each chunk.
    """
    rows, dim = sample.shape
    chosen = torch.randperm(rows, generator=generator)[:lists].to(sample.device)
    centroids = unit(sample[chosen].float())
    for _ in range(ROUNDS):
        sums, counts = torch.zeros_like(centroids), torch.zeros(lists, device=sample.device)
        size = chunk_rows(lists)
        for first in range(0, rows, size):
            block = unit(sample[first : first + size].float())
            nearest = (block @ centroids.T).argmax(dim=1)
            sums.index_add_(0, nearest, block)
            counts += torch.bincount(nearest, minlength=lists)
            yield block.shape[0] * lists * dim
        # A centroid that nothing is near to starts again at some row, likely one where many are.
        anew = torch.randint(rows, (lists,), generator=generator).to(sample.device)
        centroids = unit(torch.where((counts > 0)[:, None], sums, sample[anew].float()))
    return centroids


def nearest_of(keys: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Of keys [H, T, D] and centroids [H, L, D]: the list of each key int64 [H, T], and its cosine there."""
    cosines, lists = [], []
    size = chunk_rows(centroids.shape[1] * centroids.shape[0])
    for first in range(0, keys.shape[1], size):
        block = unit(keys[:, first : first + size].float())
        best, at = torch.bmm(block, centroids.transpose(1, 2)).max(dim=-1)
        cosines.append(best)
        lists.append(at)
    return torch.cat(lists, dim=1), torch.cat(cosines, dim=1)


def chunk_rows(lists: int) -> int:
    """How many rows to multiply with so many centroids at once."""
    return max(1, CHUNK_ELEMENTS // max(1, lists))


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a zero stays zero."""
    # First by the largest element: the square of a large one would be infinite.
    rows = rows / rows.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.nn.functional.normalize(rows, dim=-1)
