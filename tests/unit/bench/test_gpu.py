"""The GPU benchmark, tiny, on CPU tensors: the whole of it runs only where there is a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from recollect_server.engine.torch_search import ProductSearch
from tests.benchmarks import gpu, reports
from tests.benchmarks.gpu_cases import (
    ONE_BY_ONE,
    PRODUCT,
    STORE,
    STORE_EXACT,
    TOGETHER,
    WHOLE,
    Bench,
    Sizes,
    kth_scores,
    recall_of,
)

TINY = Sizes(
    rows=2,
    heads=2,
    queries=8,
    entries=600,
    dim=16,
    decoding_rows=3,
    decoding_entries=50,
    large_queries=16,
    large_entries=4500,
    large_dim=24,
    top_k=8,
    recall=0.6,
    sampled=24,
    square=32,
    copied_bytes=1000,
    rounds=2,
    seconds_max=1.0,
)


def test_it_runs_and_reports() -> None:
    """On the day that there is a GPU, the benchmark fails instead of measuring."""
    report = gpu.measure(torch.device("cpu"), TINY)
    assert set(report.attend.times) == {PRODUCT, STORE, WHOLE, "product"}
    assert set(report.search.times) == {PRODUCT, STORE, STORE_EXACT, WHOLE, "product"}
    assert set(report.attend.absent) == {"faiss", "fused"}
    for case in (report.attend, report.search):
        assert case.recall["product"] == 1.0
        assert case.recall[WHOLE] >= 0.9  # its scores are rounded to float16
    assert report.attend.recall[STORE] == report.search.recall[STORE_EXACT] == 1.0
    assert 0.5 <= report.search.recall[STORE] < 1.0
    assert "'ivf' answers" in report.search.remark
    assert set(report.decode) == {TOGETHER, ONE_BY_ONE}
    page = report.page()
    for said in (
        "## attend: 2 rows x 2 heads x 8 queries over 600 x 16",
        "| the store, exact |",
        "goal",
        "- banks together:",
    ):
        assert said in page
    assert json.loads(json.dumps(report.as_dict()))["sizes"]["large_entries"] == 4500


class Failing(ProductSearch):
    """A way that works on other cards."""

    name = "fused"

    def top_k_of(
        self, queries: torch.Tensor, keys: torch.Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("out of registers")


def test_ways_that_fail_or_are_left_out_are_named() -> None:
    """One kernel that a card refuses leaves the whole benchmark without a figure, or goes unmentioned."""
    case = Bench(torch.device("cpu"), TINY, ways=[Failing(), ProductSearch()]).attend()
    assert set(case.times) == {PRODUCT, STORE, WHOLE, "product"}
    assert case.absent == {"fused": "RuntimeError: out of registers"}
    case = Bench(torch.device("cpu"), TINY, without=["product"]).attend()
    assert set(case.times) == {PRODUCT, STORE, WHOLE}
    assert case.absent["product"] == "left out"


def test_recall_is_by_score() -> None:
    """A wrong entry counts as right, one that comes twice counts twice, or one of a tie counts as wrong."""
    keys = torch.eye(4)[None, [0, 0, 1, 2, 3]].half()
    queries = torch.tensor([[[3.0, 2.0, 1.0, 0.0]]]).half()
    least = kth_scores(queries, keys, 2)
    assert least.tolist() == [[[3.0]]]
    for slots, wanted in (([0, 1], 1.0), ([1, 1], 0.5), ([0, 2], 0.5), ([1, -1], 0.5), ([3, 4], 0.0)):
        assert recall_of(torch.tensor([[slots]]), queries, keys, least) == wanted


def test_the_kth_score_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall is taken against scores that are not the k-th best: every figure of it is wrong."""
    monkeypatch.setattr("tests.benchmarks.gpu_cases.WRITTEN_ROWS", 70)
    made = np.random.default_rng(0)
    queries, keys = (made.standard_normal((2, size, 8)).astype(np.float16) for size in (5, 300))
    scores = queries.astype(np.float64) @ keys.astype(np.float64).transpose(0, 2, 1)
    found = kth_scores(torch.from_numpy(queries), torch.from_numpy(keys), 6)
    np.testing.assert_allclose(found[..., 0], np.sort(scores, axis=-1)[..., -6], atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report of a CPU is written over that of a GPU, or `make bench-gpu` fails where there is none."""
    monkeypatch.setattr(reports, "REPORTS", tmp_path)
    gpu.main([])
    assert "no NVIDIA GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
