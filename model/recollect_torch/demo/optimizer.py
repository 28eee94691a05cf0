"""Muon for the hidden matrices, AdamW for everything else; one learning-rate factor for both."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

MATRIX_RATE = 4e-3
"""Learning rate of hidden matrices at factor 1, by Muon matched to AdamW's update size."""

OTHER_RATE = 3e-3
"""Learning rate of embeddings and norms at factor 1."""

SCALE_RATE = 3.0
"""Learning rate of attention scales and gates at factor 1. They are single numbers of size 10, and a larger
memory needs sharper attention soon: at the rate of the others they would hardly move."""


class Optimizers:
    """The optimizers of a model, stepped together.

    Args:
        model: What to train. Matrices inside `blocks` go to Muon.
    """

    def __init__(self, model: nn.Module) -> None:
        hidden = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
        scales = [p for n, p in model.named_parameters() if n.endswith(("attention.scale", "combine.bias"))]
        chosen = {id(p) for p in (*hidden, *scales)}
        other = [p for p in model.parameters() if id(p) not in chosen]
        muon = Muon(hidden, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self._optimizers: list[tuple[Optimizer, float]] = [
            (muon, MATRIX_RATE),
            (AdamW(other, lr=OTHER_RATE, weight_decay=0.0), OTHER_RATE),
            (AdamW(scales, lr=SCALE_RATE, weight_decay=0.0), SCALE_RATE),
        ]

    def step(self, factor: float) -> None:
        """Applies the gradients at `factor` times the learning rates, and clears them."""
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def clip_gradients(model: nn.Module, norm_max: float = 1.0) -> float:
    """Scales the gradients down to `norm_max`; returns the norm they had."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), norm_max))
