"""The XL cache: earlier segments in the local window, and what leaves it goes to the memory."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from recollect_torch import MemorizingAttention, session
from recollect_torch._window import Segment, Window, slide
from tests.unit.torch.conftest import MakeMemory
from tests.unit.torch.dense_memory import DenseMemory
from tests.unit.torch.reference import causal, close, project, relative_error

STREAMS = ["a", "b", "c"]


def make_layer(
    *,
    xl_length: int,
    combine: Literal["gate", "joint"] | None = "joint",
    position: Literal["none", "rope", "relative"] = "none",
    retrieval: Literal["attend", "fetch"] = "attend",
) -> MemorizingAttention:
    return MemorizingAttention(
        16,
        4,
        layer=2,
        kv_heads=2,
        head_dim=8,
        num_retrieved=64,
        combine=combine,
        position=position,
        xl_length=xl_length,
        retrieval=retrieval,
        scale_init=3.0,
    ).double()


def whole_document(layer: MemorizingAttention, x: Tensor) -> Tensor:
    """Causal attention over everything at once."""
    q, k, v = project(layer, x)
    return close(layer, causal(q, k).softmax(-1) @ v)


@pytest.mark.parametrize("retrieval", ["attend", "fetch"])
@pytest.mark.parametrize("xl_length", [0, 3, 5, 12, 64])
def test_segments_with_cache_and_memory_are_one_long_window(
    make_memory: MakeMemory, xl_length: int, retrieval: Literal["attend", "fetch"]
) -> None:
    """A token is attended to twice, or never, on its way from the segment through the cache to the memory."""
    layer = make_layer(xl_length=xl_length, retrieval=retrieval)
    x = torch.randn(3, 30, 16, dtype=torch.float64)
    outputs: list[Tensor] = []
    with session(make_memory(), streams=STREAMS) as s:
        for segment in x.split([5, 7, 1, 5, 12], dim=1):
            outputs.append(layer(segment))
            s.commit()
    assert relative_error(torch.cat(outputs, dim=1), whole_document(layer, x)) < 1e-5


@pytest.mark.parametrize("xl_length", [0, 4, 9])
def test_rows_of_different_length_are_one_long_window_each(make_memory: MakeMemory, xl_length: int) -> None:
    """Padding is attended to, stored, or pushes real tokens out of the cache."""
    layer = make_layer(xl_length=xl_length)
    lengths = [[5, 5, 5], [2, 0, 5], [0, 3, 5], [5, 5, 1], [4, 0, 5]]
    x = torch.randn(3, 25, 16, dtype=torch.float64)
    came: list[list[Tensor]] = [[], [], []]
    seen: list[list[Tensor]] = [[], [], []]
    with session(make_memory(), streams=STREAMS) as s:
        for segment, of_rows in zip(x.split(5, dim=1), lengths, strict=True):
            s.valid_lengths = of_rows
            out = layer(segment)
            s.commit()
            assert s.valid_lengths is None
            for row, length in enumerate(of_rows):
                came[row].append(out[row, :length])
                seen[row].append(segment[row, :length])
    for row in range(3):
        wanted = whole_document(layer, torch.cat(seen[row])[None])[0]
        assert relative_error(torch.cat(came[row]), wanted) < 1e-5


@pytest.mark.parametrize("position", ["none", "rope", "relative"])
def test_without_memory_the_cache_is_a_longer_window(position: Literal["none", "rope", "relative"]) -> None:
    """The control without memory loses its XL cache, or cached keys carry the wrong position."""
    layer = make_layer(xl_length=64, combine=None, position=position)
    if layer.relative is not None:
        with torch.no_grad():
            layer.relative.bias.normal_()
    x = torch.randn(3, 20, 16, dtype=torch.float64)
    outputs: list[Tensor] = []
    with session(None, streams=STREAMS) as s:
        for segment in x.split([5, 7, 8], dim=1):
            outputs.append(layer(segment))
            s.commit()
    assert relative_error(torch.cat(outputs, dim=1), layer(x)) < 1e-6


def test_an_entry_enters_the_memory_when_it_leaves_the_cache(dense_memory: DenseMemory) -> None:
    """Entries are in both places or in neither, or layers without memory write too."""
    layer = make_layer(xl_length=8)
    forgetful = MemorizingAttention(16, 2, layer=3, combine=None, xl_length=8).double()
    stored: list[int] = []
    with session(dense_memory, streams=STREAMS) as s:
        for _ in range(4):
            forgetful(layer(torch.randn(3, 5, 16, dtype=torch.float64)))
            s.commit()
            stored.append(dense_memory.stored("a", 2))
        s.flush()
        stored.append(dense_memory.stored("a", 2))
    assert stored == [0, 2, 7, 12, 20]
    assert dense_memory.stored("a", 3) == 0


@pytest.mark.parametrize("flush", [True, False])
def test_flush_lets_a_later_session_go_on(make_memory: MakeMemory, flush: bool) -> None:
    """A stream that is taken up again lacks the tokens that were in the cache."""
    layer, memory = make_layer(xl_length=8), make_memory()
    x = torch.randn(3, 20, 16, dtype=torch.float64)
    with session(memory, streams=STREAMS) as s:
        for segment in x[:, :15].split(5, dim=1):
            layer(segment)
            s.commit()
        if flush:
            s.flush()
    with session(memory, streams=STREAMS) as s:
        out = layer(x[:, 15:])
        s.commit()
    wanted = whole_document(layer, x)[:, 15:]
    assert (relative_error(out, wanted) < 1e-5) == flush


def test_gradients_with_a_cache_are_those_of_the_segment(make_memory: MakeMemory) -> None:
    """The mask of a short row's cache puts NaN into gradients, or the past takes some."""
    layer = make_layer(xl_length=8)
    x = torch.randn(3, 15, 16, dtype=torch.float64)
    with session(make_memory(), streams=STREAMS) as s:
        s.valid_lengths = [10, 3, 0]
        layer(x[:, :10])
        s.commit()
        last = x[:, 10:].clone().requires_grad_()
        layer(last).square().sum().backward()
        s.rollback()
    twin = x[:, 10:].clone().requires_grad_()
    for row, length in enumerate((10, 3, 0)):
        with torch.no_grad():
            _, old_k, old_v = project(layer, x[row : row + 1, :length])
        q, k, v = project(layer, twin[row : row + 1])
        k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        close(layer, causal(q, k).softmax(-1) @ v).square().sum().backward()
    assert last.grad is not None
    assert twin.grad is not None
    assert relative_error(last.grad, twin.grad) < 1e-5


def test_slide_keeps_the_newest_of_each_row() -> None:
    """The cache keeps old tokens and lets new ones go, or rows shift into each other."""

    def numbers(rows: list[list[int]], *, width: int, right: bool) -> Tensor:
        padded = [[0] * (width - len(r)) + r if right else r + [0] * (width - len(r)) for r in rows]
        return torch.tensor(padded, dtype=torch.float32)[:, None, :, None]

    old, new = [[1, 2, 3], [4]], [[10], [11, 12, 13, 14]]
    keys = numbers(old, width=3, right=True)
    window = Window(keys, -keys, (3, 1))
    keys = numbers(new, width=4, right=False)
    after, left = slide(window, Segment(keys, -keys, (1, 4)), xl_length=3)
    assert after is not None
    assert after.lengths == (3, 3)
    assert after.keys[:, 0, :, 0].tolist() == [[2, 3, 10], [12, 13, 14]]
    assert left.lengths == (1, 2)
    assert left.values[0, 0, :1, 0].tolist() == [-1]
    assert left.values[1, 0, :2, 0].tolist() == [-4, -11]
