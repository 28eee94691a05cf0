"""Both stores, slot by slot, where the wire does not show: blocks, growth, zeroing, edge cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.ports import Device, Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine import attention_cpu, attention_torch, cpu, faiss_cpu, torch_device
from recollect_server.engine.cpu import CpuDevice, CpuStore
from recollect_server.engine.torch_device import TorchDevice, TorchStore

DEVICES: dict[str, Callable[[], Device]] = {"numpy": CpuDevice, "torch": lambda: TorchDevice("cpu")}
HEADS, DIM = 2, 3


@pytest.fixture(params=list(DEVICES))
def device(request: pytest.FixtureRequest) -> Device:
    """Each kind."""
    return DEVICES[str(request.param)]()


def filled(device: Device, entries: int, *, dtype: Dtype = Dtype.FLOAT32) -> tuple[Store, DenseArray]:
    """A store whose slot i holds key and value i; and those [Hkv, entries, D]."""
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=entries, dtype=dtype)
    rng = np.random.default_rng(0)
    data = from_float32(rng.standard_normal((HEADS, entries, DIM)).astype(np.float32), dtype)
    store = device.store(spec)
    store.grow(entries, [])
    store.write([Write(slice(0, entries), slice(0, entries))], data, data)
    return store, data


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("live", [[slice(0, 40)], [slice(30, 40), slice(0, 7)], [slice(5, 6)]])
def test_only_live_slots_are_found(device: Device, dtype: Dtype, live: list[slice]) -> None:
    """A search reaches slots outside of the ring's live ones, or misses some of them."""
    store, data = filled(device, 40, dtype=dtype)
    slots = [slot for part in live for slot in range(part.start, part.stop)]
    queries = data.row(slice(None).start or 0).raw[None, :5]  # [1, 5, D]: repeated for both heads below
    q = DenseArray(np.repeat(queries, HEADS, axis=0), dtype)
    hits = store.search(q, live, 64)
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
        monkeypatch.setattr(cpu, "WIDENED_ROWS_MAX", widened)
        monkeypatch.setattr(cpu, "GATHERED_BYTES_MAX", gathered)
        monkeypatch.setattr(torch_device, "GATHERED_BYTES_MAX", gathered)
        out = store.attend(q, live, 6, scale=0.5)
        gradient = store.attend_backward(q, out.slots, scale=0.5, grad_output=q, grad_lse=None)
        answers.append((out.output, out.lse, gradient))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert data.shape == (HEADS, 40, DIM)


def test_growth_moves_live_slots_to_the_front(device: Device) -> None:
    """Entries of a wrapped ring come out of a larger buffer in another order."""
    store, data = filled(device, 8)
    live = [slice(5, 8), slice(0, 2)]
    store.grow(16, live)
    slots = np.tile(np.arange(5), (HEADS, 1, 1))
    np.testing.assert_array_equal(store.keys(slots).raw[:, 0], data.raw[:, [5, 6, 7, 0, 1]])
    np.testing.assert_array_equal(store.values(slots).raw[:, 0], data.raw[:, [5, 6, 7, 0, 1]])


def test_compaction_keeps_order(device: Device) -> None:
    """After an eviction from the middle, keys and values belong to other entries."""
    store, data = filled(device, 8)
    store.compact(np.array([6, 7, 1, 2]))
    slots = np.tile(np.arange(4), (HEADS, 1, 1))
    np.testing.assert_array_equal(store.keys(slots).raw[:, 0], data.raw[:, [6, 7, 1, 2]])


@pytest.mark.parametrize("how", ["grow", "clear"])
def test_freed_buffers_are_zeroed(device: Device, how: str) -> None:
    """Design decision 2: what one stream stored stays in memory that another may get."""
    store, _ = filled(device, 8)
    assert isinstance(store, CpuStore | TorchStore)
    old = [store._keys, store._values]
    if how == "grow":
        store.grow(16, [slice(0, 8)])
    else:
        store.clear()
    for buffer in old:
        assert not np.asarray(buffer).any()


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
    assert not store.attend_backward(q, slots, scale=1.0, grad_output=q, grad_lse=lse).any()
    slots[0, 0, 0] = 1  # one query with an entry, the others without
    gradient = store.attend_backward(q, slots, scale=1.0, grad_output=q, grad_lse=lse)
    assert gradient[0, 0].any()
    assert not gradient[0, 1:].any()
    assert not gradient[1].any()


def test_the_devices_name() -> None:
    """A server cannot say what it searches on."""
    assert CpuDevice().name == "cpu"
    assert TorchDevice("cpu").name == "cpu"


@pytest.mark.parametrize("queries", [1, faiss_cpu.SCALAR_QUERIES_MAX, faiss_cpu.SCALAR_QUERIES_MAX + 1, 300])
def test_both_paths_of_faiss(queries: int) -> None:
    """The scan for few queries and the product for many give different answers."""
    rng = np.random.default_rng(2)
    q = rng.standard_normal((queries, 16)).astype(np.float32)
    keys = rng.standard_normal((700, 16)).astype(np.float32)
    scores, slots = faiss_cpu.top_k_of(q, [(50, keys[:300]), (1000, keys[300:])], 9)
    wanted = -np.sort(-(q @ keys.T), axis=1)[:, :9]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    rows = np.where(slots >= 1000, slots - 1000 + 300, slots - 50)
    np.testing.assert_allclose(np.take_along_axis(q @ keys.T, rows, axis=1), wanted, atol=1e-4)


def test_a_score_that_faiss_cannot_hold_is_no_entry() -> None:
    """FAISS answers -1 for a row whose score is beyond its range: it must not become another slot."""
    q, keys = np.full((1, 1), 1e30, np.float32), np.array([[1.0], [-1e30]], np.float32)
    scores, slots = faiss_cpu.top_k_of(q, [(7, keys)], 3)
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
