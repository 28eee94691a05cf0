"""Two ways to join what the memory said with what the local window said."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """g * memory + (1 - g) * local with g = sigmoid(b_h) (Wu et al. 2022, section 3.2).

    Each side has a softmax of its own. Where a query found nothing (LSE -inf) the gate is closed, so
    that an empty memory leaves local attention as it is instead of scaling it down.

    Args:
        heads: One scalar each.
        init: Start of b_h; 0 in the paper.
    """

    def __init__(self, heads: int, *, init: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((heads,), float(init)))

    def forward(
        self, memory: Tensor, memory_lse: Tensor, *, local: Tensor, local_lse: Tensor | None
    ) -> Tensor:
        """memory, local: [B, H, T, Dv]; memory_lse: [B, H, T]; local_lse is not read."""
        del local_lse
        g = self.bias.sigmoid()[None, :, None].masked_fill(memory_lse.isneginf(), 0.0)  # [B, H, T]
        return torch.lerp(local, memory, g[..., None].to(local.dtype))


class JointSoftmax(nn.Module):
    """One softmax over local keys and retrieved keys, put together from the two halves.

    w = sigmoid(lse_memory - lse_local) is the share of the whole softmax that falls on the memory; it
    is exact, and 0 where the memory is empty.
    """

    def forward(
        self, memory: Tensor, memory_lse: Tensor, *, local: Tensor, local_lse: Tensor | None
    ) -> Tensor:
        """memory, local: [B, H, T, Dv]; memory_lse, local_lse: [B, H, T]."""
        if local_lse is None:
            raise ValueError("joint softmax needs the LSE of local attention; got None")
        w = (memory_lse - local_lse).sigmoid()[..., None].to(local.dtype)
        return torch.lerp(local, memory, w)
