"""What tests share: threads, property-test profile, tests without garbage collection or without a GPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Before anything loads an OpenMP runtime. NumPy, torch and FAISS bring one each; spinning threads of one
# slow the others tenfold on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile("recollect", deadline=None, print_blob=True)
hypothesis.settings.load_profile("recollect")


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """What is in a circle stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where there is none, and says why."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    reason = _no_gpu_because() if gpu_items else None
    if reason is not None:
        for item in gpu_items:
            # Right: only what needs a GPU, where torch or FAISS finds none, and with their reason.
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu_because() -> str | None:
    import faiss
    import torch

    if not torch.cuda.is_available():
        return "no GPU: torch sees no CUDA device"
    if not hasattr(faiss, "StandardGpuResources"):  # the CPU build has a `knn_gpu`, too
        return "no GPU FAISS: the installed faiss is the CPU build"
    return None
