"""Memorizing attention written out, without this package: dense, slow, float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from recollect_torch import MemorizingAttention


def project(layer: MemorizingAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values [B, Hq, T, D], with grouped heads already repeated."""

    def heads(weight: Tensor, count: int) -> Tensor:
        return torch.stack((x @ weight.T).chunk(count, dim=-1), dim=1)

    q = heads(layer.q_proj.weight, layer.heads)
    k = heads(layer.k_proj.weight, layer.kv_heads)
    v = heads(layer.v_proj.weight, layer.kv_heads)
    q = q / q.norm(dim=-1, keepdim=True) * layer.scale.view(1, -1, 1, 1)
    k = k / k.norm(dim=-1, keepdim=True)
    shared = [head * layer.kv_heads // layer.heads for head in range(layer.heads)]
    return q, k[:, shared], v[:, shared]


def causal(q: Tensor, k: Tensor) -> Tensor:
    """Scores [B, H, T, S], -inf in the future; the last T keys are the queries' own."""
    queries, keys = q.shape[2], k.shape[2]
    past = torch.arange(keys)[None, :] <= torch.arange(keys - queries, keys)[:, None]
    return torch.where(past, torch.einsum("bhtd,bhsd->bhts", q, k), float("-inf"))


def close(layer: MemorizingAttention, attended: Tensor) -> Tensor:
    """Heads back into one vector."""
    return torch.cat(attended.unbind(1), dim=-1) @ layer.out_proj.weight.T


def dense(
    layer: MemorizingAttention,
    x: Tensor,
    past: Tensor,
    *,
    combine: Literal["gate", "joint"],
    gate: Tensor | None,
) -> Tensor:
    """What the layer must give for x after it has seen all of `past` in its memory.

    Args:
        layer: Gives the weights.
        x: [B, T, dim].
        past: [B, N, dim]; its keys and values take no gradient.
        combine: Which softmax.
        gate: [H], the gate's logits.
    """
    q, k, v = project(layer, x)
    with torch.no_grad():
        _, old_k, old_v = project(layer, past)
    old_scores = torch.einsum("bhtd,bhsd->bhts", q, old_k)
    if combine == "joint":
        scores = torch.cat((old_scores, causal(q, k)), dim=-1)
        return close(layer, scores.softmax(-1) @ torch.cat((old_v, v), dim=2))
    assert gate is not None
    g = gate.sigmoid().view(1, -1, 1, 1)
    return close(layer, g * (old_scores.softmax(-1) @ old_v) + (1 - g) * (causal(q, k).softmax(-1) @ v))


def relative_error(came: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    came, wanted = came.detach(), wanted.detach()
    return float((came - wanted).norm() / wanted.norm())
