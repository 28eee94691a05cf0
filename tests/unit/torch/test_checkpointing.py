"""Activation checkpointing: forward runs twice, adds are staged once, the gradient stays the same."""

from __future__ import annotations

import gc
import threading
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recollect_torch import MemorizingAttention, session
from tests.unit.torch.conftest import MakeMemory
from tests.unit.torch.dense_memory import DenseMemory

STREAMS = ["a", "b"]
BOTH = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def make_layer(
    combine: Literal["gate", "joint"] = "gate", retrieval: Literal["attend", "fetch"] = "attend"
) -> MemorizingAttention:
    torch.manual_seed(3)
    return MemorizingAttention(16, 2, layer=1, combine=combine, retrieval=retrieval, xl_length=4).double()


def segment() -> Tensor:
    return torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)


@BOTH
@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_gradients_are_the_same_and_adds_are_staged_once(
    make_memory: MakeMemory,
    combine: Literal["gate", "joint"],
    retrieval: Literal["attend", "fetch"],
    reentrant: bool,
) -> None:
    """Checkpointing changes the gradient, or stores every token twice."""
    segments = [segment() for _ in range(3)]
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        layer = make_layer(combine, retrieval)
        with session(make_memory(), streams=STREAMS) as s:
            for x in segments:
                x.grad = None
                out = checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x)
                out.square().sum().backward()
                s.commit()
        found = [x.grad for x in segments] + [p.grad for p in layer.parameters()]
        gradients.append([g for g in found if g is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-9, atol=1e-12)


@BOTH
def test_a_recompute_stages_nothing(dense_memory: DenseMemory, reentrant: bool) -> None:
    """The second run of forward adds its tokens again."""
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        for _ in range(3):
            checkpoint(layer, segment(), use_reentrant=reentrant).sum().backward()
            s.commit()
        s.flush()
    assert dense_memory.stored("a", 1) == 18


@BOTH
def test_commit_before_backward_is_refused(dense_memory: DenseMemory, reentrant: bool) -> None:
    """Backward recomputes against another memory than forward saw, and trains on a wrong gradient."""
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        out = checkpoint(layer, segment(), use_reentrant=reentrant)
        s.commit()
        with pytest.raises(RuntimeError, match="backward before commit"):
            out.sum().backward()


@BOTH
def test_reset_before_backward_is_refused(dense_memory: DenseMemory, reentrant: bool) -> None:
    """Backward recomputes without the document that forward attended to."""
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        out = checkpoint(layer, segment(), use_reentrant=reentrant)
        s.reset([0])
        with pytest.raises(RuntimeError, match="backward before commit and reset"):
            out.sum().backward()
        s.rollback()


@BOTH
def test_backward_after_the_block_finds_its_session(dense_memory: DenseMemory, reentrant: bool) -> None:
    """A recompute outside of the block, or on a thread without context, runs without the memory."""
    layer = make_layer()
    x = segment()
    with session(dense_memory, streams=STREAMS) as s:
        layer(segment())
        s.flush()
        layer(x).square().sum().backward()
        s.rollback()
        out = checkpoint(layer, y := x.detach().clone().requires_grad_(), use_reentrant=reentrant)
        s.rollback()
    out.square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, rtol=1e-9)


@BOTH
def test_backward_on_another_thread_finds_its_session(dense_memory: DenseMemory, reentrant: bool) -> None:
    """On a GPU autograd recomputes on a thread of its own, which inherits no context."""
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        layer(segment())
        s.flush()
        x = segment()
        layer(x).square().sum().backward()
        s.rollback()
        out = checkpoint(layer, y := x.detach().clone().requires_grad_(), use_reentrant=reentrant)
        thread = threading.Thread(target=out.square().sum().backward)
        thread.start()
        thread.join()
        s.commit()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, rtol=1e-9)
    assert dense_memory.stored("a", 1) == 8


@BOTH
def test_a_forgotten_session_is_missed(dense_memory: DenseMemory, reentrant: bool) -> None:
    """A recompute whose session is gone silently trains without it."""
    layer = make_layer()

    def forward() -> Tensor:
        with session(dense_memory, streams=STREAMS) as s:
            out: Tensor = checkpoint(layer, segment(), use_reentrant=reentrant)
            s.rollback()
        return out

    out = forward()
    gc.collect()
    with pytest.raises(RuntimeError, match="session of this forward pass is gone"):
        out.sum().backward()


@BOTH
def test_a_model_without_session_is_checkpointed_as_ever(reentrant: bool) -> None:
    """Backward inside of somebody else's session picks that one up."""
    layer = make_layer()
    out = checkpoint(layer, x := segment(), use_reentrant=reentrant)
    with session(None, streams=["another", "batch", "size"]):
        out.square().sum().backward()
    y = x.detach().clone().requires_grad_()
    layer(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, rtol=1e-9)
