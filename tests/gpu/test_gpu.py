"""Search on a real GPU. The whole contract suite runs there too: `pytest -m gpu tests/contract`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recollect
from recollect_server.bootstrap import choose_device
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.engine.torch_device import TorchDevice
from recollect_server.engine.torch_search import ExactSearch, ProductSearch, searches_for
from recollect_server.settings import Settings

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 2e-2, torch.float16: 5e-2, torch.bfloat16: 3e-1}
"""FAISS may use TF32, and half precision accumulates less exactly: for sums of 64 products."""


WAYS = ("faiss", "product", "fused")


def way_called(name: str) -> ExactSearch:
    """One of the ways to search on this card."""
    found = [way for way in searches_for(torch.device("cuda")) if way.name == name]
    if not found:
        pytest.skip("Triton is not installed")
    return found[0]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 31, 5000])
def test_all_ways_find_the_nearest(name: str, dtype: torch.dtype, rows: int) -> None:
    """A way to search tensors of this dtype is wrong on a card, or reads another stream's memory."""
    torch.manual_seed(0)
    q = torch.randn(2, 200, 64, device="cuda", dtype=dtype)
    keys = torch.randn(2, rows, 64, device="cuda", dtype=dtype)
    live = [slice(rows // 2, rows), slice(0, rows // 3)] if rows > 1 else [slice(0, 1)]
    way = way_called(name)
    scores, found = way.top_k_of(q, keys, live, 32)
    wanted, _ = ProductSearch().top_k_of(q.float(), keys.float(), live, 32)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores, wanted, atol=TOLERANCE[dtype], rtol=1e-2)
    exact = (q.float() @ keys.float().transpose(1, 2)).gather(2, found.clamp(min=0))
    torch.testing.assert_close(exact[found >= 0], wanted[found >= 0], atol=TOLERANCE[dtype], rtol=1e-2)
    for one, other in zip(
        way.weigh(scores, found, keys, 0.1), ProductSearch().weigh(scores, found, keys, 0.1), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("top_k", [1, 100, 1024, 2048])
def test_large_top_k(top_k: int) -> None:
    """A k that the limits allow ends the process."""
    keys = torch.randn(1, 3000, 8, device="cuda")
    scores, found = way_called("faiss").top_k_of(keys[:, :4], keys, [slice(0, 3000)], top_k)
    assert scores.shape == found.shape == (1, 4, top_k)
    assert (scores.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("name", WAYS)
def test_a_slice_of_a_ring_is_searched_in_place(name: str) -> None:
    """A view of a larger buffer is searched wrongly, or copied."""
    keys = torch.randn(2, 65_536, 64, device="cuda")
    q, live = torch.randn(2, 16, 64, device="cuda"), [slice(1000, 60_000)]
    way = way_called(name)
    way.top_k_of(q, keys, live, 8)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scores, _ = way.top_k_of(q, keys, live, 8)
    assert torch.cuda.max_memory_allocated() - before < keys.numel() * 4
    torch.testing.assert_close(scores, ProductSearch().top_k_of(q, keys, live, 8)[0], atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_large_bank(dtype: Dtype) -> None:
    """Attention over a bank of the paper's size is not that of the CPU."""
    spec = NamespaceSpec((0,), 2, 64, 64, capacity=65_536, dtype=dtype)
    rng = np.random.default_rng(0)
    data = from_float32(rng.standard_normal((2, 65_536, 64)).astype(np.float32), dtype)
    q = from_float32(rng.standard_normal((4, 32, 64)).astype(np.float32), dtype)
    answers = []
    for name in ("cuda", "cpu"):
        store = TorchDevice(name).store(spec)
        run_through(store.growing(65_536, []))
        store.write([Write(slice(0, 65_536), slice(0, 65_536))], data, data)
        live = [slice(40_000, 65_536), slice(0, 30_000)]
        answers.append(run_through(store.attend(q, live, 32, scale=0.125)))
    on_gpu, on_cpu = answers
    np.testing.assert_allclose(on_gpu.lse, on_cpu.lse, atol=2e-2)
    np.testing.assert_allclose(on_gpu.output, on_cpu.output, atol=1e-1)


def test_a_gpu_is_chosen_where_there_is_one() -> None:
    """A server on a machine with a GPU searches on the CPU unless told."""
    assert choose_device(Settings(device="auto")).name == torch.cuda.get_device_name()


def test_cuda_tensors_in_and_out() -> None:
    """Results come back on another device than the queries are on."""
    with recollect.connect("embedded://") as client:
        ns = client.create_namespace(
            "gpu", layers=[0], heads=2, key_dim=8, value_dim=8, capacity=100, dtype="bfloat16"
        )
        data = torch.randn(1, 2, 50, 8, device="cuda", dtype=torch.bfloat16)
        ns.add(0, data, data, streams=["a"])
        out = ns.attend(0, data, top_k=4, streams=["a"])
        assert out.output.is_cuda
        assert out.output.dtype is torch.bfloat16
        assert out.ids is not None
        gradient = ns.attend_backward(0, data, ids=out.ids, streams=["a"], grad_output=torch.ones_like(data))
        assert gradient.is_cuda
        assert gradient.isfinite().all()
