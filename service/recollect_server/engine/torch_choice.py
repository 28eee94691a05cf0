"""Which exact search answers a question fastest on this card: measured once for each kind of question."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recollect_server.domain import work
from recollect_server.domain.steps import Steps
from recollect_server.engine.torch_memory import is_out_of_memory
from recollect_server.engine.torch_search import ExactSearch, ProductSearch

log = logging.getLogger(__name__)

AUTO = "auto"

SAMPLE_ROWS = 65_536
SAMPLE_BYTES_MAX = 128 * 1024 * 1024
"""What is measured: a bank of so many entries, or of so many bytes if that is less."""

SAMPLE_QUERIES_MAX = 4096
REPEATS = 3
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""By how much answers may differ from the product's, as a part of the largest; FAISS may use TF32."""

MEASURED_AGAIN_S = 60.0
"""Where the card was too full to measure all ways, what was chosen holds for so long."""


class Question(NamedTuple):
    """What questions are alike for: `top_k` and `queries` are powers of two that are not less."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    top_k: int
    queries: int


class _Chosen(NamedTuple):
    way: ExactSearch
    until_s: float


class Choice:
    """Chooses among ways to search. A way that fails, or answers otherwise than the product, is left out.

    One that finds too little memory is not: it answers again when there is some.

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
        self._product = ProductSearch()
        self._ways = [_Backed(way, self._product, self) for way in ways if forced in (AUTO, way.name)]
        self._device = device
        self._clock = clock
        self._chosen: dict[Question, _Chosen] = {}
        self._short_of_memory: set[str] = set()
        self.failures: dict[str, str] = {}
        """Ways that were left out, and why."""

    def way_for(
        self, *, heads: int, dims: tuple[int, int], dtype: torch.dtype, top_k: int, queries: int
    ) -> Steps[ExactSearch]:
        """The way for `queries` of each of `heads`; measures it, in steps, for the first of a kind.

        Args:
            heads: Of the memory.
            dims: Of keys and of values.
            dtype: Of what is stored.
            top_k: How many neighbours are asked for.
            queries: Of each head.

        Returns:
            One that never fails where the product would not.
        """
        able = [way for way in self._ways if way.takes(top_k) and way.name not in self.failures]
        if len(able) <= 1:
            return able[0] if able else self._product
        sizes = _power_of_two(top_k), min(SAMPLE_QUERIES_MAX, _power_of_two(queries))
        question = Question(heads, *dims, dtype, *sizes)
        chosen = self._chosen.get(question)
        if chosen is None or chosen.way.name in self.failures or self._clock() >= chosen.until_s:
            chosen = self._chosen[question] = yield from self._measured(able, question, top_k)
        return chosen.way

    def failed(self, name: str, error: Exception | str) -> None:
        """Leaves a way out, unless it was but short of memory; says so, once."""
        if isinstance(error, Exception) and is_out_of_memory(error):
            if name not in self._short_of_memory:
                log.warning("too little memory on the device for search by %r: %r", name, error)
            self._short_of_memory.add(name)
        elif name not in self.failures:
            log.warning("search by %r is left out from now on: %r", name, error)
            self.failures[name] = str(error) if isinstance(error, str) else repr(error)

    def _measured(self, ways: Sequence[_Backed], question: Question, top_k: int) -> Steps[_Chosen]:
        """The fastest of those for which there is memory now."""
        try:
            sample = _Sample.of(question, top_k, self._device)
            hits = self._product.top_k_of(sample.queries, sample.keys, sample.live, top_k)
            wanted = sample.answer_of(self._product, hits)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.failed("measuring", error)
            return _Chosen(self._product, self._clock() + MEASURED_AGAIN_S)
        best: tuple[float, ExactSearch] | None = None
        is_short = False
        for way in ways:
            times: list[float] = []
            while len(times) < 1 + REPEATS:  # the first compiles
                began = self._clock()
                try:
                    answer = sample.answer_of(way.itself, hits)
                    self._wait()
                except Exception as error:  # whatever a card's library raises, others can answer
                    self.failed(way.name, error)
                    is_short = is_short or is_out_of_memory(error)
                    break
                times.append(self._clock() - began)
                if not all(map(_alike, answer, wanted, [TOLERANCE[question.dtype]] * len(wanted))):
                    self.failed(way.name, "it answers otherwise than the product")
                    break
                yield sample.work
            else:
                median = sorted(times[1:])[REPEATS // 2]
                if best is None or median < best[0]:
                    best = median, way
        until_s = self._clock() + MEASURED_AGAIN_S if is_short else math.inf
        return _Chosen(self._product if best is None else best[1], until_s)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class _Backed:
    """A way for which the product answers where it fails: other shapes come than were measured."""

    def __init__(self, itself: ExactSearch, product: ExactSearch, choice: Choice) -> None:
        self.itself = itself
        self._product = product
        self._choice = choice

    @property
    def name(self) -> str:
        """See `ExactSearch.name`."""
        return self.itself.name

    def takes(self, top_k: int) -> bool:
        """See `ExactSearch.takes`."""
        return self.itself.takes(top_k)

    def top_k_of(
        self, queries: Tensor, keys: Tensor, live: Sequence[slice], top_k: int
    ) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.top_k_of`."""
        if not self._is_out():
            try:
                return self.itself.top_k_of(queries, keys, live, top_k)
            except Exception as error:
                self._failed(error)
        return self._product.top_k_of(queries, keys, live, top_k)

    def weigh(self, scores: Tensor, slots: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `ExactSearch.weigh`."""
        if not self._is_out():
            try:
                return self.itself.weigh(scores, slots, values, scale)
            except Exception as error:
                self._failed(error)
        return self._product.weigh(scores, slots, values, scale)

    def _is_out(self) -> bool:
        return self.name in self._choice.failures

    def _failed(self, error: Exception) -> None:
        if self.name == self._product.name:
            raise error
        self._choice.failed(self.name, error)


class _Sample(NamedTuple):
    """A bank that is asked, to measure."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    live: list[slice]
    top_k: int

    @classmethod
    def of(cls, question: Question, top_k: int, device: torch.device) -> _Sample:
        """Random entries in a ring that wraps."""
        heads, key_dim, value_dim, dtype, _, count = question
        made = torch.Generator(device=device).manual_seed(0)
        entry_bytes = heads * (key_dim + value_dim) * dtype.itemsize
        rows = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES_MAX // entry_bytes))
        queries, keys, values = (
            torch.randn((heads, size, dim), generator=made, device=device).to(dtype)
            for size, dim in ((count, key_dim), (rows, key_dim), (rows, value_dim))
        )
        return cls(queries, keys, values, [slice(rows // 4, rows), slice(0, rows // 4)], top_k)

    @property
    def work(self) -> int:
        """Of an answer, in multiply-adds."""
        heads, count, key_dim = self.queries.shape
        gathered = count * work.gathered(self.top_k, self.values.shape[2])
        return heads * (work.searched(count, self.keys.shape[1], key_dim) + gathered)

    def answer_of(self, way: ExactSearch, hits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores; and output and log-sum-exp of given hits: of two alike ways may find either."""
        scores, _ = way.top_k_of(self.queries, self.keys, self.live, self.top_k)
        return scores, *way.weigh(*hits, self.values, self.queries.shape[2] ** -0.5)


def _alike(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    finite = wanted.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    largest = wanted[finite].abs().max().item() if finite.any() else 0.0
    return bool((found[finite] - wanted[finite]).abs().le(tolerance * largest).all())


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
