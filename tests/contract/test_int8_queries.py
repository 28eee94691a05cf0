"""Queries that travel as integers of 8 bits, by every way to a memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recollect
from tests.contract.memories import DTYPES, Dtype, Memories


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 2])
def test_answers_are_those_of_the_rounded_queries(memories: Memories, dtype: Dtype, group: int) -> None:
    """Queries are read as others than were sent; or an answer comes in another dtype than without."""
    memory = memories(dtype=dtype, capacity=300, key_dim=7)
    memory.add(["a", "b"], 200)
    for tokens in (1, 5, 70):
        for exact in (False, True):
            memory.check_search(
                ["a", "b"], top_k=8, tokens=tokens, group=group, exact=exact, query_dtype="int8"
            )
            memory.check_attend(
                ["a", "b"], top_k=8, tokens=tokens, group=group, exact=exact, query_dtype="int8"
            )
    memory.check_search(["a", "nobody"], missing_ok=True, query_dtype="int8")


def test_a_large_search_takes_them_too(memories: Memories) -> None:
    """Where an answer is streamed or shared, its queries lie in a region, too: they are read as floats."""
    memory = memories(dtype="float16", capacity=500, key_dim=32, value_dim=64)
    memory.add(["a"], 500)
    memory.check_search(["a"], top_k=32, tokens=700, query_dtype="int8")


def test_of_any_queries_nearly_the_same_is_found(memories: Memories, rng: np.random.Generator) -> None:
    """Rounding costs more of the recall than it may, or the output is far from what it would have been."""
    memory = memories(dtype="float16", capacity=4000, heads=1, key_dim=64, value_dim=64)
    memory.add(["a"], 4000)
    q = rng.standard_normal((1, 1, 200, 64)).astype(np.float32)
    plain = memory.ns.attend(0, q, top_k=32, streams=["a"], exact=True)
    found = memory.ns.attend(0, q, top_k=32, streams=["a"], exact=True, query_dtype="int8")
    assert plain.ids is not None
    assert found.ids is not None
    pairs = zip(plain.ids.reshape(-1, 32), found.ids.reshape(-1, 32), strict=True)
    assert np.mean([len(set(one) & set(other)) / 32 for one, other in pairs]) > 0.98
    off = np.square(found.output - plain.output).mean() / np.square(plain.output).mean()
    assert off < 0.1**2
    assert found.output.dtype == plain.output.dtype


def test_tensors_are_taken(memories: Memories) -> None:
    """Queries of torch are refused, or answered as NumPy's are."""
    memory = memories(dtype="bfloat16", capacity=50)
    memory.add(["a"], 50)
    q = memory.queries(1, 3, query_dtype="int8")
    wanted = memory.ns.attend(0, q, top_k=4, streams=["a"])
    for of in (torch.float32, torch.bfloat16, torch.float64):
        came = memory.ns.attend(0, torch.from_numpy(q).to(of), top_k=4, streams=["a"], query_dtype="int8")
        assert came.output.dtype == of
        np.testing.assert_allclose(came.output.float().numpy(), wanted.output, rtol=2**-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_integers_cannot_say_is_refused(memories: Memories, bad: float) -> None:
    """NaN becomes some number, and is answered."""
    memory = memories(capacity=5)
    memory.add(["a"], 5)
    q = memory.queries(1, 300)
    q[0, 1, 2, 3] = bad
    for ask in (memory.ns.search, memory.ns.attend):
        with pytest.raises(recollect.InvalidArgumentError, match="queries holds NaN or infinite") as caught:
            ask(0, q, top_k=1, streams=["a"], query_dtype="int8")
        assert caught.value.argument == "queries"


def test_what_is_too_large_for_the_keys_is_refused(memories: Memories) -> None:
    """A query that the namespace cannot hold becomes infinite, and every score with it."""
    memory = memories(dtype="float16", capacity=5)
    memory.add(["a"], 5)
    q = np.full((1, 2, 1, 8), 1e5, np.float32)
    with pytest.raises(recollect.InvalidArgumentError, match="65504 is the most here"):
        memory.ns.attend(0, q, top_k=1, streams=["a"], query_dtype="int8")
