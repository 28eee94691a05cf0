"""Attention over retrieved pairs, in PyTorch: the formulas of `attention_cpu`, on a GPU's tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from recollect_server.domain.spec import STEP_BYTES

GATHERED_BYTES_MAX = 512 * 1024 * 1024
"""Retrieved pairs are gathered in blocks of so many bytes, which bounds the scratch memory."""


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


def weigh(scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale * scores) v of what a search has found, gathered in blocks.

    Args:
        scores: float32 [H, N, K]; -inf where there is no entry.
        slots: int64 [H, N, K]; -1 where there is no entry.
        values: [H, slots, Dv], of any storage; rows of bytes are those of `int8_rows`.
        scale: Positive.

    Returns:
        Output float32 [H, N, Dv] and LSE [H, N], as in `attend`.
    """
    heads, count, top_k = scores.shape
    dim = width_of(values)
    output = torch.zeros((heads, count, dim), device=scores.device)
    lse = torch.full((heads, count), float("-inf"), device=scores.device)
    if not values.shape[1]:
        return output, lse
    size = max(1, GATHERED_BYTES_MAX // (4 * max(1, top_k * dim)))
    for head in range(heads):
        for first in range(0, count, size):
            part = slice(first, first + size)
            v = widened(values[head][slots[head, part].clamp(min=0)])  # [t, K, Dv]
            output[head, part], lse[head, part] = attend(scale * scores[head, part], v)
    return output, lse


def width_of(rows: Tensor) -> int:
    """Elements of stored rows."""
    return rows.shape[-1] - STEP_BYTES if rows.dtype is torch.uint8 else rows.shape[-1]


def widened(rows: Tensor) -> Tensor:
    """Stored rows in float32; those of bytes are those of `int8_rows`."""
    if rows.dtype is not torch.uint8:
        return rows.float()
    dim = width_of(rows)
    return rows[..., :dim].view(torch.int8).float() * rows[..., dim:].contiguous().view(torch.float32)


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
