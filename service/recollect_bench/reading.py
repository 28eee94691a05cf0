"""Runs the demo's model over the demo's corpus and keeps what its memory layer computes. Needs PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recollect_bench.datasets import Floats
from recollect_torch import session
from recollect_torch.attention import MemorizingAttention
from recollect_torch.demo import checkpoint
from recollect_torch.demo.corpus import standard_library
from recollect_torch.demo.rows import SEGMENT
from recollect_torch.demo.run import CONFIG
from recollect_torch.transformer import MemorizingTransformer

ROWS = 16
"""Segments that are computed together; local attention sees the segment before, as in the demo."""


def read(first: int, tokens: int) -> tuple[Floats, Floats, Floats]:
    """Reads a part of the corpus, whose longest documents come first.

    Args:
        first: Byte of the corpus to begin with.
        tokens: How many; a multiple of ROWS * SEGMENT.

    Returns:
        Keys, values and queries [tokens, heads, head_dim], in the order of the text.

    Raises:
        ValueError: The corpus is shorter.
    """
    text = np.concatenate([document.tokens for document in standard_library().train])
    if len(text) < first + tokens:
        raise ValueError(f"the corpus has {len(text)} bytes, but {first + tokens} are wanted")
    model = MemorizingTransformer(CONFIG).eval()
    checkpoint.load(model)
    layer = next(m for m in model.modules() if isinstance(m, MemorizingAttention) and m.combine is not None)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(module: MemorizingAttention, inputs: tuple[Tensor, ...]) -> None:
        q, k, v = module._project(inputs[0])
        kept.append((k.half(), v.half(), q.half()))

    hook = layer.register_forward_pre_hook(keep)
    # Row r reads the r-th part of the text, so that each row goes on where it stopped.
    length = tokens // ROWS
    ids = torch.from_numpy(text[first : first + tokens].astype(np.int64).reshape(ROWS, length))
    with session(None, streams=[f"row-{row}" for row in range(ROWS)]) as reading, torch.no_grad():
        for start in range(0, length, SEGMENT):
            model(ids[:, start : start + SEGMENT])
            reading.commit()
    hook.remove()
    keys, values, queries = (_in_order(parts) for parts in zip(*kept, strict=True))
    return keys, values, queries


def _in_order(parts: tuple[Tensor, ...]) -> Floats:
    """[ROWS, heads, SEGMENT, D] of each step -> [ROWS * length, heads, D]."""
    whole = torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1)
    return whole.float().numpy()
