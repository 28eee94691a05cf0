"""Positions of the local window against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from recollect_torch import MemorizingAttention
from recollect_torch._positions import RelativePositionBias, RotaryPosition
from tests.unit.torch.reference import causal, close, project, relative_error


def test_rope_turns_each_pair_by_its_angle() -> None:
    """Rotation pairs or wavelengths differ from those of other RoPE models."""
    rotary = RotaryPosition(8).double()
    x = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    turned = rotary(x, start=7)
    for t in range(5):
        for i in range(4):
            angle = (7 + t) / 10_000 ** (2 * i / 8)
            pair = complex(x[0, 0, t, i].item(), x[0, 0, t, i + 4].item())
            wanted = pair * complex(math.cos(angle), math.sin(angle))
            assert turned[0, 0, t, i].item() == pytest.approx(wanted.real, abs=1e-6)
            assert turned[0, 0, t, i + 4].item() == pytest.approx(wanted.imag, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rope_keeps_its_angles_in_a_model_of_low_precision(dtype: torch.dtype) -> None:
    """`model.to(bfloat16)` rounds the frequencies: far tokens of the window turn by angles of no meaning."""
    rotary = RotaryPosition(64).to(dtype)
    x = torch.randn(1, 1, 1024, 64).to(dtype)
    left, right = x.double().chunk(2, dim=-1)
    positions = torch.arange(1024, dtype=torch.float64)
    angles = torch.outer(positions, 10_000.0 ** -(torch.arange(32, dtype=torch.float64) / 32))
    wanted = torch.complex(left, right) * torch.polar(torch.ones_like(angles), angles)
    turned = rotary(x, start=0)
    assert turned.dtype == dtype
    for position in (64, 256, 1023):
        exact = torch.cat((wanted.real, wanted.imag), dim=-1)[0, 0, position]
        assert relative_error(turned[0, 0, position].double(), exact) < 0.01


def test_rope_scores_depend_on_the_distance_alone() -> None:
    """A cached key means something else after the window has moved on."""
    rotary = RotaryPosition(8).double()
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    near = (rotary(q, start=5) * rotary(k, start=2)).sum()
    far = (rotary(q, start=105) * rotary(k, start=102)).sum()
    assert near.item() == pytest.approx(far.item(), abs=1e-5)


def test_an_odd_head_has_no_rope() -> None:
    """An odd head size fails inside forward, with a message about shapes."""
    with pytest.raises(ValueError, match="even"):
        RotaryPosition(7)


def test_relative_buckets_are_exact_near_and_logarithmic_far() -> None:
    """Distances share a bucket that should not, or fall out of the table."""
    bias = RelativePositionBias(2, buckets=32, distance_max=128)
    distances = torch.arange(4096)
    buckets = bias.bucket_of(distances)
    assert torch.equal(buckets[:16], distances[:16])
    wanted = [min(31, 16 + int(math.log(d / 16) / math.log(128 / 16) * 16 + 1e-6)) for d in range(16, 4096)]
    assert buckets[16:].tolist() == wanted


def test_relative_bias_enters_the_scores() -> None:
    """The learned bias is added at the wrong distance, to the wrong head, or not at all."""
    layer = MemorizingAttention(16, 2, layer=0, position="relative").double()
    assert layer.relative is not None
    with torch.no_grad():
        layer.relative.bias.normal_()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    q, k, v = project(layer, x)
    bias = torch.zeros(2, 6, 6, dtype=torch.float64)
    for t in range(6):
        for s in range(t + 1):
            bias[:, t, s] = layer.relative.bias[t - s]
    out, wanted = layer(x), close(layer, (causal(q, k) + bias).softmax(-1) @ v)
    assert relative_error(out, wanted) < 1e-12
    out.square().sum().backward()
    assert layer.relative.bias.grad is not None
    assert layer.relative.bias.grad[:6].abs().min() > 0


def test_rope_enters_the_scores() -> None:
    """Queries and keys are rotated differently, or values are rotated too."""
    layer = MemorizingAttention(16, 2, layer=0, position="rope").double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    q, k, v = project(layer, x)
    rotary = RotaryPosition(8).double()
    wanted = close(layer, causal(rotary(q, start=3), rotary(k, start=3)).softmax(-1) @ v)
    assert relative_error(layer(x), wanted) < 1e-6
