"""What the GPU benchmark measures: attention over small banks, search of a large one, and the card's limits.

The engine is called as the server calls it, without a wire, and beside it each way to search by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recollect_bench.datasets import SUBSPACE_DIM, SUBSPACE_NOISE
from recollect_bench.timing import Spread, alternate
from recollect_server.domain.arrays import DenseArray
from recollect_server.domain.ports import Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.engine import attention_torch
from recollect_server.engine.torch_device import TorchDevice, TorchStore
from recollect_server.engine.torch_search import (
    ExactSearch,
    FaissSearch,
    ProductSearch,
    fused_search,
    has_triton,
)

WAYS = ("faiss", "product", "fused")
PRODUCT, STORE, STORE_EXACT = "the product alone", "the store", "the store, exact"
TOGETHER, ONE_BY_ONE = "together", "one by one"
WHOLE = "torch matmul + topk"

WRITTEN_ROWS = 65_536
TRAINING_READS_MAX, SETTLING_READS = 200, 16
SCORE_ERROR = 1e-5
"""Of two products of the same vectors, as a part of the largest."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. The defaults are the benchmark; less is for a test of it."""

    rows: int = 8
    heads: int = 8
    queries: int = 512
    entries: int = 65_536
    dim: int = 64
    decoding_rows: int = 64
    decoding_entries: int = 4096
    large_queries: int = 512
    large_entries: int = 2_097_152
    large_dim: int = 768
    top_k: int = 32
    recall: float = 0.95
    sampled: int = 1024
    square: int = 8192
    copied_bytes: int = 1 << 30
    rounds: int = 25
    seconds_max: float = 60.0


@dataclass(slots=True)
class Case:
    """What was found for one question.

    Attributes:
        title: Of the question.
        products: Multiply-adds of its matrix product.
        key_bytes: Of all keys.
        times: By what was timed.
        recall: Of queries of a sample; whatever only multiplies has none.
        absent: Ways that took no part, with the reason.
        remark: Whatever has to be known to read it.
    """

    title: str
    products: int
    key_bytes: int
    times: dict[str, Spread] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    def tflops(self, name: str) -> float:
        """As many as the product has, in the time that was taken."""
        return 2e-12 * self.products / self.times[name].median_s

    def keys_gb_s(self, name: str) -> float:
        """As if each key was read once, in the time that was taken."""
        return 1e-9 * self.key_bytes / self.times[name].median_s

    def of_product(self, name: str) -> float:
        """The speed, as a part of the product's."""
        return self.times[PRODUCT].median_s / self.times[name].median_s


class Bench:
    """Measures on one device.

    Args:
        device: A CUDA device; or the CPU, to test this.
        sizes: What is measured.
        seed: Of the data.
        without: Ways that are left out.
        ways: To search; those of the device if None.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Sizes,
        *,
        seed: int = 0,
        without: Collection[str] = (),
        ways: Sequence[ExactSearch] | None = None,
    ) -> None:
        self._device, self._sizes = device, sizes
        self._made = torch.Generator(device=device).manual_seed(seed)
        found, absent = ways_of(device) if ways is None else (list(ways), {})
        self._ways = [way for way in found if way.name not in without]
        self._absent = absent | dict.fromkeys(without, "left out")
        self._engine = TorchDevice(str(device), ways=self._ways)

    def limits(self) -> dict[str, float]:
        """What the card can do: a large square product in TFLOP/s, and copies, read and written, in GB/s."""
        size, copied = self._sizes.square, self._sizes.copied_bytes
        left, right = (self._points(1, size, size)[0] for _ in range(2))
        out = torch.empty_like(left)
        source = torch.zeros(copied, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        times = self._alternate(
            {
                "product": lambda: torch.matmul(left, right, out=out),
                "copy": lambda: target.copy_(source),
            }
        )
        return {
            "product_tflops": 2e-12 * size**3 / times["product"].median_s,
            "copy_gb_s": 2e-9 * copied / times["copy"].median_s,
        }

    def attend(self) -> Case:
        """All heads of all rows over a bank each: selection, softmax and values."""
        s = self._sizes
        heads = s.rows * s.heads
        case = Case(
            f"attend: {s.rows} rows x {s.heads} heads x {s.queries} queries over {s.entries:,} x {s.dim} float16",
            products=heads * s.queries * s.entries * s.dim,
            key_bytes=2 * heads * s.entries * s.dim,
            absent=dict(self._absent),
            remark=f"{s.rows} banks, one after the other; k = {s.top_k}; the index is exact.",
        )
        spec = NamespaceSpec((0,), s.heads, s.dim, s.dim, s.entries, Dtype.FLOAT16, IndexChoice.EXACT)
        keys, queries = (self._points(heads, size, s.dim) for size in (s.entries, s.queries))
        live, scale = [slice(0, s.entries)], s.dim**-0.5
        banks = [slice(first, first + s.heads) for first in range(0, heads, s.heads)]
        stores = [self._filled(spec, keys[bank]) for bank in banks]
        asked = [_down(queries[bank]) for bank in banks]

        def by_store() -> Tensor:
            pairs = zip(stores, asked, strict=True)
            found = [run_through(store.attend(q, live, s.top_k, scale=scale)).slots for store, q in pairs]
            return torch.from_numpy(np.concatenate(found))

        def by_way(way: ExactSearch) -> Tensor:
            found = []
            for bank in banks:
                scores, slots = way.top_k_of(queries[bank], keys[bank], live, s.top_k)
                way.weigh(scores, slots, keys[bank], scale)
                found.append(slots)
            return torch.cat(found)

        def whole() -> Tensor:
            found = []
            for bank in banks:
                scores, slots = torch.bmm(queries[bank], keys[bank].transpose(1, 2)).topk(s.top_k, dim=-1)
                attention_torch.weigh(scores.float(), slots, keys[bank], scale)
                found.append(slots)
            return torch.cat(found)

        calls: dict[str, Callable[[], Tensor]] = {STORE: by_store, WHOLE: whole}
        calls |= {way.name: partial(by_way, way) for way in self._ways}
        return self._measured(case, calls, queries, keys)

    def decode(self) -> dict[str, Spread]:
        """A decoding step of many conversations, one query of each head: their banks together, and one by one."""
        s = self._sizes
        spec = NamespaceSpec(
            (0,), s.heads, s.dim, s.dim, s.decoding_entries, Dtype.FLOAT16, IndexChoice.EXACT
        )
        rows: list[tuple[Store, Sequence[slice]]] = []
        for row in range(s.decoding_rows):
            entries = s.decoding_entries - row  # no two are alike
            rows.append((self._filled(spec, self._points(s.heads, entries, s.dim)), [slice(0, entries)]))
        queries = _down(self._points(s.decoding_rows * s.heads, 1, s.dim))
        asked = DenseArray(queries.raw.reshape(s.decoding_rows, s.heads, 1, s.dim), queries.dtype)
        scale = s.dim**-0.5

        def together() -> None:
            run_through(rows[0][0].attend_rows(rows, asked, s.top_k, scale=scale))

        def one_by_one() -> None:
            for row, (store, live) in enumerate(rows):
                run_through(store.attend(asked.row(row), live, s.top_k, scale=scale))

        return self._alternate({TOGETHER: together, ONE_BY_ONE: one_by_one})

    def search(self) -> Case:
        """One large bank, by its inverted file and exactly."""
        s = self._sizes
        case = Case(
            f"search: {s.large_queries} queries over {s.large_entries:,} x {s.large_dim} float16",
            products=s.large_queries * s.large_entries * s.large_dim,
            key_bytes=2 * s.large_entries * s.large_dim,
            absent=dict(self._absent),
        )
        choice = IndexChoice.IVF, s.recall
        spec = NamespaceSpec((0,), 1, s.large_dim, 1, s.large_entries, Dtype.FLOAT16, *choice)
        basis = torch.linalg.qr(self._normal(s.large_dim, SUBSPACE_DIM)).Q
        keys, queries = (
            self._points(1, size, s.large_dim, basis=basis) for size in (s.large_entries, s.large_queries)
        )
        store, live, asked = self._filled(spec, keys), [slice(0, s.large_entries)], _down(queries)

        def by_store(*, exact: bool) -> Tensor:
            return torch.from_numpy(run_through(store.search(asked, live, s.top_k, exact=exact)).slots)

        def by_way(way: ExactSearch) -> Tensor:
            return way.top_k_of(queries, keys, live, s.top_k)[1]

        def whole() -> Tensor:
            return torch.bmm(queries, keys.transpose(1, 2)).topk(s.top_k, dim=-1).indices

        reads = 0
        while store.index_state.index != "ivf" and reads < TRAINING_READS_MAX:
            by_store(exact=False)
            reads += 1
        for _ in range(SETTLING_READS):
            by_store(exact=False)
        calls: dict[str, Callable[[], Tensor]] = {
            STORE: partial(by_store, exact=False),
            STORE_EXACT: partial(by_store, exact=True),
            WHOLE: whole,
        }
        calls |= {way.name: partial(by_way, way) for way in self._ways}
        self._measured(case, calls, queries, keys)
        state = store.index_state
        case.remark = (
            f"k = {s.top_k}. The keys lie near a subspace of {SUBSPACE_DIM} dimensions. After {reads} reads "
            f"{state.index!r} answers: {state.lists} lists, {state.probes} probes"
            f"{f'; {state.reason}' if state.reason else ''}."
        )
        return case

    @property
    def left_out(self) -> dict[str, str]:
        """Ways that the engine's own choice has left out, and why."""
        return dict(self._engine._choice.failures)

    def _measured(
        self, case: Case, calls: Mapping[str, Callable[[], Tensor]], queries: Tensor, keys: Tensor
    ) -> Case:
        """Tries each, takes its recall, then times all that did not fail, in turns. The store must not fail."""
        sampled = -(-self._sizes.sampled // queries.shape[0])  # of each head
        least = kth_scores(queries[:, :sampled], keys, self._sizes.top_k)
        able: dict[str, Callable[[], object]] = {}
        for name, call in calls.items():
            try:
                found = call()
                self._wait()
            except Exception as error:  # whatever a card's library raises, the others are measured
                if name in (STORE, STORE_EXACT):
                    raise
                case.absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            case.recall[name] = recall_of(found.to(self._device), queries, keys, least)
            able[name] = call
        right = keys.transpose(1, 2)
        out = torch.empty((*queries.shape[:2], keys.shape[1]), dtype=keys.dtype, device=self._device)
        case.times = self._alternate({PRODUCT: lambda: torch.bmm(queries, right, out=out), **able})
        return case

    def _alternate(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, Spread]:
        def waited(call: Callable[[], object]) -> None:
            call()
            self._wait()

        return alternate(
            {name: partial(waited, call) for name, call in calls.items()},
            rounds=self._sizes.rounds,
            seconds_max=self._sizes.seconds_max,
            warm=2,
        )

    def _filled(self, spec: NamespaceSpec, keys: Tensor) -> TorchStore:
        """A store with these keys [Hkv, N, D]; a value is the beginning of its key."""
        store = self._engine.store(spec)
        run_through(store.growing(keys.shape[1], []))
        for first in range(0, keys.shape[1], WRITTEN_ROWS):
            block = keys[:, first : first + WRITTEN_ROWS]
            size = block.shape[1]
            write = Write(slice(first, first + size), slice(0, size))
            store.write([write], _down(block), _down(block[:, :, : spec.value_dim]))
        return store

    def _points(self, heads: int, size: int, dim: int, *, basis: Tensor | None = None) -> Tensor:
        """Unit vectors float16 [heads, size, dim]: a Gaussian's, or near the space that a basis spans."""
        points = torch.empty((heads, size, dim), dtype=torch.float16, device=self._device)
        for head in range(heads):
            for first in range(0, size, WRITTEN_ROWS):
                rows = min(WRITTEN_ROWS, size - first)
                block = self._normal(rows, dim)
                if basis is not None:
                    inside = torch.nn.functional.normalize(self._normal(rows, basis.shape[1]), dim=1)
                    block = inside @ basis.T + block * (SUBSPACE_NOISE / math.sqrt(dim))
                points[head, first : first + rows] = torch.nn.functional.normalize(block, dim=1).half()
        return points

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._made, device=self._device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def ways_of(device: torch.device) -> tuple[list[ExactSearch], dict[str, str]]:
    """The ways to search on a device, and why others are not there; a missing FAISS is no hindrance here."""
    ways: list[ExactSearch] = [ProductSearch()]
    absent: dict[str, str] = {}
    try:
        ways.insert(0, FaissSearch(device))
    except (ImportError, RuntimeError) as error:
        absent["faiss"] = str(error)
    if device.type != "cuda":
        absent["fused"] = "without a GPU there is only its interpreter, which is slow"
    elif not has_triton():
        absent["fused"] = "Triton is not installed"
    else:
        ways.append(fused_search())
    return ways, absent


def kth_scores(queries: Tensor, keys: Tensor, top_k: int) -> Tensor:
    """The k-th best product [H, N, 1] in float32 of queries [H, N, D] and all keys [H, n, D]."""
    best = torch.empty((*queries.shape[:2], 0), device=queries.device)
    for first in range(0, keys.shape[1], WRITTEN_ROWS):
        block = keys[:, first : first + WRITTEN_ROWS].float()
        scores = torch.cat((best, queries.float() @ block.transpose(1, 2)), dim=-1)
        best = scores.topk(min(top_k, scores.shape[-1]), dim=-1).values
    return best[:, :, -1:]


def recall_of(slots: Tensor, queries: Tensor, keys: Tensor, least: Tensor) -> float:
    """The share of slots [H, N, K] that are right, for the first queries, of which `least` has the k-th score.

    Their scores are taken anew, in float32. What scores as the k-th does is right; what comes twice counts once.
    """
    right, count = 0, least.shape[1]
    for head in range(slots.shape[0]):
        some = slots[head, :count].sort(dim=-1).values
        fresh = torch.ones_like(some, dtype=torch.bool)
        fresh[:, 1:] = some[:, 1:] != some[:, :-1]
        rows = keys[head][some.clamp(min=0)].float()  # [N, K, D]
        scores = torch.bmm(rows, queries[head, :count].float()[:, :, None])[:, :, 0]
        enough = scores >= least[head] - SCORE_ERROR * least[head].abs().clamp(min=1)
        right += int((enough & fresh & (some >= 0)).sum())
    return right / slots[:, :count].numel()


def _down(rows: Tensor) -> DenseArray:
    return DenseArray(rows.contiguous().cpu().numpy(), Dtype.FLOAT16)
