"""The kernels with arrays that end where memory ends, for each instruction set of this processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from recollect_server.engine import kernels
from tests.property.exact_arrays import Exact
from tests.property.kernel_cases import CASES, Case, use_exact
from tests.unit.server.conftest import use_instruction_set

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled"),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernels are for Linux"),
]


@pytest.fixture(params=["generic", "avx2", "avx512", "vnni", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each variant that runs here."""
    name = str(request.param)
    if not use_instruction_set(name):
        pytest.skip(f"this processor does not have {name}")
    yield name
    use_instruction_set("")
    kernels.use_threads(1)


def run(case: Case, seeds: range) -> None:
    """One after another; the error says which it was."""
    for seed in seeds:
        exact = Exact(np.random.default_rng(seed))
        kernels.use_threads(int(exact.rng.integers(1, 4)))
        with pytest.MonkeyPatch.context() as patch:
            use_exact(patch, exact)
            try:
                case(exact)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_kernel_goes_beyond_its_arrays(isa: str, case: Case) -> None:
    """A kernel reads what lies behind an array, perhaps another tenant's, or answers otherwise than NumPy."""
    run(case, range(40))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_kernel_goes_beyond_its_arrays_in_many_cases(isa: str, case: Case) -> None:
    """As above, in sizes that are rarer."""
    run(case, range(40, 1500))
