"""Attention over retrieved pairs, in PyTorch: the formulas of `attention_cpu`, on a GPU's tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(scores) v.

    Args:
        scores: float32 [T, K], already scaled; -inf where there is no entry.
        values: float32 [T, K, Dv], finite everywhere.

    Returns:
        Output [T, Dv], 0 in a row without entries; LSE [T], -inf there.
    """
    lse = scores.logsumexp(dim=-1)
    p = (scores - _finite(lse)[:, None]).exp()
    return torch.bmm(p[:, None, :], values)[:, 0], lse


def attend_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    present: Tensor,
    scale: float,
    grad_output: Tensor,
    grad_lse: Tensor | None,
) -> Tensor:
    """ds_i = p_i (go.v_i - go.o + glse); dq = scale sum_i ds_i k_i. Shapes as in `attention_cpu`."""
    products = torch.bmm(keys, queries[:, :, None])[:, :, 0]  # [T, K]
    scores = torch.where(present, scale * products, float("-inf"))
    p = (scores - _finite(scores.logsumexp(dim=-1))[:, None]).exp()
    dp = torch.bmm(values, grad_output[:, :, None])[:, :, 0]  # [T, K]: go.v_i
    shared = (p * dp).sum(dim=-1)  # [T]: go.o
    if grad_lse is not None:
        shared = shared - grad_lse
    ds = p * (dp - shared[:, None])
    return scale * torch.bmm(ds[:, None, :], keys)[:, 0]


def _finite(lse: Tensor) -> Tensor:
    # -inf - -inf would be NaN; with 0 instead, exp(-inf) is the 0 that is meant.
    return lse.masked_fill(lse.isneginf(), 0.0)
