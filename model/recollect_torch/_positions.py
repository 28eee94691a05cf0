"""Positions inside the local window: rotary (RoPE) or a learned relative bias.

Memory never sees a position: keys are stored as they are before rotation, so that an entry means the
same at any distance (Wu et al. 2022, section 3.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RotaryPosition(nn.Module):
    """Rotary position embedding (Su et al. 2021, equation 34), halves convention.

    Args:
        head_dim: Dk, even.
        theta: Base of the geometric series of wavelengths.
    """

    def __init__(self, head_dim: int, *, theta: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim is {head_dim}; RoPE rotates pairs, so it must be even")
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, *, start: int) -> Tensor:
        """Rotates x, whose first position is `start`.

        Args:
            x: [B, H, T, Dk].
            start: Position of x[:, :, 0].

        Returns:
            [B, H, T, Dk], same dtype.
        """
        positions = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)
        # Computed here, in float32: a buffer would be rounded with the model, and angles be off by radians.
        exponents = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32) / self.head_dim
        angles = torch.outer(positions, self.theta**-exponents)  # [T, Dk/2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class RelativePositionBias(nn.Module):
    """One learned bias per head and distance bucket, added to the local scores.

    Buckets are exact up to half of `buckets` and logarithmic beyond (Raffel et al. 2020, section 2.1;
    the form that the Memorizing Transformer uses).
    """

    def __init__(self, heads: int, *, buckets: int = 32, distance_max: int = 1024) -> None:
        super().__init__()
        self.buckets, self.distance_max = buckets, distance_max
        self.bias = nn.Parameter(torch.zeros(buckets, heads))

    def bucket_of(self, distance: Tensor) -> Tensor:
        """Maps distances (int64, any shape, >= 0) to bucket numbers of the same shape."""
        exact = self.buckets // 2
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.distance_max / exact)
        far = (exact + (ratio * (self.buckets - exact)).long()).clamp(max=self.buckets - 1)
        return torch.where(distance < exact, distance, far)

    def forward(self, queries: int, keys: int) -> Tensor:
        """The bias of the last `queries` positions against `keys` positions.

        Returns:
            [H, queries, keys].
        """
        device = self.bias.device
        q_position = torch.arange(keys - queries, keys, device=device)[:, None]
        k_position = torch.arange(keys, device=device)[None, :]
        distance = (q_position - k_position).clamp(min=0)
        return self.bias[self.bucket_of(distance)].permute(2, 0, 1)
