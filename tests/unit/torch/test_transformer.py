"""The small language model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recollect_torch import MemorizingAttention, MemorizingTransformer, TransformerConfig, session
from recollect_torch._combine import Gate, JointSoftmax
from tests.unit.torch.conftest import MakeMemory

SMALL = TransformerConfig(vocabulary=17, dim=16, depth=3, heads=2, memory_layers=(1,))


def test_the_default_model_is_the_one_that_the_checkpoint_was_trained_for() -> None:
    """The shipped weights no longer load, or are read as another function."""
    model = MemorizingTransformer()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    block = {
        "attention_norm.weight": (192,),
        "attention.q_proj.weight": (192, 192),
        "attention.k_proj.weight": (192, 192),
        "attention.v_proj.weight": (192, 192),
        "attention.out_proj.weight": (192, 192),
        "attention.scale": (4,),
        "mlp_norm.weight": (192,),
        "mlp.0.weight": (768, 192),
        "mlp.2.weight": (192, 768),
    }
    wanted = {f"blocks.{n}.{name}": shape for n in range(4) for name, shape in block.items()}
    wanted |= {"embedding.weight": (256, 192), "norm.weight": (192,), "head.weight": (256, 192)}
    assert shapes == wanted | {"blocks.2.attention.combine.bias": (4,)}
    assert model.head.weight is model.embedding.weight
    assert model.parameter_count == 1_820_372
    layers = [module for module in model.modules() if isinstance(module, MemorizingAttention)]
    assert [layer.rotary is None for layer in layers] == [False, False, True, False]
    assert all(torch.equal(layer.scale, torch.full((4,), 8.0)) for layer in layers)


def test_one_seed_gives_one_start() -> None:
    """Gate or joint, with or without memory: runs that are compared do not start from the same weights."""
    starts: list[torch.Tensor] = []
    for config in (TransformerConfig(), TransformerConfig(combine="joint", xl_length=7)):
        torch.manual_seed(5)
        model = MemorizingTransformer(config)
        weights = [p for name, p in model.named_parameters() if ".combine." not in name]
        starts.append(torch.cat([p.detach().flatten() for p in weights]))
    assert torch.equal(*starts)


def test_only_memory_layers_combine() -> None:
    """Layers without memory carry gates that never train."""
    gates = MemorizingTransformer(TransformerConfig(depth=3, memory_layers=(0, 2)))
    joint = MemorizingTransformer(TransformerConfig(depth=3, memory_layers=(0, 2), combine="joint"))
    for model, kind in ((gates, Gate), (joint, JointSoftmax)):
        layers = [module for module in model.modules() if isinstance(module, MemorizingAttention)]
        assert [type(layer.combine) for layer in layers] == [kind, type(None), kind]


def test_a_memory_layer_beyond_the_depth_is_refused() -> None:
    """A typing mistake gives a model without memory."""
    with pytest.raises(ValueError, match="memory_layers"):
        TransformerConfig(depth=3, memory_layers=(3,))


def test_it_learns_to_recall_through_the_memory(make_memory: MakeMemory) -> None:
    """Forward, backward and commit together do not train a model that uses its memory."""
    model = MemorizingTransformer(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(0, 17, (4, 9))
    losses: list[float] = []
    with session(make_memory(), streams=["a", "b", "c", "d"]) as s:
        for step in range(60):
            if step % 2 == 0:
                s.reset()
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            s.commit()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    (gate,) = [module for module in model.modules() if isinstance(module, Gate)]
    assert gate.bias.count_nonzero().item() == 2


def test_causality_holds_through_the_stack(make_memory: MakeMemory) -> None:
    """A token sees what comes after it."""
    model = MemorizingTransformer(SMALL)
    ids = torch.randint(0, 17, (2, 8))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    with session(make_memory(), streams=["a", "b"]) as s:
        model(ids)
        s.commit()
        first, second = model(ids), model(changed)
        s.rollback()
    assert torch.allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-3)
