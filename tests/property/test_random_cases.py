"""Attend and search in thousands of random cases against the oracle: right, and never an exception."""

from __future__ import annotations

import numpy as np
import pytest

import recollect
from tests.contract.memories import DTYPES, Memories, QueryDtype

CHUNK = 250


def run_case(client: recollect.Client, seed: int) -> None:
    """One case: a namespace of some shape, some adds, then reads that the oracle checks."""
    rng = np.random.default_rng(seed)
    memory = Memories(client, rng)(
        name=f"case-{seed}",
        heads=int(rng.integers(1, 4)),
        key_dim=int(rng.choice([1, 2, 3, 8, 16, 33])),
        value_dim=int(rng.choice([1, 2, 5, 8, 16])),
        capacity=int(rng.choice([1, 2, 7, 16, 64, 100])),
        dtype=DTYPES[seed % 3],
        value_dtype="int8" if seed % 5 == 0 else None,
    )
    streams = [f"s{i}" for i in range(int(rng.integers(1, 4)))]
    for _ in range(int(rng.integers(0, 4))):
        tokens = int(rng.integers(1, 30))
        memory.add(streams, tokens, lengths=rng.integers(0, tokens + 1, len(streams)).tolist())
    if rng.random() < 0.3:
        memory.ns.evict(streams=streams[:1], oldest=3, missing_ok=True)
        entries = memory.oracle.bank(streams[0], 0)
        entries.keep(range(min(3, len(entries.ids)), len(entries.ids)))
    if rng.random() < 0.1:
        memory.ns.evict(streams=streams[:1], all=True, missing_ok=True)
        memory.oracle.forget(streams[0], [0])
    top_k, tokens = int(rng.choice([1, 2, 5, 32, 200])), int(rng.choice([1, 2, 7, 20]))
    group = int(rng.integers(1, 4))
    names = list(rng.permutation(streams))
    rounded: QueryDtype | None = "int8" if seed % 7 == 0 else None
    memory.check_search(names, group=group, missing_ok=True, top_k=top_k, tokens=tokens, query_dtype=rounded)
    q = memory.queries(len(names), tokens, group=group)
    scale = float(rng.choice([0.05, 0.5, 3.0]))
    out = memory.ns.attend(0, q, top_k=top_k, streams=names, scale=scale, missing_ok=True)
    memory.oracle.check_attend(0, q, out, streams=names, scale=scale, top_k=top_k)
    if out.ids is not None and seed % 4 == 0 and top_k <= 32:
        memory.check_backward(q, out.ids, names, scale=scale)
    client.delete_namespace(f"case-{seed}")


def run_cases(seeds: range) -> None:
    """Cases by their seeds; the error says which one it was."""
    with recollect.connect("embedded://") as client:
        for seed in seeds:
            try:
                run_case(client, seed)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise


@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_random_cases(first: int) -> None:
    """A random case raised, or was answered otherwise than the oracle does."""
    run_cases(range(first, first + CHUNK))


@pytest.mark.slow
def test_ten_thousand_random_cases() -> None:
    """As above: the issue asks for no exception in 10,000 random cases."""
    run_cases(range(10_000))
