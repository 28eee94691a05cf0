"""Whole calls against the real engine: a split call gives what an unsplit one gives, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import recollect
from recollect import _embedded_transport
from recollect._results import Dtype
from recollect_server.bootstrap import build_embedded_core
from recollect_server.domain.limits import Limits
from recollect_server.embedded import EmbeddedTransport
from recollect_server.settings import Settings

STREAMS = ["a", "b", "c"]
SMALL = Limits(message_bytes_max=4096, rows_max=2, tokens_max=7, ids_max=5)


def open_small() -> EmbeddedTransport:
    return EmbeddedTransport(build_embedded_core(Settings(limits=SMALL)))


@pytest.fixture
def large() -> Iterator[recollect.Client]:
    with recollect.connect("embedded://") as client:
        yield client


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded_transport, "load_extension", lambda *names, **options: open_small)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"keys": (3, 2, 30, 8), "values": (3, 2, 30, 4), "queries": (3, 4, 10, 8), "grad": (3, 4, 10, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make(client: recollect.Client, dtype: Dtype) -> recollect.Namespace:
    return client.create_namespace("n", layers=[3], heads=2, key_dim=8, value_dim=4, capacity=64, dtype=dtype)


def run_all(namespace: recollect.Namespace) -> list[torch.Tensor]:
    data = tensors()
    added = namespace.add(3, data["keys"], data["values"], streams=STREAMS, lengths=[30, 0, 11])
    first = torch.tensor(added.first_ids)[:, None, None, None]
    assert [n - f for n, f in zip(added.next_sequences, added.first_ids, strict=True)] == [30, 0, 11]
    hits = namespace.search(
        3,
        data["queries"],
        top_k=12,
        streams=STREAMS,
        include=("keys", "values"),
        min_sequences=added.next_sequences,
    )
    out = namespace.attend(3, data["queries"], top_k=12, streams=STREAMS, min_sequences=added.next_sequences)
    assert hits.keys is not None
    assert hits.values is not None
    assert out.ids is not None
    assert hits.next_sequences == out.next_sequences == added.next_sequences
    gradient = namespace.attend_backward(
        3,
        data["queries"],
        ids=out.ids,
        streams=STREAMS,
        grad_output=data["grad"],
        grad_lse=data["grad"][..., 0],
    )
    relative = [torch.where(ids < 0, -1, ids - first) for ids in (hits.ids, out.ids)]
    stored = range(added.first_ids[0], added.first_ids[0] + 12)
    assert namespace.evict(streams=["a", "b", "c"], ids=stored, missing_ok=True).evicted >= 12
    return [hits.scores, hits.keys, hits.values, out.output, out.lse, gradient, *relative]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_split_calls_equal_whole_ones(large: recollect.Client, small_limits: None, dtype: Dtype) -> None:
    """Results would depend on the server's limits: parts misplaced, lost or mixed up."""
    whole = run_all(make(large, dtype))
    with recollect.connect("embedded://") as small:
        assert small.server_info().limits.message_bytes_max == SMALL.message_bytes_max
        parts = run_all(make(small, dtype))
    for expected, came in zip(whole, parts, strict=True):
        torch.testing.assert_close(came, expected, rtol=2e-2 if dtype == "bfloat16" else 2e-3, atol=2e-3)


def test_async_equals_sync(large: recollect.Client, small_limits: None) -> None:
    """The async client, which runs parts beside each other, would give other results."""
    data = tensors()
    expected = run_all(make(large, "float32"))

    async def run() -> list[torch.Tensor]:
        async with recollect.connect_async("embedded://") as client:
            await client.create_namespace(
                "n", layers=[3], heads=2, key_dim=8, value_dim=4, capacity=64, dtype="float32"
            )
            names = [info.name async for info in client.list_namespaces(page_size=1)]
            assert names == ["n"]
            namespace = await client.namespace("n")
            await namespace.add(3, data["keys"], data["values"], streams=STREAMS, lengths=[30, 0, 11])
            hits = await namespace.search(
                3, data["queries"], top_k=12, streams=STREAMS, include=("keys", "values")
            )
            out = await namespace.attend(3, data["queries"], top_k=12, streams=STREAMS)
            assert hits.keys is not None
            assert hits.values is not None
            assert out.ids is not None
            gradient = await namespace.attend_backward(
                3,
                data["queries"],
                ids=out.ids,
                streams=STREAMS,
                grad_output=data["grad"],
                grad_lse=data["grad"][..., 0],
            )
            assert (await namespace.stats(streams=["a"])).banks[0].entries == 30
            assert (await namespace.evict(streams=STREAMS, all=True)).evicted == 41
            await namespace.ensure()
            await client.delete_namespace("n")
            return [hits.scores, hits.keys, hits.values, out.output, out.lse, gradient]

    for came, whole in zip(asyncio.run(run()), expected, strict=False):
        torch.testing.assert_close(came, whole, rtol=1e-4, atol=1e-5)


def test_one_failing_part_fails_an_async_call_with_one_error(small_limits: None) -> None:
    """Callers would have to catch groups of errors, or parts would run on after the call has failed."""

    async def run() -> None:
        async with recollect.connect_async("embedded://") as client:
            namespace = await client.create_namespace(
                "n", layers=[3], heads=2, key_dim=8, value_dim=4, capacity=64
            )
            await namespace.attend(3, tensors()["queries"], top_k=3, streams=STREAMS)

    with pytest.raises(recollect.NotFoundError) as caught:
        asyncio.run(run())
    assert caught.value.reason == "STREAM_NOT_FOUND"


def test_results_come_in_the_likeness_of_the_queries(large: recollect.Client) -> None:
    """A user would get another dtype or kind of array than the one passed in."""
    namespace = make(large, "float16")
    data = tensors()
    namespace.add(3, data["keys"].double(), data["values"].bfloat16(), streams=STREAMS)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        out = namespace.attend(3, data["queries"].to(dtype), top_k=4, streams=STREAMS)
        assert (out.output.dtype, out.lse.dtype) == (dtype, torch.float32)
        assert out.ids is not None
        assert out.ids.dtype == torch.int64
    for kind in (np.float16, np.float32, np.float64):
        hits = namespace.search(
            3, data["queries"].numpy().astype(kind), top_k=4, streams=STREAMS, include=("keys",)
        )
        assert isinstance(hits.keys, np.ndarray)
        assert hits.keys.dtype == kind
        assert hits.scores.dtype == np.float32
        assert hits.ids.dtype == np.int64
        assert hits.values is None


def test_tiny_gradients_through_a_float16_namespace(large: recollect.Client) -> None:
    """Gradients of a mean over many tokens would vanish in float16, silently."""
    namespace = make(large, "float16")
    data = tensors()
    namespace.add(3, data["keys"], data["values"], streams=STREAMS)
    ids = namespace.attend(3, data["queries"], top_k=4, streams=STREAMS).ids
    assert ids is not None

    def gradient(factor: float) -> torch.Tensor:
        return namespace.attend_backward(
            3,
            data["queries"],
            ids=ids,
            streams=STREAMS,
            grad_output=data["grad"] * factor,
            grad_lse=data["grad"][..., 0] * factor,
        )

    torch.testing.assert_close(gradient(2.0**-40) * 2.0**40, gradient(1.0))


def test_ensure_makes_a_lost_namespace_again(large: recollect.Client) -> None:
    """A run could not go on after its server had lost the namespace with its process."""
    namespace = make(large, "float32")
    large.delete_namespace("n")
    namespace.ensure()
    namespace.ensure()
    assert large.namespace("n").spec == namespace.spec
