"""Which way a card is searched: the fastest of those that work, and the product where one fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.ports import Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.engine import torch_choice
from recollect_server.engine.torch_choice import Choice
from recollect_server.engine.torch_device import TorchDevice
from recollect_server.engine.torch_search import ExactSearch, ProductSearch


class Scripted(ProductSearch):
    """Takes as long as it is told, by the clock of `Script`; may fail or answer wrongly."""

    def __init__(
        self,
        name: str,
        script: Script,
        *,
        takes_s: float,
        error: float = 0.0,
        weigh_error: float = 0.0,
        fails: bool = False,
    ) -> None:
        self.name = name
        self.raises: Exception | None = RuntimeError("out of registers") if fails else None
        self.weigh_raises: Exception | None = None
        self._script, self._takes_s, self._error, self._weigh_error = script, takes_s, error, weigh_error

    def top_k_of(
        self, queries: torch.Tensor, keys: torch.Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._script.now_s += self._takes_s
        self._script.calls += 1
        if self.raises is not None:
            raise self.raises
        scores, slots = super().top_k_of(queries, keys, live, top_k)
        return scores + self._error, slots

    def weigh(
        self, scores: torch.Tensor, slots: torch.Tensor, values: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.weigh_raises is not None:
            raise self.weigh_raises
        output, lse = super().weigh(scores, slots, values, scale)
        return output + self._weigh_error, lse


class Script:
    """A clock that ways move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls = 0

    def __call__(self) -> float:
        return self.now_s


def choose(choice: Choice, queries: int = 5) -> str:
    way = run_through(choice.way_for(heads=1, dims=(4, 6), dtype=torch.float32, top_k=3, queries=queries))
    return way.name


def test_the_fastest_way_is_chosen_once_for_each_kind_of_question() -> None:
    """A card is searched the slower way, or measured again with each call."""
    script = Script()
    ways = [Scripted("slow", script, takes_s=2.0), Scripted("fast", script, takes_s=1.0)]
    choice = Choice(ways, torch.device("cpu"), clock=script)
    assert choose(choice) == "fast"
    calls = script.calls
    assert choose(choice, queries=7) == "fast"  # of the same size class
    assert script.calls == calls
    assert choose(choice, queries=9) == "fast"
    assert script.calls > calls


def test_a_way_that_fails_or_errs_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A kernel that does not compile on a card, or is wrong there, answers calls; or nobody hears of it."""
    script = Script()
    unlaunched = Scripted("unlaunched", script, takes_s=1.0)
    unlaunched.weigh_raises = RuntimeError("out of resource: shared memory")
    ways = [
        Scripted("right", script, takes_s=3.0),
        Scripted("wrong", script, takes_s=1.0, error=1.0),
        Scripted("broken", script, takes_s=1.0, fails=True),
        Scripted("mixed up", script, takes_s=1.0, weigh_error=1.0),
        unlaunched,
    ]
    choice = Choice(ways, torch.device("cpu"), clock=script)
    assert choose(choice) == "right"
    assert choose(choice, queries=100) == "right"
    out = {"wrong", "broken", "mixed up", "unlaunched"}
    assert set(choice.failures) == out
    assert "shared memory" in choice.failures["unlaunched"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(out)
    assert all(any(repr(name) in line for line in said) for name in out)


SPEC = NamespaceSpec((0,), 2, 4, 6, capacity=200, dtype=Dtype.FLOAT32)


def attended(store: Store, data: DenseArray) -> None:
    """Compares an attend over slots 0 to 199 with float64."""
    out = run_through(store.attend(data, [slice(0, 200)], 3, scale=0.5))
    q = data.raw.astype(np.float64)
    products = q @ q.transpose(0, 2, 1)
    best = np.argsort(-products, axis=-1)[..., :3]
    p = np.exp(0.5 * np.take_along_axis(products, best, axis=-1))
    values = np.concatenate([q, q[..., :2]], axis=-1)
    chosen = values[np.arange(2)[:, None, None], best]
    wanted = np.einsum("htk,htkd->htd", p / p.sum(axis=-1, keepdims=True), chosen)
    np.testing.assert_allclose(out.output, wanted, atol=1e-4)
    np.testing.assert_allclose(out.lse, np.log(p.sum(axis=-1)), atol=1e-4)


def store_of(way: ExactSearch) -> tuple[Store, DenseArray]:
    """A store that has this way, and its keys; values are the same, and two elements of them again."""
    store = TorchDevice("cpu", ways=[way]).store(SPEC)
    raw = np.random.default_rng(0).standard_normal((2, 200, 4)).astype(np.float32)
    values = np.concatenate([raw, raw[..., :2]], axis=-1)
    run_through(store.growing(200, []))
    keys = from_float32(raw, Dtype.FLOAT32)
    store.write([Write(slice(0, 200), slice(0, 200))], keys, from_float32(values, Dtype.FLOAT32))
    return store, keys


@pytest.mark.parametrize("part", ["search", "weigh"])
@pytest.mark.parametrize(
    ("error", "is_for_good"),
    [
        (RuntimeError("out of resource: shared memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("StandardGpuResources: alloc fail (cudaMalloc error out of memory [2])"), False),
    ],
)
def test_the_product_answers_where_a_way_fails_later(
    part: str, error: Exception, is_for_good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls of shapes that a way fails for all fail, or a card that was full once is slow for ever."""
    script = Script()
    fast = Scripted("fast", script, takes_s=1.0)
    store, data = store_of(fast)
    attended(store, data)
    if part == "search":
        fast.raises = error
    else:
        fast.weigh_raises = error
    for _ in range(3):
        attended(store, data)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'fast'" in caplog.text
    assert repr(error) in caplog.text
    fast.raises = fast.weigh_raises = None
    calls = script.calls
    attended(store, data)
    assert (script.calls == calls) == is_for_good


def test_a_card_that_is_too_full_to_measure_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first calls of a kind fail on a full card, or a way is left out for what was not its fault."""
    script = Script()
    fast, slow = Scripted("fast", script, takes_s=1.0), Scripted("slow", script, takes_s=2.0)
    choice = Choice([fast, slow], torch.device("cpu"), clock=script)
    full = torch.OutOfMemoryError("CUDA out of memory")
    fast.raises = full
    assert choose(choice) == "slow"
    script.now_s += torch_choice.MEASURED_AGAIN_S
    with monkeypatch.context() as patch:
        patch.setattr(ProductSearch, "weigh", Scripted.weigh)  # the reference, too
        patch.setattr(ProductSearch, "weigh_raises", full, raising=False)
        assert choose(choice) == "product"
        calls = script.calls
        assert choose(choice) == "product"
        assert script.calls == calls, "not measured again with each call"
    fast.raises = None
    script.now_s += torch_choice.MEASURED_AGAIN_S
    assert choose(choice) == "fast"
    assert not choice.failures
    calls = script.calls
    script.now_s += 10 * torch_choice.MEASURED_AGAIN_S
    assert choose(choice) == "fast"
    assert script.calls == calls


def test_a_way_can_be_forced() -> None:
    """Who knows better than the measurement cannot say so, or a misspelt name goes unnoticed."""
    script = Script()
    ways = [Scripted("slow", script, takes_s=2.0), Scripted("fast", script, takes_s=1.0)]
    assert choose(Choice(ways, torch.device("cpu"), forced="slow", clock=script)) == "slow"
    assert script.calls == 0
    with pytest.raises(ValueError, match="auto, slow, fast"):
        Choice(ways, torch.device("cpu"), forced="slwo")
