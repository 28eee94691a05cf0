"""torch.compile: a layer that runs in a session gives what it gives without."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from recollect_torch import MemorizingAttention, session
from tests.unit.torch.conftest import MakeMemory
from tests.unit.torch.reference import dense, relative_error

STREAMS = ["a", "b"]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    # What other tests left half done zeroes its tensors as it is collected. Under the compiler it could not:
    # there tensors are fake, and an innocent test would fail.
    gc.collect()
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def segment(tokens: int = 6) -> Tensor:
    return torch.randn(2, tokens, 16, dtype=torch.float64, requires_grad=True)


# The compiler looks at .grad of what each graph is given, and hides the warning in vain where warnings are
# errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_has_its_memory(make_memory: MakeMemory, backend: str, training: bool) -> None:
    """Who compiles a model can not give it a memory: the compiler walks into the client, and fails."""
    layer = MemorizingAttention(16, 2, layer=1, combine="joint").double().train(training)
    compiled: Callable[[Tensor], Tensor] = torch.compile(layer, backend=backend)
    segments = [segment() for _ in range(3)]
    gradients: list[Tensor] = []
    compiled(segments[0])  # what is compiled outside of a session must not be used inside
    with session(make_memory(), streams=STREAMS) as s, torch.set_grad_enabled(training):
        for number, x in enumerate(segments):
            out = compiled(x)
            past = torch.cat(segments[:number], dim=1) if number else x[:, :0]
            wanted = dense(layer, x, past.detach(), combine="joint", gate=None)
            assert relative_error(out, wanted) < 1e-5
            if training:
                for result in (out, wanted):
                    layer.zero_grad()
                    result.square().sum().backward()
                    gradients.append(
                        torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
                    )
            s.commit()
    for came, by_reference in zip(gradients[::2], gradients[1::2], strict=True):
        assert relative_error(came, by_reference) < 1e-5
