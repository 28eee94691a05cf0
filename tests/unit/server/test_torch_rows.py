"""Small banks that a GPU's store reads together, on CPU tensors, against each read by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from recollect_server.domain import work
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.ports import Attention, Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec, ValueDtype
from recollect_server.domain.steps import UNBOUNDED, Steps, run_through
from recollect_server.engine import torch_device, torch_rows
from recollect_server.engine.torch_device import TorchDevice
from recollect_server.engine.torch_rule import IndexRule
from tests.unit.server.use_cases import steps_of

HEADS, DIM, TOP_K = 3, 8, 6
LIVES: list[list[slice]] = [
    [slice(0, 50)],
    [slice(30, 50), slice(0, 7)],
    [slice(8, 9)],
    [slice(2, 40)],
    [slice(49, 50), slice(0, 49)],
]
Banks = list[tuple[Store, Sequence[slice]]]


@pytest.fixture
def read_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many banks were, call by call."""
    sizes: list[int] = []
    attend = torch_rows.attend_together

    def noted(
        rows: Sequence[torch_rows.Row], queries: torch.Tensor, top_k: int, *, scale: float
    ) -> Attention | None:
        sizes.append(len(rows))
        return attend(rows, queries, top_k, scale=scale)

    monkeypatch.setattr(torch_device, "attend_together", noted)
    return sizes


def banks_of(
    *,
    dtype: Dtype = Dtype.FLOAT32,
    value_dtype: ValueDtype | None = None,
    rule: IndexRule | None = None,
    entries: int = 50,
) -> Banks:
    """One for each of `LIVES`."""
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, entries, dtype, IndexChoice.AUTO, value_dtype=value_dtype)
    device, banks = TorchDevice("cpu", index=rule), Banks()
    for row, live in enumerate(LIVES):
        rng = np.random.default_rng(row)
        made = from_float32(rng.standard_normal((HEADS, entries, DIM)).astype(np.float32), dtype)
        store = device.store(spec)
        run_through(store.growing(entries, []))
        store.write([Write(slice(0, entries), slice(0, entries))], made, made)
        banks.append((store, live))
    return banks


def asked(banks: Banks, *, tokens: int = 2, dtype: Dtype = Dtype.FLOAT32, budget: int = UNBOUNDED) -> int:
    """Asks all banks at once and one by one, and compares; returns how many steps the first took."""
    rng = np.random.default_rng(9)
    shape = (len(banks), 2 * HEADS, tokens, DIM)
    q = from_float32(rng.standard_normal(shape).astype(np.float32), dtype)
    answers: list[Attention] = []

    def ask() -> Steps[Attention]:
        answers.append((yield from banks[0][0].attend_rows(banks, q, TOP_K, scale=0.4)))
        return answers[0]

    steps = steps_of(ask(), budget)
    for row, (store, live) in enumerate(banks):
        alone = run_through(store.attend(q.row(row), live, TOP_K, scale=0.4))
        np.testing.assert_array_equal(answers[0].slots[row], alone.slots)
        np.testing.assert_allclose(answers[0].output[row], alone.output, atol=1e-5)
        np.testing.assert_allclose(answers[0].lse[row], alone.lse, atol=1e-5)
    return len(steps)


@pytest.mark.parametrize("value_dtype", [None, ValueDtype.INT8])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_small_banks_are_read_together(
    read_together: list[int], dtype: Dtype, value_dtype: ValueDtype | None
) -> None:
    """A decoding step of many conversations takes as many operations as there are of them; or rows mix."""
    asked(banks_of(dtype=dtype, value_dtype=value_dtype), dtype=dtype)
    assert read_together == [len(LIVES)]


def test_a_bank_that_is_not_small_is_read_by_itself(read_together: list[int]) -> None:
    """Lists are not used where a bank comes with others, or never made; an empty bank ends the call."""
    banks = banks_of()
    store, _ = banks_of(rule=IndexRule(index="ivf", entries_min=10))[0]
    banks[2] = store, [slice(0, 50)]
    banks.append((banks[0][0], []))
    asked(banks)
    assert read_together == [2, 2]
    assert store.index_state.reason != "there are fewer than 10 entries"


def test_many_queries_are_not_copied_for(read_together: list[int]) -> None:
    """A training step has every bank copied, though one is work enough for a device."""
    tokens = torch_device.TOGETHER_MAX // (2 * HEADS)
    asked(banks_of(), tokens=tokens)
    assert read_together == [len(LIVES)]
    asked(banks_of(), tokens=tokens + 1)
    assert read_together == [len(LIVES)]


def test_no_more_at_once_than_fits(read_together: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks of many conversations take a multiple of their memory for a moment, and the card has no more."""
    widest = 50 * HEADS * (2 * 2 * DIM * 4 + 4 * (DIM + 4))
    monkeypatch.setattr(torch_rows, "SCRATCH_BYTES_MAX", 2 * widest)
    asked(banks_of())
    assert read_together == [2, 2]  # and the last, which is as long as the first, by itself


def test_a_full_card_reads_them_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory for copies a decoding step fails, which would need next to none."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_rows, "_side_by_side", full)
    asked(banks_of())


def test_steps_are_as_small_as_they_should(read_together: list[int]) -> None:
    """A call of many rows holds the device for longer than it was granted."""
    one = HEADS * work.searched(4, 50, DIM)
    assert asked(banks_of(), budget=2 * one) >= 2
    assert max(read_together) <= 3
