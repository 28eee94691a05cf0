"""The layer against dense attention that was written without it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from recollect_torch import MemorizingAttention, session
from recollect_torch._combine import Gate
from tests.unit.torch.conftest import MakeMemory
from tests.unit.torch.dense_memory import DenseMemory
from tests.unit.torch.reference import causal, close, dense, project, relative_error

DIM, HEADS, HEAD_DIM, ROWS, TOKENS = 16, 4, 8, 3, 5
STREAMS = ["a", "b", "c"]


def make_layer(
    combine: Literal["gate", "joint"] = "gate",
    *,
    kv_heads: int = 2,
    num_retrieved: int = 32,
    retrieval: Literal["attend", "fetch"] = "attend",
    position: Literal["none", "rope", "relative"] = "none",
) -> MemorizingAttention:
    layer = MemorizingAttention(
        DIM,
        HEADS,
        layer=1,
        kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        num_retrieved=num_retrieved,
        combine=combine,
        retrieval=retrieval,
        position=position,
        gate_init=0.3,
    ).double()
    with torch.no_grad():
        layer.scale.copy_(torch.linspace(1.0, 4.0, HEADS))
    return layer


def tokens(count: int = TOKENS) -> Tensor:
    return torch.randn(ROWS, count, DIM, dtype=torch.float64)


def gate_of(layer: MemorizingAttention) -> Tensor | None:
    return layer.combine.bias if isinstance(layer.combine, Gate) else None


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_output_and_gradients_are_those_of_dense_attention(
    make_memory: MakeMemory,
    combine: Literal["gate", "joint"],
    retrieval: Literal["attend", "fetch"],
    kv_heads: int,
) -> None:
    """The layer computes another function, or trains by another gradient, than the paper's."""
    layer = make_layer(combine, kv_heads=kv_heads, retrieval=retrieval)
    past, x, weights = tokens(11), tokens().requires_grad_(), tokens()
    with session(make_memory(heads=kv_heads), streams=STREAMS) as s:
        layer(past)
        s.commit()
        out = layer(x)
        (out * weights).sum().backward()
        s.rollback()
    came = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    wanted = dense(layer, x, past, combine=combine, gate=gate_of(layer))
    (wanted * weights).sum().backward()
    assert relative_error(out, wanted) < 1e-5
    for mine, theirs in zip(came, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        assert mine is not None
        assert theirs is not None
        assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
def test_only_the_nearest_entries_count(
    make_memory: MakeMemory, retrieval: Literal["attend", "fetch"]
) -> None:
    """More or fewer than num_retrieved entries take part in the softmax."""
    layer = make_layer(num_retrieved=3, retrieval=retrieval)
    past, x = tokens(11), tokens()
    with session(make_memory(), streams=STREAMS) as s:
        layer(past)
        s.commit()
        out = layer(x)
        s.rollback()
    q, k, v = project(layer, x)
    _, old_k, old_v = project(layer, past)
    scores = torch.einsum("bhtd,bhsd->bhts", q, old_k)
    scores = scores.masked_fill(scores < scores.topk(3, dim=-1).values[..., -1:], float("-inf"))
    gate = gate_of(layer)
    assert gate is not None
    g = gate.sigmoid().view(1, -1, 1, 1)
    wanted = close(layer, g * (scores.softmax(-1) @ old_v) + (1 - g) * (causal(q, k).softmax(-1) @ v))
    assert relative_error(out, wanted) < 1e-5


@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_an_empty_memory_changes_nothing(
    make_memory: MakeMemory, combine: Literal["gate", "joint"], retrieval: Literal["attend", "fetch"]
) -> None:
    """An empty memory dilutes the local result, or its -inf turns into NaN on the way back."""
    layer = make_layer(combine, retrieval=retrieval)
    x = tokens().requires_grad_()
    alone = layer(x)
    with session(make_memory(), streams=STREAMS) as s:
        out = layer(x)
        with torch.autograd.set_detect_anomaly(True):
            out.square().sum().backward()
        s.rollback()
    assert torch.equal(out, alone)
    gradients = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_a_row_without_entries_is_local_beside_rows_with_some(
    make_memory: MakeMemory, combine: Literal["gate", "joint"], retrieval: Literal["attend", "fetch"]
) -> None:
    """One empty stream in a batch poisons, or borrows from, the others."""
    layer = make_layer(combine, retrieval=retrieval)
    past, x = tokens(11), tokens().requires_grad_()
    with session(make_memory(), streams=STREAMS) as s:
        s.valid_lengths = [11, 0, 4]
        layer(past)
        s.commit()
        out = layer(x)
        with torch.autograd.set_detect_anomaly(True):
            out.square().sum().backward()
        s.rollback()
    assert torch.equal(out[1], layer(x)[1])
    for row, length in ((0, 11), (2, 4)):
        one = slice(row, row + 1)
        wanted = dense(layer, x[one], past[one, :length], combine=combine, gate=gate_of(layer))
        assert relative_error(out[one], wanted) < 1e-5
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_joint_softmax_takes_a_gradient_of_the_lse_alone(dense_memory: DenseMemory) -> None:
    """Backward fails where only one of the two results of a retrieval is used."""
    layer = make_layer("joint")
    with session(dense_memory, streams=STREAMS) as s:
        layer(tokens(7))
        s.commit()
        q = torch.randn(ROWS, HEADS, TOKENS, HEAD_DIM, dtype=torch.float64)
        by_lse, by_output = q.clone().requires_grad_(), q.clone().requires_grad_()
        s.attend(1, by_lse, top_k=8, by_fetch=False)[1].sum().backward()
        s.attend(1, by_output, top_k=8, by_fetch=False)[0].sum().backward()
        fetched = [q.clone().requires_grad_() for _ in range(2)]
        s.attend(1, fetched[0], top_k=8, by_fetch=True)[1].sum().backward()
        s.attend(1, fetched[1], top_k=8, by_fetch=True)[0].sum().backward()
    for mine, theirs in zip((by_lse, by_output), fetched, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative_error(mine.grad, theirs.grad) < 1e-9


def test_an_infinite_gradient_comes_back_as_nan(make_memory: MakeMemory) -> None:
    """An overflow under loss scaling becomes an error of the memory instead of a skipped step."""
    layer = make_layer()
    with session(make_memory(), streams=STREAMS) as s:
        layer(tokens(7))
        s.commit()
        q = torch.randn(ROWS, HEADS, TOKENS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
        weights = torch.ones(ROWS, HEADS, TOKENS, HEAD_DIM, dtype=torch.float64)
        weights[0, 0, 0, 0] = float("inf")
        (s.attend(1, q, top_k=8, by_fetch=False)[0] * weights).sum().backward()
    assert q.grad is not None
    assert q.grad[0, 0, 0].isnan().all()
    assert int(q.grad.isnan().sum()) == HEAD_DIM


@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_autocast_keeps_the_gradient(make_memory: MakeMemory, combine: Literal["gate", "joint"]) -> None:
    """Mixed precision breaks the layer or changes its result beyond rounding."""
    layer = make_layer(combine).float()
    past, x = tokens(11).float(), tokens().float()
    results: list[Tensor] = []
    memory = make_memory()
    for enabled in (False, True):
        with (
            session(memory, streams=[f"{name}-{enabled}" for name in STREAMS]) as s,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled),
        ):
            layer(past)
            s.commit()
            row = x.clone().requires_grad_()
            layer(row).float().square().sum().backward()
            s.rollback()
        assert row.grad is not None
        results.append(row.grad)
    assert relative_error(results[1], results[0]) < 0.1


def test_whole_numbers_start_scales_and_gates() -> None:
    """`scale_init=1`, the paper's start, ends in an error about gradients of integers."""
    layer = MemorizingAttention(16, 2, layer=1, scale_init=1, gate_init=0)
    gate = gate_of(layer)
    assert gate is not None
    assert layer.scale.tolist() == [1.0, 1.0]
    assert gate.tolist() == [0.0, 0.0]
    assert layer.scale.dtype == gate.dtype == torch.float32


@pytest.mark.parametrize("position", ["none", "rope", "relative"])
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_nothing_comes_of_nothing(
    combine: Literal["gate", "joint"], position: Literal["none", "rope", "relative"]
) -> None:
    """A batch without rows, or a segment without tokens, ends in an error about reshapes."""
    layer = make_layer(combine, position=position)
    for shape in ((2, 0, DIM), (0, 4, DIM)):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        out = layer(x)
        out.sum().backward()
        assert out.shape == shape
        assert x.grad is not None


@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
def test_a_segment_without_tokens_changes_nothing(
    make_memory: MakeMemory, retrieval: Literal["attend", "fetch"]
) -> None:
    """A document that ends where a segment does ends with an error, or leaves a trace in the memory."""
    layer = make_layer("joint", retrieval=retrieval)
    past, x, none = tokens(11), tokens(), tokens(0)
    with session(make_memory(), streams=STREAMS) as s:
        for part in (none, past[:, :4], none, past[:, 4:], none):
            assert layer(part).shape == part.shape
            s.commit()
        out = layer(x)
        s.rollback()
    assert relative_error(out, dense(layer, x, past, combine="joint", gate=None)) < 1e-5


def test_no_grad_asks_for_no_ids(dense_memory: DenseMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference pays for ids that nobody reads."""
    asked: list[bool] = []
    attend = dense_memory.attend

    def spy(
        layer: int, queries: Tensor, *, top_k: int, streams: list[str], with_ids: bool, **_: object
    ) -> object:
        asked.append(with_ids)
        return attend(layer, queries, top_k=top_k, streams=streams, missing_ok=True)

    monkeypatch.setattr(dense_memory, "attend", spy)
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        with torch.no_grad():
            layer(tokens())
        layer(tokens())
        s.rollback()
    assert asked == [False, True]


def test_a_layer_made_for_a_memory_insists_on_a_session(dense_memory: DenseMemory) -> None:
    """A model trains without the memory that it was given, and nobody notices."""
    layer = MemorizingAttention(16, 2, layer=1, memory=dense_memory)
    with pytest.raises(RuntimeError, match="session"):
        layer(torch.randn(1, 3, 16))
    other = copy.copy(dense_memory)
    other.name = "other"
    with session(other, streams=["a"]), pytest.raises(ValueError, match="'dense'"):
        layer(torch.randn(1, 3, 16))


@dataclass(frozen=True)
class Sizes:
    dim: int = 16
    heads: int = 2
    layer: int = 1
    kv_heads: int | None = None
    head_dim: int | None = None
    num_retrieved: int = 32


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(dim=15), "heads must divide"),
        (Sizes(heads=4), "heads=4"),
        (Sizes(head_dim=4), "key_dim=4"),
        (Sizes(layer=9), "layer 9"),
        (Sizes(kv_heads=3), "kv_heads=3"),
        (Sizes(kv_heads=0), "kv_heads=0"),
        (Sizes(num_retrieved=0), "num_retrieved=0"),
    ],
)
def test_what_does_not_fit_is_refused(dense_memory: DenseMemory, sizes: Sizes, message: str) -> None:
    """A layer that cannot work with its memory fails later, in the server, with less to go by."""
    with pytest.raises(ValueError, match=message):
        MemorizingAttention(
            sizes.dim,
            sizes.heads,
            memory=dense_memory,
            layer=sizes.layer,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            num_retrieved=sizes.num_retrieved,
        )


def test_a_session_of_another_batch_size_is_refused(dense_memory: DenseMemory) -> None:
    """Rows read the streams of other rows."""
    layer = make_layer()
    with session(dense_memory, streams=["a"]), pytest.raises(ValueError, match="3 rows"):
        layer(tokens())


def test_state_dict_goes_round(make_memory: MakeMemory) -> None:
    """A checkpoint does not restore the layer, or drags its memory along."""
    layer, twin = make_layer(), make_layer()
    twin.load_state_dict(layer.state_dict())
    names = {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "scale", "combine.bias"}
    assert set(layer.state_dict()) == names
    x = tokens()
    assert torch.equal(layer(x), twin(x))


def test_a_deep_copy_shares_the_memory(dense_memory: DenseMemory) -> None:
    """Averaging weights over copies of a model fails, or loses the memory."""
    layer = MemorizingAttention(16, 2, layer=1, memory=dense_memory)
    with session(dense_memory, streams=["a"]) as s:
        layer(torch.randn(1, 3, 16))
        s.commit()
        twin = copy.deepcopy(layer)
        x = torch.randn(1, 3, 16)
        assert torch.equal(twin(x), layer(x))
        s.rollback()
