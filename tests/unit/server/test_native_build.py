"""With and without the compiled kernels: building, and what a server says and does."""

from __future__ import annotations

import logging
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine import kernels
from recollect_server.engine.cpu import CpuDevice
from recollect_server.engine.faiss_store import FaissStore
from recollect_server.engine.kernel_store import KernelStore

ROOT = Path(__file__).parents[3]
ENGINE, CLIENT = "service/recollect_server/engine", "client/recollect"
SPEC = NamespaceSpec(layers=(0,), heads=1, key_dim=4, value_dim=4, capacity=8, dtype=Dtype.FLOAT32)


@pytest.fixture
def not_loaded() -> Iterator[None]:
    """As in a process that has not looked for the library yet."""
    for cached in (kernels.available, kernels.library):
        cached.cache_clear()
    yield
    for cached in (kernels.available, kernels.library):
        cached.cache_clear()


def test_without_a_compiler_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    """Where there is no compiler nothing can be installed, or nobody learns why the server is slow."""
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    old = [tmp_path / package / "_native.so" for package in (ENGINE, CLIENT)]
    for library in old:
        sources = library.with_name("native")
        shutil.copytree(ROOT / sources.relative_to(tmp_path), sources)
        library.write_bytes(b"made of other sources")
    built = subprocess.run(
        [sys.executable, "hatch_build.py"],
        cwd=tmp_path,
        env={**os.environ, "CXX": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "no C++ compiler was found" in built.stdout
    assert not any(library.exists() for library in old)


def test_what_any_processor_runs_is_linked_first() -> None:
    """Without AVX-512 a server runs a function of std::vector that was compiled for it, and ends."""
    building = runpy.run_path(str(ROOT / "hatch_build.py"))
    names = ["generic", *building["X86"]]
    first, *others = building["parts_of"]({name: [] for name in names})
    assert first == "library"
    assert [part.rpartition("-")[2] for part in others] == sorted(2 * names, key=names.index)


FETCHES = """
#include "panels.h"
using namespace RC_ISA;
void rows_of_a_list(const Listed<Float16>& rows, float* panel) { pack<Float16>(rows, 0, 64, panel); }
"""


@pytest.mark.skipif(not kernels.available(), reason="nothing is compiled here")
def test_rows_of_lists_are_fetched_ahead(tmp_path: Path) -> None:
    """The compiler leaves out what fetches rows ahead, as GCC did: large banks are searched half as fast."""
    building = runpy.run_path(str(ROOT / "hatch_build.py"))
    compiler = building["compiler"]()
    assert compiler is not None
    source, assembly = tmp_path / "fetches.cpp", tmp_path / "fetches.s"
    source.write_text(FETCHES)
    command = [*compiler, *building["FLAGS"], "-DRC_ISA=generic", "-S"]
    include = f"-I{ROOT / ENGINE / 'native'}"
    subprocess.run([*command, include, str(source), "-o", str(assembly)], check=True)
    assert any(name in assembly.read_text() for name in ("prefetch", "prfm")), "for x86 and ARM"


@pytest.mark.parametrize("library", ["/nonexistent/_native.so", "libc.so.6"], ids=["none", "another"])
@pytest.mark.usefixtures("not_loaded")
def test_without_the_kernels_a_server_searches_with_faiss_and_says_so(
    library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server without the kernels, or with old ones, does not start, or is slow and tells nobody."""
    monkeypatch.setattr(kernels, "LIBRARY", Path(library))
    with caplog.at_level(logging.INFO):
        store = CpuDevice().store(SPEC)
    assert isinstance(store, FaissStore)
    (record,) = caplog.records
    assert (record.levelname, "searching with FAISS" in record.message) == ("WARNING", True)


def test_with_the_kernels_a_server_says_for_which_processor(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can tell from the log whether a server is as fast as its processor allows."""
    if not kernels.available():
        pytest.skip("the kernels were not compiled here")
    with caplog.at_level(logging.INFO):
        store = CpuDevice().store(SPEC)
    assert isinstance(store, KernelStore)
    (record,) = caplog.records
    assert record.message in {
        f"searching on the CPU with the compiled kernels ({isa})"
        for isa in ("generic", "avx2", "avx512", "vnni", "amx")
    }
