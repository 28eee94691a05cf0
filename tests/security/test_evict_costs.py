"""What an evict costs the device is what its tenant is charged, so that it cannot slow the others with it."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.application.commands import Evict
from recollect_server.application.costs import evicted_work
from recollect_server.domain import work
from recollect_server.domain.bank import LOOKED_BYTES
from recollect_server.domain.eviction import ByIds, Everything, Oldest, condemned
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.ring import Ring
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import UNBOUNDED
from recollect_server.domain.usage import Usage
from recollect_server.engine.cpu import CpuDevice
from tests.unit.server.use_cases import ENTRY_BYTES, Server, steps_of

LIMITS = Limits()
LAYERS = tuple(range(LIMITS.layers_max))
SPEC = NamespaceSpec(LAYERS, 1, 4, 4, capacity=16, dtype=Dtype.FLOAT16)


@pytest.fixture
def memory() -> NamespaceMemory:
    """Three streams with a bank in two layers each, of the most layers that there may be."""
    made = NamespaceMemory("n", SPEC, CpuDevice(), LIMITS, first_sequence=0, usage=Usage())
    for stream in ("a", "b", "c"):
        for layer in (3, 7):
            made.adopt(stream, layer, made.new_bank(layer))
    return made


@pytest.mark.parametrize("selector", [Oldest(1), ByIds(np.arange(9))], ids=["oldest", "ids"])
@pytest.mark.parametrize(
    ("streams", "layers", "banks"),
    [
        (("a", "b", "c"), (), 6),
        (("a", "c"), (7,), 2),
        (("a",), LAYERS, 2),
        (tuple(f"absent-{row}" for row in range(LIMITS.rows_max)), (), 0),
    ],
    ids=["all layers", "one layer", "each layer named", "none of them there"],
)
def test_banks_are_charged_for(
    memory: NamespaceMemory,
    selector: Oldest | ByIds,
    streams: tuple[str, ...],
    layers: tuple[int, ...],
    banks: int,
) -> None:
    """A thousand names in hundreds of layers, where nothing is, are looked for one by one and for free."""
    found = memory.held(streams, frozenset(layers))
    assert len(found) == banks
    assert evicted_work(selector, found) == banks * work.BANK


@pytest.mark.parametrize("what", ["all", "ids"])
def test_what_is_done_is_charged(what: str) -> None:
    """To zero, to move or to look through the entries of a large bank is charged as that of an empty one."""

    def charged(entries: int) -> int:
        server = Server()
        second = server.add("a", entries) + 1
        selector = Everything() if what == "all" else ByIds(np.array([second]))
        command = Evict("n", ("a",), selector)
        return sum(steps_of(server.memory.evict(server.namespace(), command), UNBOUNDED))

    more = charged(90) - charged(10)
    assert more >= 80 * work.moved(ENTRY_BYTES)
    if what == "ids":
        assert more >= 80 * (2 * work.moved(ENTRY_BYTES) + work.moved(LOOKED_BYTES))


@pytest.mark.parametrize("ids", [[], [9, 2, 2, 5, 100, -1], [0], [99]])
def test_ids_are_found_in_any_order(ids: list[int]) -> None:
    """Ids that come unsorted, twice, or are of no entry, evict others than those they name."""
    ring = Ring(16, first_sequence=2)
    ring.grow(16)
    ring.push(8, second=0)
    gone = condemned(ring, ByIds(np.array(ids, dtype=np.int64)), now_s=0.0)
    assert ring.ids()[gone].tolist() == sorted(set(ids) & set(range(2, 10)))
