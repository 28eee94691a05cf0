"""All stores, slot by slot, where the wire does not show: blocks, growth, zeroing, edge cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.ports import Device, Hits, Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import UNBOUNDED, Result, Steps, run_through
from recollect_server.engine import (
    attention_cpu,
    attention_torch,
    faiss_cpu,
    faiss_store,
    tiles,
    torch_device,
)
from recollect_server.engine.cpu import CpuDevice
from recollect_server.engine.cpu_buffers import CpuBuffers
from recollect_server.engine.torch_device import TorchDevice, TorchStore
from tests.unit.server.use_cases import steps_of

DEVICES: dict[str, Callable[[], Device]] = {
    "kernels": CpuDevice,
    "faiss": lambda: CpuDevice(compiled=False),
    "torch": lambda: TorchDevice("cpu"),
}
HEADS, DIM = 2, 3


@pytest.fixture(params=list(DEVICES))
def device(request: pytest.FixtureRequest) -> Device:
    """Each kind."""
    return DEVICES[str(request.param)]()


def filled(
    device: Device, entries: int, *, dtype: Dtype = Dtype.FLOAT32, seed: int = 0
) -> tuple[Store, DenseArray]:
    """A store whose slot i holds key and value i; and those [Hkv, entries, D]."""
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=entries, dtype=dtype)
    rng = np.random.default_rng(seed)
    data = from_float32(rng.standard_normal((HEADS, entries, DIM)).astype(np.float32), dtype)
    store = device.store(spec)
    run_through(store.growing(entries, []))
    store.write([Write(slice(0, entries), slice(0, entries))], data, data)
    return store, data


@pytest.mark.parametrize("entries", [64, 1000, 100_000])
def test_rows_begin_with_a_line(entries: int) -> None:
    """Each row of 64 elements lies in a line of the cache more than it has to, and takes longer to read."""
    spec = NamespaceSpec((0,), HEADS, 64, 64, capacity=entries, dtype=Dtype.FLOAT16)
    store = CpuDevice().store(spec)
    run_through(store.growing(entries, []))
    assert isinstance(store, CpuBuffers)
    for rows in (store._keys, store._values):
        assert rows.ctypes.data % 64 == 0
        assert rows.shape == (HEADS, entries, 64)
        assert rows.flags.c_contiguous
        assert not rows.any()


@pytest.mark.parametrize("dtype", list(Dtype))
def test_pairs_are_fetched_as_stored_or_widened(device: Device, dtype: Dtype) -> None:
    """What is fetched to a place that was given is not what is stored, or not in that place's dtype."""
    store, data = filled(device, 50, dtype=dtype)
    slots = np.random.default_rng(1).integers(-1, 50, size=(2 * HEADS, 4, 5))
    stored = data.float32()[np.arange(2 * HEADS)[:, None, None] // 2, slots]
    stored[slots < 0] = 0
    for of in (data.raw.dtype, np.dtype(np.float32)):
        for fetch in (store.keys, store.values):
            into = np.ones((*slots.shape, DIM), of)
            came = fetch(slots, into=into)
            assert came.raw is into
            assert came.dtype is (Dtype.FLOAT32 if of == np.float32 else dtype)
            np.testing.assert_array_equal(came.float32(), stored)
    np.testing.assert_array_equal(store.keys(slots).float32(), stored)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("live", [[slice(0, 40)], [slice(30, 40), slice(0, 7)], [slice(5, 6)]])
def test_only_live_slots_are_found(device: Device, dtype: Dtype, live: list[slice]) -> None:
    """A search reaches slots outside of the ring's live ones, or misses some of them."""
    store, data = filled(device, 40, dtype=dtype)
    slots = [slot for part in live for slot in range(part.start, part.stop)]
    queries = data.row(slice(None).start or 0).raw[None, :5]  # [1, 5, D]: repeated for both heads below
    q = DenseArray(np.repeat(queries, HEADS, axis=0), dtype)
    hits = run_through(store.search(q, live, 64))
    for head in range(HEADS):
        scores = q.float32()[head] @ data.float32()[head, slots].T
        count = len(slots)
        np.testing.assert_allclose(hits.scores[head, :, :count], -np.sort(-scores, axis=1), atol=1e-5)
        assert (np.sort(hits.slots[head, :, :count], axis=1) == sorted(slots)).all()
        assert (hits.slots[head, :, count:] == -1).all()
        assert np.isneginf(hits.scores[head, :, count:]).all()


@pytest.mark.parametrize("dtype", list(Dtype))
def test_blocks_do_not_show(device: Device, dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in blocks to bound scratch memory changes the answers."""
    store, data = filled(device, 40, dtype=dtype)
    rng = np.random.default_rng(1)
    q = from_float32(rng.standard_normal((4, 9, DIM)).astype(np.float32), dtype)
    live = [slice(25, 40), slice(0, 13)]
    answers = []
    for widened, gathered in ((32_768, 1 << 25), (4, 100)):
        monkeypatch.setattr(faiss_store, "WIDENED_ROWS_MAX", widened)
        monkeypatch.setattr(faiss_store, "GATHERED_BYTES_MAX", gathered)
        monkeypatch.setattr(torch_device, "GATHERED_BYTES_MAX", gathered)
        out = run_through(store.attend(q, live, 6, scale=0.5))
        gradient = run_through(store.attend_backward(q, out.slots, scale=0.5, grad_output=q, grad_lse=None))
        answers.append((out.output, out.lse, gradient))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert data.shape == (HEADS, 40, DIM)


def test_growth_moves_live_slots_to_the_front(device: Device) -> None:
    """Entries of a wrapped ring come out of a larger buffer in another order."""
    store, data = filled(device, 8)
    live = [slice(5, 8), slice(0, 2)]
    run_through(store.growing(16, live))
    slots = np.tile(np.arange(5), (HEADS, 1, 1))
    np.testing.assert_array_equal(store.keys(slots).raw[:, 0], data.raw[:, [5, 6, 7, 0, 1]])
    np.testing.assert_array_equal(store.values(slots).raw[:, 0], data.raw[:, [5, 6, 7, 0, 1]])


@pytest.mark.parametrize("budget", [1, 5_000, UNBOUNDED])
def test_entries_move_to_larger_buffers_a_little_at_a_time(device: Device, budget: int) -> None:
    """Whoever else uses the device waits until all of a bank has been copied; or entries change places."""
    store, data = filled(device, 600)
    steps = steps_of(store.growing(1200, [slice(400, 600), slice(0, 150)]), budget)
    if isinstance(store, CpuBuffers):
        assert max(steps) <= max(budget, work.moved_to_new(HEADS * DIM * 4))
    order = np.r_[400:600, 0:150]
    slots = np.tile(np.arange(order.size), (HEADS, 1, 1))
    for fetch in (store.keys, store.values):
        np.testing.assert_array_equal(fetch(slots).raw[:, 0], data.raw[:, order])


def test_compaction_keeps_order(device: Device) -> None:
    """After an eviction from the middle, keys and values belong to other entries."""
    store, data = filled(device, 8)
    run_through(store.compacting(np.array([6, 7, 1, 2]), 5))
    slots = np.tile(np.array([5, 6, 7, 0]), (HEADS, 1, 1))
    np.testing.assert_array_equal(store.keys(slots).raw[:, 0], data.raw[:, [6, 7, 1, 2]])
    np.testing.assert_array_equal(store.values(slots).raw[:, 0], data.raw[:, [6, 7, 1, 2]])


@pytest.mark.parametrize("how", ["grow", "clear"])
def test_freed_buffers_are_zeroed(device: Device, how: str) -> None:
    """Design decision 2: what one stream stored stays in memory that another may get."""
    store, _ = filled(device, 8)
    assert isinstance(store, CpuBuffers | TorchStore)
    old = [store._keys, store._values]
    if how == "grow":
        run_through(store.growing(16, [slice(0, 8)]))
    else:
        store.clear()
    for buffer in old:
        assert not np.asarray(buffer).any()


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("budget", [1, 60_000, UNBOUNDED])
def test_rows_are_attended_each_in_its_bank(device: Device, dtype: Dtype, tokens: int, budget: int) -> None:
    """A row of a call is answered from another row's bank, or from entries that are not live."""
    rng = np.random.default_rng(3)
    lives = [[slice(0, 50)], [slice(30, 40), slice(0, 7)], [], [slice(8, 9)], [slice(0, 50)], [slice(2, 40)]]
    stores = [filled(device, 50, dtype=dtype, seed=row) for row in range(len(lives))]
    stores[4] = stores[0]  # a bank may be asked twice
    q = from_float32(rng.standard_normal((len(lives), 2 * HEADS, tokens, DIM)).astype(np.float32), dtype)
    rows = [(store, live) for (store, _), live in zip(stores, lives, strict=True)]
    steps = stores[0][0].attend_rows(rows, q, 6, scale=0.7)
    out, _ = stepwise(steps, budget)
    for row, ((_, data), live) in enumerate(zip(stores, lives, strict=True)):
        slots = np.array([slot for part in live for slot in range(part.start, part.stop)], dtype=np.int64)
        if not slots.size:
            assert not out.output[row].any()
            assert np.isneginf(out.lse[row]).all()
            assert (out.slots[row] == -1).all()
            continue
        held = np.repeat(data.float32().astype(np.float64)[:, slots], 2, axis=0)  # [Hq, n, D]
        products = (
            np.float64(np.float32(0.7)) * q.row(row).float32().astype(np.float64) @ held.transpose(0, 2, 1)
        )
        best = np.argsort(-products, axis=-1)[..., :6]
        weights = np.exp(np.take_along_axis(products, best, axis=-1))
        chosen = held[np.arange(2 * HEADS)[:, None, None], best]
        wanted = np.einsum("htk,htkd->htd", weights / weights.sum(axis=-1, keepdims=True), chosen)
        np.testing.assert_array_equal(out.slots[row][..., : best.shape[-1]], slots[best])
        np.testing.assert_allclose(out.output[row], wanted, atol=1e-4)
        np.testing.assert_allclose(out.lse[row], np.log(weights.sum(axis=-1)), atol=1e-4)


def test_absent_pairs_are_zero(device: Device) -> None:
    """A hit that is not there brings the last slot's key."""
    store, data = filled(device, 4)
    slots = np.array([[[2, -1]], [[-1, 3]]])
    keys = store.keys(slots).raw
    np.testing.assert_array_equal(keys[0, 0, 0], data.raw[0, 2])
    np.testing.assert_array_equal(keys[1, 0, 1], data.raw[1, 3])
    assert not keys[0, 0, 1].any()
    assert not keys[1, 0, 0].any()


def test_backward_of_nothing_is_zero(device: Device) -> None:
    """A gradient of an empty memory is NaN."""
    store, _ = filled(device, 4)
    q = from_float32(np.ones((HEADS, 3, DIM), np.float32), Dtype.FLOAT32)
    slots = np.full((HEADS, 3, 5), -1)
    lse = np.ones((HEADS, 3), np.float32)
    backward = partial(store.attend_backward, q, slots, scale=1.0, grad_output=q, grad_lse=lse)
    assert not run_through(backward()).any()
    slots[0, 0, 0] = 1  # one query with an entry, the others without
    gradient = run_through(backward())
    assert gradient[0, 0].any()
    assert not gradient[0, 1:].any()
    assert not gradient[1].any()


def test_the_devices_name() -> None:
    """A server cannot say what it searches on."""
    assert CpuDevice().name == "cpu"
    assert TorchDevice("cpu").name == "cpu"


def stepwise(steps: Steps[Result], budget: int) -> tuple[Result, list[int]]:
    """Takes steps of a size; returns the result and what each step did."""
    done = []
    try:
        next(steps)
        while True:
            done.append(steps.send(budget))
    except StopIteration as finished:
        result: Result = finished.value
        return result, done


@pytest.mark.parametrize("budget", [1, 3_000, 40_000, 1_000_000])
@pytest.mark.parametrize("queries", [1, 9, 300])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_steps_do_not_show(
    device: Device, dtype: Dtype, queries: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was cut because others wait is answered otherwise than a whole one."""
    monkeypatch.setattr(tiles, "TILE_ROWS_MIN", 16)
    monkeypatch.setattr(tiles, "TILE_QUERIES", 64)
    store, _ = filled(device, 300, dtype=dtype)
    rng = np.random.default_rng(4)
    q = from_float32(rng.standard_normal((2 * HEADS, queries, DIM)).astype(np.float32), dtype)
    live = [slice(250, 300), slice(0, 200)]
    whole, cut = (stepwise(store.attend(q, live, 20, scale=0.5), b) for b in (UNBOUNDED, budget))
    # Products of another shape round otherwise, so two entries that score alike may change places.
    assert (np.sort(whole[0].slots, axis=-1) == np.sort(cut[0].slots, axis=-1)).mean() > 0.99
    np.testing.assert_allclose(whole[0].lse, cut[0].lse, atol=1e-5)
    np.testing.assert_allclose(whole[0].output, cut[0].output, atol=1e-5)
    assert len(cut[1]) >= len(whole[1])
    backward = partial(
        store.attend_backward, q, whole[0].slots, scale=0.5, grad_output=q, grad_lse=whole[0].lse
    )
    np.testing.assert_allclose(run_through(backward()), stepwise(backward(), budget)[0], atol=1e-5)


@pytest.mark.parametrize(("queries", "rows"), [(1, 50_000), (40, 9_000), (600, 5_000)])
def test_steps_are_as_small_as_they_should(device: Device, queries: int, rows: int) -> None:
    """A long call holds the device for much longer than it was granted."""
    spec = NamespaceSpec((0,), 1, 16, 16, capacity=rows, dtype=Dtype.FLOAT32)
    store = device.store(spec)
    run_through(store.growing(rows, []))
    q = from_float32(np.ones((1, queries, 16), np.float32), Dtype.FLOAT32)
    budget = 2_000_000
    _, done = stepwise(store.attend(q, [slice(0, rows)], 4, scale=1.0), budget)
    whole = work.searched(queries, rows, 16)
    assert max(done) <= 1.3 * budget
    assert whole <= sum(done) <= 2 * whole + work.gathered(4 * queries, 16)


def test_interleaved_searches_keep_apart(device: Device) -> None:
    """Two paused searches share scratch memory, and one is answered with the other's products."""
    rng = np.random.default_rng(5)
    stores, questions, wanted = [], [], []
    for seed in range(2):
        spec = NamespaceSpec((0,), 1, DIM, DIM, capacity=6000, dtype=Dtype.FLOAT32)
        data = from_float32(rng.standard_normal((1, 6000, DIM)).astype(np.float32), Dtype.FLOAT32)
        q = from_float32(rng.standard_normal((1, 40 + seed, DIM)).astype(np.float32), Dtype.FLOAT32)
        store = device.store(spec)
        run_through(store.growing(6000, []))
        store.write([Write(slice(0, 6000), slice(0, 6000))], data, data)
        stores.append(store)
        questions.append(q)
        wanted.append(-np.sort(-(q.raw[0] @ data.raw[0].T), axis=1)[:, :5])
    live = [slice(0, 6000)]
    steps = [store.search(q, live, 5) for store, q in zip(stores, questions, strict=True)]
    found: dict[int, Hits] = {}
    for each in steps:
        next(each)
    while len(found) < 2:
        for number, each in enumerate(steps):
            if number not in found:
                try:
                    each.send(60_000)
                except StopIteration as finished:
                    found[number] = finished.value
    for number in range(2):
        np.testing.assert_allclose(found[number].scores[0], wanted[number], atol=1e-5)


@pytest.mark.parametrize("budget", [10_000, UNBOUNDED])
@pytest.mark.parametrize("queries", [1, faiss_cpu.SCALAR_QUERIES_MAX, faiss_cpu.SCALAR_QUERIES_MAX + 1, 300])
def test_all_paths_of_faiss(queries: int, budget: int) -> None:
    """The scan for few queries and the products for many give different answers."""
    rng = np.random.default_rng(2)
    q = rng.standard_normal((queries, 16)).astype(np.float32)
    keys = rng.standard_normal((1200, 16)).astype(np.float32)
    live = [slice(50, 350), slice(1000, 1200)]
    steps = faiss_cpu.Searcher().top_k_of(q, live, lambda slots: keys[slots], 9, rows_max=250)
    (scores, slots), _ = stepwise(steps, budget)
    exact = np.full((queries, 1200), -np.inf, np.float32)
    for part in live:
        exact[:, part] = q @ keys[part].T
    wanted = -np.sort(-exact, axis=1)[:, :9]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(exact, slots, axis=1), wanted, atol=1e-4)


@pytest.mark.parametrize("live", [[slice(7, 9)], [slice(7, 8), slice(8, 9)]])
def test_a_score_that_faiss_cannot_hold_is_no_entry(live: list[slice]) -> None:
    """FAISS answers -1 for a row whose score is beyond its range: it must not become another slot."""
    q, keys = np.full((1, 1), 1e30, np.float32), np.zeros((9, 1), np.float32)
    keys[7:] = [[1.0], [-1e30]]
    steps = faiss_cpu.Searcher().top_k_of(q, live, lambda slots: keys[slots], 3, rows_max=100)
    scores, slots = run_through(steps)
    assert slots.tolist() == [[7, -1, -1]]
    assert np.isneginf(scores[0, 1:]).all()


def test_both_attentions_are_one() -> None:
    """The formulas on the GPU are not those on the CPU."""
    rng = np.random.default_rng(3)
    q, go = (rng.standard_normal((5, 4)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((5, 6, 4)).astype(np.float32) for _ in range(2))
    glse = rng.standard_normal(5).astype(np.float32)
    present = rng.random((5, 6)) < 0.7
    present[2] = False
    on_cpu = attention_cpu.attend_backward(q, k, v, present=present, scale=0.7, grad_output=go, grad_lse=glse)
    on_torch = attention_torch.attend_backward(
        *(torch.from_numpy(a) for a in (q, k, v)),
        present=torch.from_numpy(present),
        scale=0.7,
        grad_output=torch.from_numpy(go),
        grad_lse=torch.from_numpy(glse),
    )
    np.testing.assert_allclose(on_cpu, on_torch.numpy(), atol=1e-5)
    scores = np.where(present, 1.0, -np.inf).astype(np.float32)
    outputs = (
        attention_cpu.attend(scores, v),
        attention_torch.attend(torch.from_numpy(scores), torch.from_numpy(v)),
    )
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, np.asarray(other), atol=1e-6)
    assert not outputs[0][0][2].any()
    assert np.isneginf(outputs[0][1][2])


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (1, 4096, 1), (3, 50, 65), (1, 2, 3, 4, 512)])
def test_narrowed_is_as_numpy_rounds(device: Device, dtype: Dtype, shape: tuple[int, ...]) -> None:
    """An output or a gradient is another one where there is much of it, or on another device."""
    rng = np.random.default_rng(6)
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 4, size=shape)).astype(np.float32)
    for given in (values, np.ascontiguousarray(values.swapaxes(0, 1)).swapaxes(0, 1)):
        came = device.narrowed(given, dtype)
        assert came.dtype is dtype
        np.testing.assert_array_equal(came.raw, from_float32(values, dtype).raw)
