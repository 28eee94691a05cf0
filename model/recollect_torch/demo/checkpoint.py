"""The shipped checkpoint: trained for longer without memory, so that the demo can give it one."""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from recollect_torch.demo.corpus import Document, standard_library
from recollect_torch.demo.optimizer import Optimizers, clip_gradients
from recollect_torch.demo.rows import SEGMENT
from recollect_torch.transformer import MemorizingTransformer

SHIPPED = Path(__file__).parent / "stdlib.safetensors"

STEPS = 5000
ROWS = 16
WARM_STEPS = 50
DECAY = 1 / 3
"""Share of the run, at its end, in which the learning rate goes down to nothing."""

SAVE_EVERY = 250
RECENT = 50


def save(model: MemorizingTransformer, path: Path) -> None:
    """Writes the weights as float16, which is precise enough to go on from."""
    weights = model.state_dict()
    tied = {"head.weight"}
    save_file({n: t.half().contiguous() for n, t in weights.items() if n not in tied}, str(path))


def load(model: MemorizingTransformer, path: Path = SHIPPED) -> None:
    """Reads weights that `save` wrote. Gates keep their initial value, since no memory trained them.

    Raises:
        ValueError: The file is of another model.
    """
    weights = {n: t.float() for n, t in load_file(str(path)).items() if ".combine." not in n}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [n for n in missing if n != "head.weight" and ".combine." not in n]
    if missing or unexpected:
        raise ValueError(f"{path} is for another model: it lacks {missing} and has {unexpected} besides")


def pretrain(
    model: MemorizingTransformer,
    documents: Sequence[Document],
    *,
    steps: int | None = None,
    seconds: float = 0.0,
    seed: int = 0,
    compiled: bool = False,
    path: Path | None = None,
) -> None:
    """Trains on random windows of the documents, without memory and without order.

    Args:
        model: Trained in place.
        documents: To draw windows from, each byte as likely as any other.
        steps: Of `ROWS` windows of `SEGMENT` bytes; None: as many as fit `seconds`.
        seconds: How long, if not by steps.
        seed: Of the windows.
        compiled: Faster; needs a C++ compiler.
        path: Where to save now and then, and at the end.
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.concatenate([d.tokens for d in documents]))
    draw = torch.Generator().manual_seed(seed)
    optimizers = Optimizers(model)
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    recent: deque[float] = deque(maxlen=RECENT)
    started = time.monotonic()
    model.train()
    with tqdm(desc="pretraining", unit="step", total=steps, mininterval=1.0) as bar:
        while True:
            done = bar.n / steps if steps is not None else (time.monotonic() - started) / seconds
            if done >= 1:
                break
            ids = _windows(tokens, draw).to(device)  # [B, T + 1]
            loss = F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            clip_gradients(model)
            optimizers.step(min((bar.n + 1) / WARM_STEPS, 1.0, (1 - done) / DECAY))
            recent.append(loss.item() / math.log(2))
            bar.set_postfix_str(f"{sum(recent) / len(recent):.3f} bits per byte", refresh=False)
            bar.update()
            if path is not None and bar.n % SAVE_EVERY == 0:
                save(model, path)
    if path is not None:
        save(model, path)


def _windows(tokens: Tensor, draw: torch.Generator) -> Tensor:
    starts = torch.randint(0, tokens.numel() - SEGMENT, (ROWS, 1), generator=draw)
    return tokens[starts + torch.arange(SEGMENT + 1)].long()


def main() -> None:
    """The command behind `make checkpoint`."""
    parser = argparse.ArgumentParser(description="Train the checkpoint that the demo starts from.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    options = parser.parse_args()
    torch.manual_seed(0)
    pretrain(
        MemorizingTransformer(),
        standard_library().train,
        steps=options.steps,
        compiled=options.compile,
        path=options.out,
    )


if __name__ == "__main__":
    main()
