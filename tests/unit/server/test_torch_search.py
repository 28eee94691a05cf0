"""The ways to search exactly on a GPU's tensors, each with the same suite, against NumPy in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import pytest
import torch

from recollect_server.engine import attention_torch, torch_search
from recollect_server.engine.torch_search import ExactSearch, ProductSearch, fused_search, has_triton

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is loaded

NO_TRITON = "Triton is not installed: the fused kernels are not run, not even by its interpreter"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["product", "fused"])
def way(request: pytest.FixtureRequest) -> ExactSearch:
    """Each that runs without a GPU."""
    if request.param == "product":
        return ProductSearch()
    if not has_triton():
        pytest.skip(NO_TRITON)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: tests/gpu runs the kernels there")
    return fused_search()


def check(
    way: ExactSearch, queries: torch.Tensor, keys: torch.Tensor, live: Sequence[slice], top_k: int
) -> None:
    """Compares a search, and attention over what it found, with float64."""
    q, k = queries.double().numpy(), keys.double().numpy()
    slots = np.array([slot for part in live for slot in range(part.start, part.stop)], dtype=np.int64)
    scores, found = (each.numpy() for each in way.top_k_of(queries, keys, live, top_k))
    count = min(top_k, slots.size)
    exact = q @ k.transpose(0, 2, 1)
    best = -np.sort(-exact[:, :, slots], axis=-1)[:, :, :count]
    np.testing.assert_allclose(scores[:, :, :count], best, atol=1e-4)
    assert np.isneginf(scores[:, :, count:]).all()
    assert (found[:, :, count:] == -1).all()
    kept = found[:, :, :count]
    assert np.isin(kept, slots).all()
    assert (np.diff(np.sort(kept, axis=-1), axis=-1) > 0).all(), "the same slot twice"
    np.testing.assert_allclose(np.take_along_axis(exact, kept, axis=-1), best, atol=1e-4)
    output, lse = way.weigh(torch.from_numpy(scores), torch.from_numpy(found), keys, 0.5)
    weights = np.exp(0.5 * best - 0.5 * best.max(axis=-1, keepdims=True, initial=-np.inf)) if count else best
    total = weights.sum(axis=-1)
    for head in range(keys.shape[0]):
        wanted = np.einsum("nk,nkd->nd", weights[head], k[head][kept[head]])
        wanted /= np.where(total[head] > 0, total[head], 1)[:, None]
        np.testing.assert_allclose(output[head].numpy(), wanted, atol=1e-4)
    if count:
        np.testing.assert_allclose(lse.numpy(), np.log(total) + 0.5 * best.max(axis=-1), atol=1e-4)
    else:
        assert torch.isneginf(lse).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    ("live", "top_k"),
    [
        ([slice(0, 300)], 10),
        ([slice(250, 300), slice(0, 130)], 33),  # a ring that wraps
        ([slice(5, 45)], 39),  # k near n
        ([slice(290, 300), slice(0, 7)], 64),  # k > n
        ([slice(7, 8)], 1),
        ([], 4),
    ],
)
def test_the_nearest_are_found_and_weighed(
    way: ExactSearch, dtype: torch.dtype, count: int, live: list[slice], top_k: int
) -> None:
    """A way to search misses entries, finds dead slots, or weighs values wrongly."""
    made = torch.Generator().manual_seed(count)
    q = torch.randn(2, count, 20, generator=made).to(dtype)
    check(way, q, torch.randn(2, 300, 20, generator=made).to(dtype), live, top_k)


@pytest.mark.parametrize("kind", ["ties", "zeros", "equal"])
def test_scores_that_are_alike(way: ExactSearch, kind: str) -> None:
    """Among equal scores a slot is found twice, or fewer than k are."""
    keys = torch.randn(1, 200, 80, generator=torch.Generator().manual_seed(1))
    if kind == "ties":
        keys = keys[:, :10].repeat(1, 20, 1)
    elif kind == "zeros":
        keys.zero_()
    else:
        keys[:] = keys[:, :1]
    check(way, keys[:, :3].clone(), keys, [slice(150, 200), slice(0, 100)], 32)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding the scratch memory changes answers."""
    monkeypatch.setattr(torch_search, "SCORES_BYTES_MAX", 3000)
    monkeypatch.setattr(attention_torch, "GATHERED_BYTES_MAX", 300)
    made = torch.Generator().manual_seed(2)
    q, keys = torch.randn(2, 30, 20, generator=made), torch.randn(2, 300, 20, generator=made)
    check(ProductSearch(), q, keys, [slice(250, 300), slice(0, 130)], 16)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from recollect_server.engine import triton_fused as fused

def compile(kernel, types, constants):
    names = kernel.arg_names
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    assert list(signature) == names, names
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

for stored in ("fp16", "bf16", "fp32"):
    types = {"queries": "*" + stored, "keys": "*" + stored, "scores": "*fp32", "slots": "*i32"}
    types |= dict.fromkeys(("count", "live", "start", "size", "again"), "i32")
    types |= {"key_stride": "i64", "part_rows": "i32", "dim": "i32"}
    compile(fused._select_kernel, types, dict(BM=32, BN=64, BD=64, KP=32, WIDEN=False))
    types = {"scores": "*fp32", "slots": "*i64", "values": "*" + stored, "output": "*fp32", "lse": "*fp32"}
    types |= {"scale": "fp32", "count": "i32", "value_stride": "i64", "dim": "i32", "top_k": "i32"}
    compile(fused._weigh_kernel, types, dict(BM=16, BD=64))
"""


def test_the_kernels_compile_for_a_card() -> None:
    """The fused kernels pass the interpreter and are refused by Triton's compiler."""
    if not has_triton():
        pytest.skip(NO_TRITON)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)


class Launched(Protocol):
    """A kernel of Triton."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]: ...


VARIANTS = """
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature
from recollect_server.engine import triton_fused as fused

def variants(kernel, calls):
    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    return len({str(bind(*arguments, **constants)[1]) for arguments, constants in calls})

x, f, i, l = (torch.empty(64, dtype=each) for each in (torch.half, torch.float, torch.int32, torch.int64))
constants = dict(BM=16, BN=128, BD=64, KP=32, WIDEN=False)
select = [
    ((x, x, f, i, count, live, start, size, again, 65536 * 64, 1024, 64), constants)
    for count in (1, 3, 16) for live in (1, 100, 4096) for start in (0, 1, 7, 32)
    for size in (1, 5, 48) for again in (0, 1, 9, 64)
]
weigh = [((f, l, x, f, f, 0.5, count, 65536 * 64, 64, 32), dict(BM=16, BD=64)) for count in (1, 3, 16, 40)]
print(variants(fused._select_kernel, select), variants(fused._weigh_kernel, weigh))
"""


def test_kernels_are_compiled_once_for_ordinary_calls() -> None:
    """Where a ring begins, or how many queries there are, has Triton compile for a second, over and over."""
    if not has_triton():
        pytest.skip(NO_TRITON)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    asked = [sys.executable, "-c", VARIANTS]
    said = subprocess.run(asked, check=True, env=environment, capture_output=True, text=True).stdout
    assert said.split() == ["1", "1"]


def test_kernels_are_launched_on_the_card_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two cards, a kernel for the second is launched on the first and reads memory that is not its."""
    if not has_triton() or torch.cuda.is_available():
        pytest.skip("needs Triton's interpreter")
    from recollect_server.engine import triton_fused

    way, entered = fused_search(), list[torch.Tensor]()
    is_inside = [False]

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        is_inside[0] = True
        yield
        is_inside[0] = False

    class Kernel:
        def __init__(self, real: Launched) -> None:
            self.real = real

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert is_inside[0]
            return self.real[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_select_kernel", "_weigh_kernel"):
        monkeypatch.setattr(triton_fused, name, Kernel(getattr(triton_fused, name)))
    keys = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    check(way, keys[:, :3].clone(), keys, [slice(0, 40)], 4)
    assert len(entered) == 2
