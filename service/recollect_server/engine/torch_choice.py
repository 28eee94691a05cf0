"""Which exact search answers a question fastest on this card: measured once for each kind of question."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from recollect_server.domain import work
from recollect_server.domain.steps import Steps
from recollect_server.engine.torch_search import ExactSearch, ProductSearch

AUTO = "auto"

SAMPLE_ROWS = 65_536
SAMPLE_BYTES_MAX = 128 * 1024 * 1024
"""What is measured: a bank of so many keys, or of so many bytes if that is less."""

SAMPLE_QUERIES_MAX = 4096
REPEATS = 3
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""By how much scores may differ from the product's, as a part of the largest; FAISS may use TF32."""


class Question(NamedTuple):
    """What questions are alike for: `top_k` and `queries` are powers of two that are not less."""

    heads: int
    dim: int
    dtype: torch.dtype
    top_k: int
    queries: int


class Choice:
    """Chooses among ways to search. A way that fails, or finds other scores than the product, is left out.

    Args:
        ways: To choose from.
        device: Where they run.
        forced: The name of the one to use where it can, or "auto".
        clock: In seconds.

    Raises:
        ValueError: No way is called so.
    """

    def __init__(
        self,
        ways: Sequence[ExactSearch],
        device: torch.device,
        *,
        forced: str = AUTO,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        names = [way.name for way in ways]
        if forced != AUTO and forced not in names:
            raise ValueError(f"search is {forced!r}; this device has {AUTO}, {', '.join(names)}")
        self._ways = [way for way in ways if forced in (AUTO, way.name)]
        self._device = device
        self._clock = clock
        self._product = ProductSearch()
        self._chosen: dict[Question, ExactSearch] = {}
        self.failures: dict[str, str] = {}
        """Ways that were left out, and why."""

    def way_for(
        self, *, heads: int, dim: int, dtype: torch.dtype, top_k: int, queries: int
    ) -> Steps[ExactSearch]:
        """The way for `queries` of each of `heads`; measures it, in steps, for the first of a kind."""
        able = [way for way in self._ways if way.takes(top_k) and way.name not in self.failures]
        if len(able) <= 1:
            return able[0] if able else self._product
        sizes = _power_of_two(top_k), min(SAMPLE_QUERIES_MAX, _power_of_two(queries))
        question = Question(heads, dim, dtype, *sizes)
        if question not in self._chosen:
            self._chosen[question] = yield from self._fastest(able, question, top_k)
        return self._chosen[question]

    def _fastest(self, ways: Sequence[ExactSearch], question: Question, top_k: int) -> Steps[ExactSearch]:
        heads, dim, dtype, _, count = question
        made = torch.Generator(device=self._device).manual_seed(0)
        rows = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES_MAX // (heads * dim * dtype.itemsize)))
        keys, queries = (
            torch.randn((heads, size, dim), generator=made, device=self._device).to(dtype)
            for size in (rows, count)
        )
        live = [slice(rows // 4, rows), slice(0, rows // 4)]
        wanted, _ = self._product.top_k_of(queries, keys, live, top_k)
        best: tuple[float, ExactSearch] | None = None
        for way in ways:
            times: list[float] = []
            scores = wanted
            for _ in range(1 + REPEATS):  # the first compiles
                began = self._clock()
                try:
                    scores, _ = way.top_k_of(queries, keys, live, top_k)
                    self._wait()
                except Exception as error:  # whatever a card's library raises, others can answer
                    self.failures[way.name] = repr(error)
                    break
                times.append(self._clock() - began)
                yield heads * work.searched(count, rows, dim)
            if way.name in self.failures:
                continue
            if not _alike(scores, wanted, TOLERANCE[dtype]):
                self.failures[way.name] = "found other scores than the product"
                continue
            median = sorted(times[1:])[REPEATS // 2]
            if best is None or median < best[0]:
                best = median, way
        return self._product if best is None else best[1]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _alike(scores: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    finite = wanted.isfinite()
    if not torch.equal(scores.isfinite(), finite):
        return False
    largest = wanted[finite].abs().max().item() if finite.any() else 0.0
    return bool((scores[finite] - wanted[finite]).abs().le(tolerance * largest).all())


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
