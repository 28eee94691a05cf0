"""Large calls are split by the client under the server's limits: the answers are those of one large call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

import recollect
from tests.contract.conftest import open_way
from tests.contract.memories import DTYPES, CheckedMemory, Dtype, Memories
from tests.server_process import ServerProcess

SMALL = {
    "message_bytes_max": 6000,
    "rows_max": 3,
    "tokens_max": 7,
    "ids_max": 4,
    "page_size_max": 2,
    "page_size_default": 2,
    "top_k_max": 8,
}
STREAMS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def small_server() -> Iterator[ServerProcess]:
    """A server that takes only small messages."""
    with ServerProcess(limits=SMALL) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(params=["unix", "tcp-async"])
def small(request: pytest.FixtureRequest, small_server: ServerProcess) -> Iterator[recollect.Client]:
    """A client of it."""
    with open_way(str(request.param), small_server) as connected:
        yield connected


@pytest.fixture
def memory(small: recollect.Client, rng: np.random.Generator, name: str) -> CheckedMemory:
    """A memory there."""
    return Memories(small, rng)(name=f"small-{name}", capacity=30)


def test_the_limits_are_advertised(small: recollect.Client) -> None:
    """A client cannot split under limits that it is not told."""
    limits = small.server_info().limits
    assert {name: getattr(limits, name) for name in SMALL if name != "page_size_default"} == {
        name: value for name, value in SMALL.items() if name != "page_size_default"
    }


def test_a_split_add_is_one_add(memory: CheckedMemory) -> None:
    """Parts of an add were stored in another order, or ids, lengths or counts of the whole are wrong."""
    memory.add(STREAMS, 20, lengths=[20, 0, 9, 14, 1])
    memory.add(STREAMS, 33)
    memory.check(STREAMS, top_k=8)


def test_split_reads_are_one_read(memory: CheckedMemory) -> None:
    """Rows or tokens of the parts were put together wrongly."""
    memory.add(STREAMS, 20, lengths=[20, 2, 9, 14, 1])
    found = memory.check_search(STREAMS, top_k=8, tokens=23, group=2)
    assert found.scores.shape == (5, 4, 23, 8)
    memory.check_attend(STREAMS, top_k=8, tokens=23, group=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [1, 5, 8])
def test_parts_fit_the_server(
    small: recollect.Client, rng: np.random.Generator, name: str, dtype: Dtype, top_k: int
) -> None:
    """The client counts bytes in another way than the server, which then refuses a part."""
    memory = Memories(small, rng)(
        name=f"{name}-{dtype}-{top_k}", key_dim=16, value_dim=48, capacity=30, dtype=dtype
    )
    memory.add(STREAMS, 20)
    q = memory.queries(5, 11)
    includes: list[list[Literal["keys", "values"]]] = [[], ["keys"], ["values"], ["keys", "values"]]
    for include in includes:
        found = memory.ns.search(0, q, top_k=top_k, streams=STREAMS, include=include)
        memory.oracle.check_search(0, q, found, streams=STREAMS)
    for with_ids in (True, False):
        out = memory.ns.attend(0, q, top_k=top_k, streams=STREAMS, scale=0.3, with_ids=with_ids)
        memory.oracle.check_attend(0, q, out, streams=STREAMS, scale=0.3, top_k=top_k)
        if out.ids is not None:
            memory.check_backward(q, out.ids, STREAMS, scale=0.3)


def test_small_and_large_limits_give_the_same(
    memory: CheckedMemory, client: recollect.Client, name: str
) -> None:
    """What a server's limits are must not show in the answers."""
    spec = memory.ns.spec
    large = client.create_namespace(
        f"large-{name}", layers=[0], heads=2, key_dim=8, value_dim=4, capacity=30, dtype="float32"
    )
    keys, values = memory.draw(5, spec.heads, 40, 8), memory.draw(5, spec.heads, 40, 4)
    q = memory.queries(5, 19)
    answers = []
    for ns in (memory.ns, large):
        added = ns.add(0, keys, values, streams=STREAMS, lengths=[40, 1, 17, 30, 8])
        found = ns.search(0, q, top_k=8, streams=STREAMS)
        out = ns.attend(0, q, top_k=8, streams=STREAMS)
        base = np.array(added.first_ids)[:, None, None, None]
        answers.append(
            (added.evicted, found.scores, np.where(found.ids < 0, -1, found.ids - base), out.output)
        )
    assert answers[0][0] == answers[1][0] == 10
    for came, wanted in zip(answers[0][1:], answers[1][1:], strict=True):
        np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-6)


def test_a_split_add_with_a_request_id_is_stored_once(memory: CheckedMemory) -> None:
    """A repeat of a split add must repeat its parts, not add them again."""
    keys, values = memory.draw(5, 2, 25, 8), memory.draw(5, 2, 25, 4)
    request_id = f"{memory.ns.name}-split"
    first = memory.ns.add(0, keys, values, streams=STREAMS, request_id=request_id)
    assert memory.ns.add(0, keys, values, streams=STREAMS, request_id=request_id) == first
    assert memory.ns.stats().entries == 125


def test_a_split_evict_is_one_evict(memory: CheckedMemory) -> None:
    """Ids or streams of one of the parts were not evicted."""
    memory.add(STREAMS, 20)
    ids = memory.ids("a")
    assert memory.ns.evict(streams=["a"], ids=ids[3:17]).evicted == 14
    memory.oracle.bank("a", 0).keep([0, 1, 2, 17, 18, 19])
    assert memory.ns.evict(streams=STREAMS, oldest=2).evicted == 10
    for stream in STREAMS:
        memory.oracle.bank(stream, 0).keep(range(2, len(memory.ids(stream))))
    memory.check(STREAMS, top_k=8)


def test_what_cannot_be_split_is_refused(memory: CheckedMemory, small: recollect.Client, name: str) -> None:
    """top_k beyond the limit, or a token larger than a message, must be refused with the numbers."""
    memory.add(["a"], 3)
    with pytest.raises(recollect.InvalidArgumentError, match=r"top_k.*8.*9"):
        memory.ns.search(0, memory.queries(1, 1), top_k=9, streams=["a"])
    wide = small.create_namespace(
        f"wide-{name}", layers=[0], heads=2, key_dim=512, value_dim=512, capacity=4, dtype="float32"
    )
    with pytest.raises(recollect.InvalidArgumentError, match="6000"):
        wide.add(0, np.ones((1, 2, 1, 512)), np.ones((1, 2, 1, 512)), streams=["a"])


def test_min_sequences_and_missing_streams_in_parts(memory: CheckedMemory) -> None:
    """min_sequences or missing_ok were given to the wrong part."""
    added = memory.add(STREAMS, 3)
    q = memory.queries(6, 1)
    streams = [*STREAMS, "nobody"]
    least = (*added.next_sequences, 0)
    out = memory.ns.attend(0, q, top_k=2, streams=streams, min_sequences=least, missing_ok=True)
    assert out.next_sequences[:5] == added.next_sequences
    assert (out.lse[5] == -np.inf).all()
    with pytest.raises(recollect.FailedPreconditionError):
        memory.ns.attend(0, q[:5], top_k=2, streams=STREAMS, min_sequences=[*least[:4], least[4] + 1])
