"""Memories for the layers under test: a real namespace in this process, and an exact one in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import pytest
import torch

import recollect
from recollect_torch._memory import Memory
from tests.unit.torch.dense_memory import DenseMemory, DenseSpec


class MakeMemory(Protocol):
    def __call__(self, *, heads: int = 2, dim: int = 8, capacity: int = 10_000) -> Memory: ...


_numbers = itertools.count()


@pytest.fixture(scope="session")
def client() -> Iterator[recollect.Client]:
    """A real server in this process."""
    with recollect.connect("embedded://") as connected:
        yield connected


@pytest.fixture(params=["dense", "embedded"])
def make_memory(request: pytest.FixtureRequest) -> MakeMemory:
    """Makes an empty memory of layers 0 to 3; each test that uses it runs on both kinds."""

    def dense(*, heads: int = 2, dim: int = 8, capacity: int = 10_000) -> Memory:
        return make_dense(heads=heads, dim=dim, capacity=capacity)

    def embedded(*, heads: int = 2, dim: int = 8, capacity: int = 10_000) -> Memory:
        client: recollect.Client = request.getfixturevalue("client")
        return client.create_namespace(
            f"unit-{next(_numbers)}",
            layers=[0, 1, 2, 3],
            heads=heads,
            key_dim=dim,
            value_dim=dim,
            capacity=capacity,
            dtype="float32",
        )

    return dense if request.param == "dense" else embedded


def make_dense(*, heads: int = 2, dim: int = 8, capacity: int = 10_000) -> DenseMemory:
    """The oracle, where a test looks inside."""
    return DenseMemory(DenseSpec((0, 1, 2, 3), heads, dim, dim), capacity=capacity)


@pytest.fixture
def dense_memory() -> DenseMemory:
    """An empty oracle of layers 0 to 3, 2 heads of 8."""
    return make_dense()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
