"""Search, attend and its gradient against the oracle, by every way to a memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recollect
from tests.contract.memories import DTYPES, INDEXES, VALUE_DTYPES, Dtype, Index, Memories, ValueDtype


@pytest.mark.parametrize("value_dtype", VALUE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_are_the_oracles(memories: Memories, dtype: Dtype, value_dtype: ValueDtype | None) -> None:
    """Search, attend or its gradient is wrong in this storage format."""
    memory = memories(dtype=dtype, value_dtype=value_dtype, capacity=40, value_dim=5)
    memory.add(["a", "b"], 30)
    memory.check(["a", "b"], top_k=8)
    memory.add(["b", "a"], 17)  # they grow, and the oldest leave
    memory.check(["a", "b"], top_k=8)
    memory.ns.evict(streams=["a"], ids=memory.ids("a")[3::2])
    memory.oracle.bank("a", 0).keep([*range(3), *range(4, 40, 2)])
    memory.check(["a", "b"], top_k=8)


@pytest.mark.parametrize("index", INDEXES)
def test_exact_reads_find_all_whatever_the_index(memories: Memories, index: Index) -> None:
    """A read that asks for exact search is answered by an index that misses some, or is refused."""
    memory = memories(index=index, capacity=3000, key_dim=4)
    memory.add(["a"], 2000)
    memory.add(["a", "b"], 1500)
    for group, top_k in ((1, 1), (2, 40)):
        memory.check_search(["a", "b"], top_k=top_k, group=group, exact=True)
        memory.check_attend(["a", "b"], top_k=top_k, group=group, exact=True)
    memory.ns.evict(streams=["a"], oldest=700)
    memory.oracle.bank("a", 0).keep(range(700, 3000))
    memory.check_search(["a"], top_k=20, exact=True)
    memory.check_attend(["a"], top_k=20, exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [2, 4])
def test_grouped_heads(memories: Memories, dtype: Dtype, group: int) -> None:
    """A query head reads the memory of another head's group."""
    memory = memories(dtype=dtype, heads=3)
    memory.add(["a", "b"], 9)
    memory.check_search(["a", "b"], group=group)
    memory.check_attend(["a", "b"], group=group)


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_beyond_what_is_stored(memories: Memories, dtype: Dtype) -> None:
    """Fewer entries than top_k: the padding reached the answer."""
    memory = memories(dtype=dtype)
    memory.add(["a", "b"], 5, lengths=[3, 5])
    found = memory.check_search(["a", "b"], top_k=64)
    assert (found.ids[0, ..., 3:] == -1).all()
    assert np.isneginf(found.scores[0, ..., 3:]).all()
    memory.check_attend(["a", "b"], top_k=64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_different_length(memories: Memories, dtype: Dtype) -> None:
    """Padding tokens of a short row were stored, or a row of length 0 was not left alone."""
    memory = memories(dtype=dtype, capacity=20)
    memory.add(["a", "b", "c"], 6, lengths=[6, 0, 2])
    memory.add(["c", "a", "b"], 5, lengths=[5, 1, 3])
    memory.check(["a", "b", "c"], top_k=12)


def test_padding_may_hold_anything(memories: Memories) -> None:
    """NaN beyond a row's length, where there is no token, was refused or reached the memory."""
    memory = memories()
    spec = memory.ns.spec
    keys, values = memory.draw(2, spec.heads, 4, spec.key_dim), memory.draw(2, spec.heads, 4, spec.value_dim)
    keys[0, :, 2:], values[0, :, 2:] = np.nan, np.inf
    added = memory.ns.add(0, keys, values, streams=["a", "b"], lengths=[2, 4])
    memory.oracle.add(0, keys, values, streams=["a", "b"], first_ids=added.first_ids, lengths=[2, 4])
    memory.check(["a", "b"])


def test_a_stream_without_entries_in_this_layer_is_empty(memories: Memories) -> None:
    """A stream that exists, but holds nothing in the layer, must answer as an empty memory."""
    memory = memories(layers=(0, 5))
    memory.add(["a"], 3, layer=5)
    found = memory.check_search(["a"])
    assert (found.ids == -1).all()
    assert np.isneginf(found.scores).all()
    out = memory.check_attend(["a"])
    assert (out.output == 0).all()
    assert np.isneginf(out.lse).all()


def test_a_stream_that_does_not_exist(memories: Memories) -> None:
    """An unknown stream must be an error that says so, or empty with missing_ok."""
    memory = memories()
    memory.add(["a"], 3)
    for read in (memory.check_search, memory.check_attend):
        with pytest.raises(recollect.NotFoundError) as caught:
            read(["a", "nobody"])
        assert caught.value.reason == "STREAM_NOT_FOUND"
        assert "nobody" in str(caught.value)
        answer = read(["a", "nobody"], missing_ok=True)
        assert answer.ids is not None
        assert (answer.ids[1] == -1).all()
        assert (answer.ids[0, ..., :3] >= 0).all()


def test_one_stream_may_serve_several_rows(memories: Memories) -> None:
    """Two rows with the same stream get the same memory."""
    memory = memories()
    memory.add(["a", "b"], 7)
    memory.check(["a", "b", "a", "a"])


def test_streams_are_independent(memories: Memories) -> None:
    """An add to one stream changed what another answers."""
    memory = memories()
    memory.add(["a"], 7)
    memory.add(["b"], 4)
    memory.add(["a"], 9)
    memory.check(["a"])
    memory.check(["b"])
    assert not set(memory.ids("a")) & {-1}


def test_layers_are_independent(memories: Memories) -> None:
    """An add to one layer changed what another answers."""
    memory = memories(layers=(1, 3))
    memory.add(["a"], 7, layer=1)
    memory.add(["a"], 4, layer=3)
    memory.check(["a"], layer=1)
    memory.check(["a"], layer=3)


def test_namespaces_are_independent(memories: Memories) -> None:
    """A stream of the same name in another namespace was touched."""
    one, other = memories(), memories(heads=1, key_dim=3)
    one.add(["a"], 7)
    other.add(["a"], 4)
    one.check(["a"])
    other.check(["a"])
    one.ns.evict(streams=["a"], all=True)
    other.check(["a"])


def test_an_add_is_searchable_when_it_returns(memories: Memories) -> None:
    """A client did not read its own write."""
    memory = memories(capacity=200)
    for _ in range(10):
        added = memory.add(["a"], 3)
        found = memory.check_search(["a"], top_k=40)
        assert found.next_sequences == added.next_sequences
        assert int(found.ids.max()) == added.next_sequences[0] - 1


def test_min_sequences(memories: Memories) -> None:
    """A read that asks for a sequence not yet reached must be refused, and pass once it is."""
    memory = memories()
    reached = memory.add(["a"], 3).next_sequences
    q = memory.queries(1, 2)
    beyond = [reached[0] + 1]
    memory.ns.search(0, q, top_k=2, streams=["a"], min_sequences=reached)
    for read in (memory.ns.search, memory.ns.attend):
        with pytest.raises(recollect.FailedPreconditionError) as caught:
            read(0, q, top_k=2, streams=["a"], min_sequences=beyond)
        assert caught.value.reason == "SEQUENCE_NOT_REACHED"
    memory.add(["a"], 1)
    assert memory.ns.attend(0, q, top_k=2, streams=["a"], min_sequences=beyond).next_sequences == tuple(
        beyond
    )


def test_include_brings_what_is_asked_for_and_no_more(memories: Memories) -> None:
    """Keys or values came that nobody asked for, or did not come."""
    memory = memories()
    memory.add(["a"], 3)
    q = memory.queries(1, 2)
    bare = memory.ns.search(0, q, top_k=2, streams=["a"])
    assert bare.keys is None
    assert bare.values is None
    keys = memory.ns.search(0, q, top_k=2, streams=["a"], include=["keys"])
    assert keys.keys is not None
    assert keys.values is None
    values = memory.ns.search(0, q, top_k=2, streams=["a"], include=["values"])
    assert values.keys is None
    assert values.values is not None
    for found in (bare, keys, values):
        memory.oracle.check_search(0, q, found, streams=["a"])


def test_attend_without_ids(memories: Memories) -> None:
    """Inference that asks for no ids got another output."""
    memory = memories()
    memory.add(["a", "b"], 8)
    q = memory.queries(2, 3)
    out = memory.ns.attend(0, q, top_k=3, streams=["a", "b"], scale=0.5, with_ids=False)
    assert out.ids is None
    memory.oracle.check_attend(0, q, out, streams=["a", "b"], scale=0.5, top_k=3)


def test_default_scale(memories: Memories) -> None:
    """Without a scale it is 1 / sqrt(Dk)."""
    memory = memories(key_dim=16)
    memory.add(["a"], 8)
    q = memory.queries(1, 3)
    out = memory.ns.attend(0, q, top_k=3, streams=["a"])
    memory.oracle.check_attend(0, q, out, streams=["a"], scale=0.25, top_k=3)


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_flat_and_peaked_softmax(memories: Memories, scale: float) -> None:
    """A softmax over large or tiny scores overflowed or lost its mass."""
    memory = memories(capacity=30)
    memory.add(["a"], 30)
    memory.check_attend(["a"], scale=scale, top_k=16)


def test_backward_without_grad_lse(memories: Memories) -> None:
    """An absent grad_lse must be zero."""
    memory = memories()
    memory.add(["a", "b"], 8, lengths=[8, 2])
    q = memory.queries(2, 3, group=2)
    out = memory.ns.attend(0, q, top_k=4, streams=["a", "b"], scale=0.5)
    assert out.ids is not None
    go = memory.draw(*q.shape[:3], memory.ns.spec.value_dim)
    came = memory.ns.attend_backward(0, q, ids=out.ids, streams=["a", "b"], grad_output=go, scale=0.5)
    memory.oracle.check_grad_queries(0, q, out.ids, came, streams=["a", "b"], scale=0.5, grad_output=go)


def test_backward_where_memory_was_empty(memories: Memories) -> None:
    """A query that found nothing has a gradient of zero, also if its stream does not exist."""
    memory = memories()
    memory.add(["a"], 2)
    q = memory.queries(2, 3)
    out = memory.ns.attend(0, q, top_k=4, streams=["a", "nobody"], scale=0.7, missing_ok=True)
    assert out.ids is not None
    memory.check_backward(q, out.ids, ["a", "nobody"])


def test_backward_refuses_stale_ids(memories: Memories) -> None:
    """An entry evicted between forward and backward gave a wrong gradient in silence."""
    memory = memories(capacity=6)
    memory.add(["a"], 6)
    q = memory.queries(1, 3)
    out = memory.ns.attend(0, q, top_k=6, streams=["a"], scale=0.7)
    assert out.ids is not None
    memory.check_backward(q, out.ids, ["a"])
    memory.add(["a"], 1)
    with pytest.raises(recollect.StaleEntryError) as caught:
        memory.check_backward(q, out.ids, ["a"])
    assert str(int(out.ids.min())) in str(caught.value)
    memory.ns.evict(streams=["a"], all=True)
    with pytest.raises(recollect.StaleEntryError):
        memory.check_backward(q, out.ids, ["a"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torch_tensors_in_and_out(memories: Memories, dtype: Dtype, kind: torch.dtype) -> None:
    """Torch tensors of any float dtype are taken, and results come in the dtype of the queries."""
    memory = memories(dtype=dtype)
    memory.add(["a"], 6)
    coarse = memory.rng.integers(-4, 5, (1, 4, 3, 8)).astype(np.float32)  # exact in each of the formats
    q = torch.from_numpy(coarse).to(kind)
    out = memory.ns.attend(0, q, top_k=4, streams=["a"], scale=0.1)
    plain = memory.ns.attend(0, coarse, top_k=4, streams=["a"], scale=0.1)
    assert out.output.dtype is kind
    assert out.lse.dtype is torch.float32
    assert out.ids is not None
    assert out.ids.dtype is torch.int64
    assert torch.equal(out.output, torch.from_numpy(plain.output.copy()).to(kind))
    assert torch.equal(out.lse, torch.from_numpy(plain.lse.copy()))
    gradient = memory.ns.attend_backward(
        0, q, ids=out.ids, streams=["a"], grad_output=torch.ones_like(out.output), scale=0.1
    )
    assert gradient.dtype is kind
    assert gradient.shape == q.shape
    found = memory.ns.search(0, q, top_k=4, streams=["a"], include=("keys", "values"))
    assert found.keys is not None
    assert found.keys.dtype is kind


def test_torch_adds(memories: Memories) -> None:
    """What is added as torch tensors is not what is found, or the tensors were not detached."""
    memory = memories(dtype="bfloat16")
    keys = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    values = torch.randn(1, 2, 5, 4, dtype=torch.bfloat16).transpose(0, 0)
    added = memory.ns.add(0, keys, values, streams=["a"])
    memory.oracle.add(
        0,
        keys.detach().float().numpy(),
        values.float().numpy(),
        streams=["a"],
        first_ids=added.first_ids,
    )
    memory.check(["a"])


def test_arrays_need_not_be_contiguous(memories: Memories) -> None:
    """A transposed view was stored in the wrong order."""
    memory = memories()
    keys = memory.draw(1, 5, 2, 8).transpose(0, 2, 1, 3)
    values = memory.draw(4, 5, 2, 1).transpose(3, 2, 1, 0)
    added = memory.ns.add(0, keys, values, streams=["a"])
    memory.oracle.add(0, keys, values, streams=["a"], first_ids=added.first_ids)
    memory.check(["a"])
