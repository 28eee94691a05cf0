"""Muon for the hidden matrices, AdamW for everything else; one schedule for both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

MATRIX_RATE = 4e-3
"""Learning rate of hidden matrices at factor 1, by Muon matched to AdamW's update size."""

OTHER_RATE = 3e-3
"""Learning rate of embeddings, norms, scales and gates at factor 1."""


class Optimizers:
    """The two optimizers of a model, stepped together.

    Args:
        model: What to train. Matrices inside `blocks` go to Muon.
        factor: Step number to learning-rate factor.
    """

    def __init__(self, model: nn.Module, *, factor: Callable[[int], float]) -> None:
        hidden = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
        chosen = {id(p) for p in hidden}
        other = [p for p in model.parameters() if id(p) not in chosen]
        muon = Muon(hidden, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self._optimizers: list[Optimizer] = [muon, AdamW(other, lr=OTHER_RATE, weight_decay=0.0)]
        self._schedules = [LambdaLR(o, factor) for o in self._optimizers]

    def step(self) -> None:
        """Applies the gradients, clears them, and moves the schedule on by one step."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for schedule in self._schedules:
            schedule.step()


def warm_then_decay(steps: int, *, warm: int, decay: int, peak: float = 1.0) -> Callable[[int], float]:
    """A learning-rate factor: linear up for `warm` steps, flat, linear down over the last `decay`."""

    def factor(step: int) -> float:
        up = (step + 1) / max(1, warm)
        down = (steps - step) / max(1, decay)
        return peak * max(0.0, min(1.0, up, down))

    return factor


def clip_gradients(model: nn.Module, norm_max: float = 1.0) -> float:
    """Scales the gradients down to `norm_max`; returns the norm they had."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), norm_max))
