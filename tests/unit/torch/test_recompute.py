"""Several forward passes before one backward: each is computed again as it was, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import recollect
from recollect_torch import MemorizingAttention, _recompute, session
from recollect_torch._outage import Outage
from tests.unit.torch.conftest import MakeMemory, make_dense
from tests.unit.torch.dense_memory import DenseMemory
from tests.unit.torch.reference import causal, close, dense, project, relative_error
from tests.unit.torch.unreliable_memory import Unreliable

Forward = Callable[[Tensor], Tensor]
STREAMS = ["a", "b"]
AWAY = recollect.UnavailableError("gone")
BOTH = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def make_layer(
    *, retrieval: Literal["attend", "fetch"] = "attend", xl_length: int = 0
) -> MemorizingAttention:
    torch.manual_seed(3)
    layer = MemorizingAttention(16, 2, layer=1, combine="joint", retrieval=retrieval, xl_length=xl_length)
    return layer.double()


def segment(tokens: int = 6) -> Tensor:
    return torch.randn(2, tokens, 16, dtype=torch.float64, requires_grad=True)


def wanted(layer: MemorizingAttention, x: Tensor, past: Tensor | None) -> Tensor:
    """What the layer gives after `past`, or alone, by the reference."""
    if past is not None:
        return dense(layer, x, past, combine="joint", gate=None)
    q, k, v = project(layer, x)
    return close(layer, causal(q, k).softmax(-1) @ v)


def gradient(layer: nn.Module) -> Tensor:
    """Of all parameters, which forget it."""
    found = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
    layer.zero_grad()
    return found


@BOTH
def test_a_backward_that_may_be_anybodys_is_refused(dense_memory: DenseMemory, reentrant: bool) -> None:
    """After a warm-up here, what a worker ran in a session is recomputed without it, and nobody is told."""
    layer = make_layer()
    layer(segment()).sum()
    losses: list[Tensor] = []
    open_still: list[object] = []

    def work() -> None:
        with session(dense_memory, streams=STREAMS) as s:
            with torch.no_grad():
                layer(segment())
            s.commit()
            losses.append(checkpoint(layer, segment(), use_reentrant=reentrant).square().sum())
            s.rollback()
        open_still.append(s)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    with pytest.raises(RuntimeError, match="on the thread that ran forward"):
        losses[0].backward()


@BOTH
@pytest.mark.parametrize("wide", [False, True], ids=["layer", "block"])
@pytest.mark.parametrize("xl_length", [0, 4])
@pytest.mark.parametrize("move", ["commit", "reset"])
def test_moving_on_between_two_forwards_is_refused(
    dense_memory: DenseMemory,
    move: Literal["commit", "reset"],
    xl_length: int,
    wide: bool,
    reentrant: bool,
) -> None:
    """The first of two segments trains on a memory that holds its own entries, and nobody is told."""
    layer, around = make_layer(xl_length=xl_length), nn.Linear(16, 16).double()

    def block(x: Tensor) -> Tensor:
        out: Tensor = around(layer(around(x).sin())).sin()
        return out

    forward: Forward = block if wide else layer
    with session(dense_memory, streams=STREAMS) as s:
        with torch.no_grad():
            forward(segment())
        s.commit()
        total = checkpoint(forward, segment(), use_reentrant=reentrant).sum()
        if move == "commit":
            s.commit()
        else:
            s.reset([0])
        total = total + checkpoint(forward, segment(), use_reentrant=reentrant).sum()
        with pytest.raises(RuntimeError, match="call backward before commit and reset"):
            total.backward()
        s.rollback()


@BOTH
def test_the_second_of_two_forwards_alone_is_not_refused(dense_memory: DenseMemory, reentrant: bool) -> None:
    """A loss that leaves out what came before the last commit can not be trained on."""
    layer, first, second = make_layer(), segment(), segment()
    with session(dense_memory, streams=STREAMS) as s:
        checkpoint(layer, first, use_reentrant=reentrant)
        s.commit()
        checkpoint(layer, second, use_reentrant=reentrant).square().sum().backward()
        s.rollback()
    came = gradient(layer)
    wanted(layer, second, first).square().sum().backward()
    assert relative_error(came, gradient(layer)) < 1e-9


@BOTH
@pytest.mark.parametrize("outer", [None, True, False], ids=["flat", "in-reentrant", "in-non-reentrant"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on-another-thread"])
def test_each_forward_is_recomputed_in_its_own_session(
    dense_memory: DenseMemory, elsewhere: bool, outer: bool | None, reentrant: bool
) -> None:
    """A pair of documents in two sessions trains on gradients that each mix both memories."""
    layer, past, other_past = make_layer(), segment(11).detach(), segment(11).detach()
    segments = [segment() for _ in range(4)]
    with torch.no_grad():
        for document, streams in ((past, ["a", "b"]), (other_past, ["c", "d"])):
            with session(dense_memory, streams=streams) as s:
                layer(document)
                s.commit()

    def part(x: Tensor) -> Tensor:
        inner: Tensor = checkpoint(lambda y: layer(y.sin()).sin(), x, use_reentrant=reentrant)
        return inner

    def forward(x: Tensor) -> Tensor:
        out: Tensor = part(x) if outer is None else checkpoint(part, x, use_reentrant=outer)
        return out

    one, two = session(dense_memory, streams=["a", "b"]), session(dense_memory, streams=["c", "d"])
    losses: list[Tensor] = []
    for x, s in zip(segments, (one, two, one, two), strict=True):
        with s:
            losses.append(forward(x).square().sum())
            s.rollback()
    total = torch.stack(losses).sum()
    if elsewhere:  # as on a GPU, where autograd has a thread for the device
        thread = threading.Thread(target=total.backward)
        thread.start()
        thread.join()
    else:
        total.backward()
    came = gradient(layer)
    for x, document in zip(segments, (past, other_past, past, other_past), strict=True):
        wanted(layer, x.sin(), document).sin().square().sum().backward()
    assert relative_error(came, gradient(layer)) < 1e-9


@BOTH
def test_a_forward_without_session_is_recomputed_without(dense_memory: DenseMemory, reentrant: bool) -> None:
    """A term of the loss that is computed without memory takes its gradient with memory, or the other way."""
    layer, past, segments = make_layer(), segment(11).detach(), [segment() for _ in range(3)]
    losses: list[Tensor] = []
    with session(dense_memory, streams=STREAMS) as s, torch.no_grad():
        layer(past)
        s.commit()
    one = session(dense_memory, streams=STREAMS)
    losses.append(checkpoint(layer, segments[0], use_reentrant=reentrant).square().sum())
    with one:
        losses.append(checkpoint(layer, segments[1], use_reentrant=reentrant).square().sum())
        one.rollback()
    losses.append(checkpoint(layer, segments[2], use_reentrant=reentrant).square().sum())
    torch.stack(losses).sum().backward()
    came = gradient(layer)
    for x, document in zip(segments, (None, past, None), strict=True):
        wanted(layer, x, document).square().sum().backward()
    assert relative_error(came, gradient(layer)) < 1e-9


@BOTH
def test_what_is_too_long_ago_is_refused(
    dense_memory: DenseMemory, monkeypatch: pytest.MonkeyPatch, reentrant: bool
) -> None:
    """After very many forward passes in turn a recompute runs in another session than its forward did."""
    monkeypatch.setattr(_recompute, "STRETCHES_MAX", 3)
    layer = make_layer()
    one, two = session(dense_memory, streams=["a", "b"]), session(dense_memory, streams=["c", "d"])
    outputs: list[Tensor] = []
    for s in (one, two, one, two, one):
        with s:
            outputs.append(checkpoint(layer, segment(), use_reentrant=reentrant))
            s.rollback()
    for out in outputs[-2:]:
        out.sum().backward()
    for out in outputs[:2]:
        with pytest.raises(RuntimeError, match="recomputed after the session moved on"):
            out.sum().backward()


@BOTH
@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
def test_what_went_without_memory_is_recomputed_without(
    monkeypatch: pytest.MonkeyPatch, retrieval: Literal["attend", "fetch"], reentrant: bool
) -> None:
    """An outage that is over by the time of backward ends training, or gives another function's gradient."""
    monkeypatch.setattr(Outage, "pausing", lambda _: False)
    memory = Unreliable(make_dense().spec)
    layer, past, segments = (
        make_layer(retrieval=retrieval),
        segment(11).detach(),
        [segment() for _ in range(3)],
    )
    away = [False, True, False]
    with session(memory, streams=STREAMS, on_error="local") as s:
        with torch.no_grad():
            layer(past)
        s.commit()
        losses: list[Tensor] = []
        for x, down in zip(segments, away, strict=True):
            memory.away = AWAY if down else None
            losses.append(checkpoint(layer, x, use_reentrant=reentrant).square().sum())
        torch.stack(losses).sum().backward()
        s.rollback()
    assert s.fallbacks.retrieve == 1
    came = gradient(layer)
    for x, down in zip(segments, away, strict=True):
        wanted(layer, x, None if down else past).square().sum().backward()
    assert relative_error(came, gradient(layer)) < 1e-9


@BOTH
@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_outage_that_begins_before_the_recompute_goes_on(
    dtype: torch.dtype, retrieval: Literal["attend", "fetch"], reentrant: bool
) -> None:
    """Checkpointing sees tensors of another shape or dtype than in forward, and ends training."""
    memory = Unreliable(make_dense().spec)
    layer, x = make_layer(retrieval=retrieval).to(dtype), segment().detach().to(dtype).requires_grad_()
    with session(memory, streams=STREAMS, on_error="local") as s:
        with torch.no_grad():
            layer(segment(11).to(dtype))
        s.commit()
        out = checkpoint(layer, x, use_reentrant=reentrant)
        memory.away = AWAY
        out.sum().backward()
        s.rollback()
    assert s.fallbacks.retrieve == 1
    assert x.grad is not None
    assert x.grad.isfinite().all()


# See test_compile.py.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@BOTH
def test_compiled_layers_are_recomputed_as_well(make_memory: MakeMemory, reentrant: bool) -> None:
    """Compiled and checkpointed, a layer takes the gradient of another forward pass."""
    layer, past, x = make_layer(), segment(11), segment()
    compiled: Forward = torch.compile(layer, backend="eager")
    with session(make_memory(), streams=STREAMS) as s:
        checkpoint(compiled, past, use_reentrant=reentrant)
        s.commit()
        checkpoint(compiled, x, use_reentrant=reentrant).square().sum().backward()
        s.rollback()
    came = gradient(layer)
    wanted(layer, x, past).square().sum().backward()
    assert relative_error(came, gradient(layer)) < 1e-5
