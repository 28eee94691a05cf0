"""The checkpoint that the demo starts from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from recollect_torch import MemorizingTransformer
from recollect_torch.demo import checkpoint
from recollect_torch.demo.corpus import standard_library
from recollect_torch.demo.evaluation import evaluate
from recollect_torch.transformer import TransformerConfig

BYTES_MAX = 8_000_000


def test_it_is_shipped_and_small() -> None:
    """The checkpoint is missing from the repository, or makes it heavy."""
    assert checkpoint.SHIPPED.stat().st_size <= BYTES_MAX


def test_it_knows_python() -> None:
    """The checkpoint is of another model, and the demo starts from noise."""
    torch.manual_seed(0)
    model = MemorizingTransformer()
    untrained = evaluate(model, standard_library().held_out, memory=None, segments_max=4, title="untrained")
    checkpoint.load(model)
    trained = evaluate(model, standard_library().held_out, memory=None, segments_max=4, title="trained")
    assert untrained.bits_per_byte > math.log2(256) - 2
    assert trained.bits_per_byte < 2


def test_weights_come_back(tmp_path: Path) -> None:
    """A saved model is another one when it is loaded."""
    torch.manual_seed(0)
    model, other = MemorizingTransformer(), MemorizingTransformer()
    checkpoint.save(model, tmp_path / "m.safetensors")
    checkpoint.load(other, tmp_path / "m.safetensors")
    ids = torch.randint(0, 256, (1, 8))
    assert torch.allclose(model(ids), other(ids), atol=1e-2)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """A wrong file is loaded in part, without a word."""
    deeper = MemorizingTransformer(TransformerConfig(depth=5))
    checkpoint.save(deeper, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="another model"):
        checkpoint.load(MemorizingTransformer(), tmp_path / "m.safetensors")
