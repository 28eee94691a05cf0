"""`recollect demo`, from the command line to the picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command and waits for it."""
    command = [sys.executable, "-m", "recollect", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of three short documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name} is the name of a document, and this is its text. " * 120)
    return folder


def test_it_trains_and_reports(corpus: Path, tmp_path: Path) -> None:
    """The main job does not run from beginning to end."""
    out = tmp_path / "out"
    ran = demo("--corpus", str(corpus), "--steps", "2", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((out / "demo.json").read_text())
    assert found["steps"] == 2
    assert list(found["with_memory"]) == ["512", "2048", "8192", "32768"]
    assert found["memory_curve"]["factors"] == found["control_curve"]["factors"]
    assert found["memory_curve"]["waited_s"] > 0 == found["control_curve"]["waited_s"]
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "demo.md").read_text() in ran.stdout


def test_a_wrong_corpus_is_a_clear_error(tmp_path: Path) -> None:
    """A mistyped folder ends in a traceback."""
    ran = demo("--corpus", str(tmp_path / "nowhere"))
    assert ran.returncode == 2
    assert "nowhere is not a folder" in ran.stderr
    assert "Traceback" not in ran.stderr
