"""Candidates of a search: the best of them, what stands where there is none, and how many were found."""

from __future__ import annotations

import torch
from torch import Tensor

SCORE_ERROR = 1e-5
"""Of two products of the same vectors, as a part of the largest."""


def empty(queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Scores -inf and slots -1 [H, N, K] for queries [H, N, D]."""
    shape = (*queries.shape[:2], top_k)
    scores = torch.full(shape, float("-inf"), dtype=torch.float32, device=queries.device)
    return scores, torch.full(shape, -1, dtype=torch.int64, device=queries.device)


def best_of(scores: Tensor, slots: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best top_k of candidates [H, N, C], best first; padded with -inf and -1 where there are fewer.

    What has no score (-inf) is no entry, whatever its slot says.
    """
    kept = min(top_k, scores.shape[-1])
    best, order = scores.topk(kept, dim=-1)
    chosen = slots.gather(-1, order)
    if kept < top_k:
        missing = (0, top_k - kept)
        best = torch.nn.functional.pad(best, missing, value=float("-inf"))
        chosen = torch.nn.functional.pad(chosen, missing, value=-1)
    return best, chosen.masked_fill(best.isneginf(), -1)


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """The best of two sets of candidates."""
    scores = torch.cat([one[0], other[0]], dim=-1)
    return best_of(scores, torch.cat([one[1], other[1]], dim=-1), top_k)


def recall_of(found: Tensor, wanted: Tensor) -> float:
    """Share of the wanted neighbours that were found, by scores [H, N, K] alone: equal ones are as good."""
    present = wanted.isfinite()
    if not present.any():
        return 1.0
    error = SCORE_ERROR * wanted[present].abs().max()
    least = wanted.masked_fill(~present, float("inf")).amin(dim=-1, keepdim=True)
    return float((found >= least - error).sum() / present.sum())
