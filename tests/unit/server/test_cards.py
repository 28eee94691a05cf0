"""What a machine with GPUs needs, as far as one without any can tell."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
import torch

from recollect_server.engine.torch_device import TorchDevice
from recollect_server.engine.torch_search import ProductSearch, faiss_has_gpu
from tests import conftest
from tests.benchmarks import reports
from tests.deploy.dockerfile import stages


def test_a_device_stays_on_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks of one server lie on several cards, once somebody makes another one current."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    device = TorchDevice("cuda", ways=[ProductSearch()])
    assert device._device == torch.device("cuda", 1)
    assert TorchDevice("cuda:0", ways=[ProductSearch()])._device == torch.device("cuda", 0)


def test_tests_for_gpus_are_skipped_with_the_faiss_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU and the FAISS for CPUs, all tests of GPUs fail, in place of saying why not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = conftest._no_gpu_because()
    assert (reason is None) == faiss_has_gpu()
    assert reason is None or "CPU build" in reason


def test_reports_are_written_with_either_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks run for an hour on a GPU, and then fail to say what they were run with."""
    real = importlib.metadata.Distribution.from_name

    def without(name: str) -> importlib.metadata.Distribution:
        if name == "faiss-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", without)
    assert "grpcio" in reports.machine()


def test_the_gpu_image_alone_has_a_compiler() -> None:
    """Triton cannot launch a kernel in the GPU image, or the CPU image carries a compiler along."""
    having = [
        name
        for name, stage in stages().items()
        if any(re.search(r"install .*gcc=.* libc6-dev=", each.text, re.DOTALL) for each in stage.instructions)
    ]
    assert having == ["gpu"]
