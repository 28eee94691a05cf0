"""The shipped checkpoint: trained for longer without memory, then given one (the paper's retrofit)."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from recollect_torch.demo.corpus import Document, standard_library
from recollect_torch.demo.optimizer import Optimizers, clip_gradients, warm_then_decay
from recollect_torch.transformer import MemorizingTransformer

SHIPPED = Path(__file__).parent / "stdlib.safetensors"
SEGMENT = 256
"""Tokens (bytes) of local context."""


def save(model: MemorizingTransformer, path: Path) -> None:
    """Writes the weights as float16, which is precise enough to go on from."""
    weights = {n: t.detach().half().contiguous() for n, t in model.state_dict().items() if n != "head.weight"}
    save_file(weights, str(path))


def load(model: MemorizingTransformer, path: Path = SHIPPED) -> None:
    """Reads weights that `save` wrote; gates keep their initial value, since no memory trained them."""
    weights = {n: t.float() for n, t in load_file(str(path)).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [n for n in missing if n != "head.weight" and ".combine." not in n]
    if missing or unexpected:
        raise ValueError(f"{path} is for another model: it lacks {missing} and has {unexpected} besides")


def pretrain(model: MemorizingTransformer, documents: tuple[Document, ...], *, steps: int, rows: int = 16,
             compiled: bool = False, path: Path | None = None, save_every: int = 250) -> None:
    """Trains on random windows of the documents, without memory and without order."""
    tokens = torch.from_numpy(np.concatenate([d.tokens for d in documents]))
    draw = torch.Generator().manual_seed(0)
    optimizers = Optimizers(model, factor=warm_then_decay(steps, warm=50, decay=steps // 3))
    forward = torch.compile(model) if compiled else model
    started, seen = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = _loss(forward, _windows(tokens, rows, draw))
        loss.backward()
        clip_gradients(model)
        optimizers.step()
        seen += loss.item()
        if step % 50 == 0:
            rate = step * rows * SEGMENT / (time.monotonic() - started)
            print(f"step {step:5d}  {seen / 50 / math.log(2):.3f} bits per byte  {rate:,.0f} bytes/s", flush=True)
            seen = 0.0
        if path is not None and (step % save_every == 0 or step == steps):
            save(model, path)


def _windows(tokens: Tensor, rows: int, draw: torch.Generator) -> Tensor:
    starts = torch.randint(0, tokens.numel() - SEGMENT, (rows, 1), generator=draw)
    return tokens[starts + torch.arange(SEGMENT + 1)].long()


def _loss(forward, ids: Tensor) -> Tensor:
    return F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the checkpoint that the demo starts from.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MemorizingTransformer()
    pretrain(model, standard_library().train, steps=options.steps, compiled=options.compile, path=options.out)


if __name__ == "__main__":
    main()
