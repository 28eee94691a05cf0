"""What importing the torch package brings along, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

import recollect_torch
from recollect_torch.attention import MemorizingAttention


def loaded_by(statement: str) -> set[str]:
    """The modules that a Python of its own has after it."""
    script = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_demos_options_do_not_load_torch() -> None:
    """`recollect --help` and TAB take seconds; what PyTorch reads when it is loaded is set too late."""
    loaded = loaded_by("import recollect_torch.demo.cli")
    assert "recollect_torch.demo.cli" in loaded
    assert "torch" not in loaded


def test_the_layers_do_not_load_the_compiler() -> None:
    """Every trainer, which may never compile, takes seconds longer to begin."""
    loaded = loaded_by("from recollect_torch import *")
    assert "torch" in loaded
    assert "torch._dynamo" not in loaded


def test_all_names_are_there() -> None:
    """A public name is missing, or hidden from dir()."""
    namespace: dict[str, object] = {}
    exec("from recollect_torch import *", namespace)
    assert namespace.keys() >= set(recollect_torch.__all__)
    assert set(dir(recollect_torch)) >= set(recollect_torch.__all__)
    assert recollect_torch.MemorizingAttention is MemorizingAttention


def test_an_unknown_name_is_an_error() -> None:
    """A misspelt name becomes something else than an AttributeError, and hasattr() fails."""
    misspelt = "MemorisingAttention"
    with pytest.raises(AttributeError, match=f"'recollect_torch' has no attribute '{misspelt}'"):
        getattr(recollect_torch, misspelt)
