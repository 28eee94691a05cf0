"""Attention over the local window, with its log-sum-exp where one is asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(queries: int, keys: int, *, device: torch.device) -> Tensor:
    """True where the last `queries` of `keys` positions may look.

    Returns:
        bool [queries, keys].
    """
    offset = keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=offset)


def window_bias(
    queries: int, keys: int, *, xl_lengths: Tensor | None, bias: Tensor | None, like: Tensor
) -> Tensor | None:
    """Everything that is added to the local scores: causality, rows whose cache is short, position.

    Args:
        queries: T.
        keys: S = X + T, where the first X positions are the XL cache, right-aligned.
        xl_lengths: int64 [B], how many of the X cached positions each row has; None if X is 0.
        bias: [H, T, S] from a relative position bias, or None.
        like: Gives dtype and device.

    Returns:
        [1 or B, 1 or H, T, S], -inf where a query must not look; None where plain causality is all.
    """
    if bias is None and xl_lengths is None:
        return None
    visible = causal_mask(queries, keys, device=like.device)[None, None]  # [1, 1, T, S]
    if xl_lengths is not None:
        first = (keys - queries) - xl_lengths  # [B]
        cached = torch.arange(keys, device=like.device)[None, :] >= first[:, None]  # [B, S]
        visible = visible & cached[:, None, None, :]
    scores = torch.zeros((), dtype=like.dtype, device=like.device) if bias is None else bias[None]
    return torch.where(visible, scores, float("-inf"))


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k^T + bias) v over a causal window; scores are taken as they are, unscaled.

    Args:
        q: [B, H, T, Dk].
        k: [B, H, S, Dk], S >= T; the last T positions are the queries' own.
        v: [B, H, S, Dv].
        bias: From `window_bias`; None where S = T and plain causality is all.
        with_lse: Also return the log-sum-exp, with its gradient. PyTorch's fused kernel for CPU
            returns one that has none, so this path is explicit.

    Returns:
        Output [B, H, T, Dv] and LSE [B, H, T] or None.
    """
    if not with_lse:
        causal = bias is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=1.0), None
    scores = q @ k.transpose(-1, -2)  # [B, H, T, S]
    if bias is None:
        mask = causal_mask(q.shape[-2], k.shape[-2], device=q.device)
        scores = scores.masked_fill(~mask, float("-inf"))
    else:
        scores = scores + bias
    lse = scores.logsumexp(dim=-1)  # [B, H, T]
    return (scores - lse[..., None]).exp() @ v, lse
