"""A directory over a registry that can go away, and the variants of the compiled kernels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from ctypes import c_char_p, c_int32

import pytest

from recollect_server.engine import kernels
from tests.unit.server.shaky_registry import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """With tenant "one", and no watcher: the tests poll by `refresh`."""
    made = World()
    await made.registry.open()
    await made.tenant()
    await made.directory.refresh()
    yield made
    await made.directory.stop()


@pytest.fixture
async def watched(world: World) -> World:
    """The same, with the watcher at work."""
    await world.directory.start()
    return world


def use_instruction_set(name: str) -> bool:
    """Takes a variant, "" for the best; False if the processor cannot run it."""
    use = kernels.library().rc_use_isa
    use.argtypes, use.restype = (c_char_p,), c_int32
    return bool(use(name.encode()))


@pytest.fixture(params=["generic", "avx2", "avx512", "vnni", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each variant that runs here."""
    name = str(request.param)
    if not use_instruction_set(name):
        pytest.skip(f"this processor does not have {name}")
    assert kernels.instruction_set() == name
    yield name
    use_instruction_set("")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, and more than divide the work evenly."""
    kernels.use_threads(int(request.param))
    yield int(request.param)
    kernels.use_threads(1)
