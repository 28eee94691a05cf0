"""Request ids, quotas, and bounds on what is stored."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from recollect_server.application.commands import (
    Add,
    Attend,
    AttendBackward,
    Command,
    Describe,
    Evict,
    Namespace,
    Search,
    Stats,
)
from recollect_server.application.request_ids import AnsweredRequests
from recollect_server.domain import work
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.errors import (
    InvalidArgumentError,
    MemoryExhaustedError,
    QuotaExceededError,
    StreamNotFoundError,
    TooManyStreamsError,
)
from recollect_server.domain.eviction import ByIds, Everything, OlderThan, Oldest, Selector
from recollect_server.domain.limits import Limits
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import UNBOUNDED, Result, Steps, in_one_step, run_through
from recollect_server.domain.tenants import Quotas
from tests.unit.server.use_cases import BANK_BYTES, ENTRY_BYTES, Server, steps_of


@pytest.fixture
def server() -> Server:
    """With room for three streams."""
    return Server(memory_bytes_max=3 * (64 * ENTRY_BYTES + BANK_BYTES))


def test_memory_is_bounded(server: Server) -> None:
    """The server allocates beyond its bound, or a refused add was stored in part."""
    for stream in "abc":
        server.add(stream, 60)
    before = server.stats()
    with pytest.raises(MemoryExhaustedError, match="5,120 bytes more"):
        server.add("d", 1)
    assert server.stats() == before
    server.add("a", 4)  # needs no more
    with pytest.raises(MemoryExhaustedError):
        server.add("a", 1)
    server.evict("b", Everything())
    server.add("d", 1)


def test_a_bank_is_not_for_nothing() -> None:
    """A tenant that adds nothing to many streams and layers fills the machine, and no quota counts it."""
    server = Server(quotas=Quotas(bytes_max=10 * BANK_BYTES))

    def add_nothing(stream: str) -> None:
        one = from_float32(np.ones((1, 1, 1, 2), dtype=np.float32), Dtype.FLOAT32)
        run_through(server.memory.add(server.namespace(), Add("n", 0, (stream,), one, one, lengths=(0,))))

    for number in range(10):
        add_nothing(f"{number}")
    assert server.stats().bytes == server.memories.total.bytes == 10 * BANK_BYTES
    with pytest.raises(QuotaExceededError, match="4,096 bytes more"):
        add_nothing("more")
    add_nothing("0")
    server.evict("0", Everything())
    assert server.memories.total.bytes == 9 * BANK_BYTES
    add_nothing("more")


@pytest.mark.parametrize("what", ["describe", "evict", "drop"])
def test_many_banks_are_gone_through_some_at_a_time(what: str) -> None:
    """One call for thousands of banks holds up every tenant for seconds."""
    server, budget = Server(), 3 * work.OBJECTS
    names = tuple(f"{number}" for number in range(50))
    for name in names:
        server.add(name, 3)
    namespace = server.namespace()
    doings: dict[str, Steps[Stats] | Steps[int]] = {
        "describe": server.memory.describe(namespace, Describe("n", names)),
        "evict": server.memory.evict(namespace, Evict("n", names, Everything())),
        "drop": server.memories.drop("one", "n", uid=namespace.record.uid),
    }
    taken: list[int] = steps_of(doings[what], budget)
    assert max(taken) < 2 * budget
    assert sum(taken) >= len(names) * work.OBJECTS
    assert (server.memories.total.entries == 0) == (what != "describe")
    if what == "describe":
        assert {bank.stream: bank.entries for bank in server.stats(*names).banks} == dict.fromkeys(names, 3)


def test_details_of_more_banks_than_an_answer_holds_are_refused() -> None:
    """The server makes an answer of any size, and the caller cannot even take it."""
    server = Server(message_bytes_max=1000)
    for name in "abcdef":
        server.add(name, 1)
    assert len(server.stats(*"abcde").banks) == 5
    with pytest.raises(InvalidArgumentError, match="6 banks, whose details take 1,158 bytes"):
        server.stats(*"abcdef")


def test_ids_of_two_evictions_are_told_apart() -> None:
    """An eviction of others under an id that was used is taken for a repeat: it does nothing."""
    server = Server()
    first = server.add("a", 50)

    def evict(wanted: int) -> int:
        """So many of the first; in the middle of more ids than NumPy shows of an array."""
        few = first + np.arange(wanted, wanted + 10)
        ids = np.concatenate([np.arange(first - 3000, first), few, np.arange(first + 100, first + 200)])
        command = Evict("n", ("a",), ByIds(ids), request_id="once")
        return run_through(server.memory.evict(server.namespace(), command))

    assert [evict(0), evict(0)] == [10, 10]
    with pytest.raises(InvalidArgumentError, match="another call"):
        evict(20)


def test_streams_are_bounded() -> None:
    """A caller that never reuses a stream's name fills the server."""
    server = Server(streams_max=4)
    for stream in "abcd":
        server.add(stream, 1)
    with pytest.raises(TooManyStreamsError, match="4"):
        server.add("e", 1)
    server.evict("a", Everything())
    server.add("e", 1)


@pytest.mark.parametrize(
    ("quota", "quotas"),
    [
        ("BYTES", Quotas(bytes_max=164 * ENTRY_BYTES + 2 * BANK_BYTES)),
        ("ENTRIES", Quotas(entries_max=110)),
        ("STREAMS", Quotas(streams_max=2)),
    ],
)
def test_a_tenants_quotas_hold_over_its_namespaces(quota: str, quotas: Quotas) -> None:
    """A tenant stores more than it may, is refused what is another's, or cannot make room for itself."""
    server = Server(quotas=quotas)
    server.add("a", 100)  # at capacity
    server.add("b", 10, name="m")
    used = server.memories.usage("one")
    before = (used.bytes, used.entries, used.streams)
    assert before == (164 * ENTRY_BYTES + 2 * BANK_BYTES, 110, 2)
    with pytest.raises(QuotaExceededError, match="in use") as refused:
        server.add("c", 1)
    assert refused.value.reason == f"QUOTA_{quota}"
    assert (used.bytes, used.entries, used.streams) == before
    server.add("a", 30)  # overwrites
    server.add("c", 50, tenant="other")
    query = from_float32(np.ones((1, 1, 1, 2), dtype=np.float32), Dtype.FLOAT32)
    run_through(server.memory.search(server.namespace(), Search("n", 0, ("a",), query, top_k=3)))
    assert server.evict("a", Everything()) == 100
    server.add("c", 1)


def test_over_a_quota_that_was_lowered_room_can_be_made() -> None:
    """A tenant whose quota was lowered below its use is locked out of its own memory."""
    server = Server()
    server.add("a", 90)
    server.quotas = Quotas(bytes_max=1, entries_max=1, streams_max=1)
    assert server.evict("a", Oldest(60)) == 60
    with pytest.raises(QuotaExceededError, match="30 of 1"):
        server.add("a", 1)
    assert server.evict("a", Everything()) == 30
    assert server.memories.total.bytes == 0


def test_usage_is_what_the_banks_hold() -> None:
    """Totals drift away from what is stored: quotas then refuse or admit at random."""
    server = Server()
    rng = np.random.default_rng(0)
    for _ in range(300):
        stream, name = str(rng.integers(4)), "nm"[rng.integers(2)]
        tenant = ("one", "two")[rng.integers(2)]
        if rng.random() < 0.7:
            server.add(stream, int(rng.integers(1, 80)), tenant=tenant, name=name)
        else:
            memory = server.memories.peek(server.namespace(name, tenant=tenant).record)
            ids = np.arange(0) if memory is None else np.arange(memory.high_water - 50, memory.high_water, 3)
            selectors: list[Selector] = [Everything(), Oldest(int(rng.integers(30))), ByIds(ids)]
            selector = selectors[rng.integers(3)]
            command = Evict(name, (stream,), selector, missing_ok=True)
            run_through(server.memory.evict(server.namespace(name, tenant=tenant), command))
    totals = np.zeros(3, dtype=np.int64)
    for tenant in ("one", "two"):
        held = np.zeros(3, dtype=np.int64)
        for name in "nm":
            memory = server.memories.peek(server.namespace(name, tenant=tenant).record)
            assert memory is not None
            banks = [bank for _, _, bank in memory.banks()]
            held += (sum(b.allocated_bytes for b in banks), sum(b.ring.count for b in banks), memory.streams)
        usage = server.memories.usage(tenant)
        assert (usage.bytes, usage.entries, usage.streams) == tuple(held.tolist())
        totals += held
    total = server.memories.total
    assert (total.bytes, total.entries, total.streams) == tuple(totals.tolist())


def test_what_a_namespace_holds(server: Server) -> None:
    """Statistics name other streams than those asked for, or miss what is stored."""
    server.add("a", 5)
    server.add("b", 7)
    stats = server.stats("b", "b")
    assert (stats.streams, stats.entries, stats.bytes) == (2, 12, 128 * ENTRY_BYTES + 2 * BANK_BYTES)
    assert [(b.stream, b.layer, b.entries) for b in stats.banks] == [("b", 0, 7)]
    assert server.stats().banks == ()
    with pytest.raises(StreamNotFoundError):
        server.stats("a", "c")


def test_age_is_that_of_the_add(server: Server) -> None:
    """older_than_s evicts by something else than the time of the add."""
    server.add("a", 3)
    server.now_s += 10
    server.add("a", 2)
    server.now_s += 10
    assert server.evict("a", OlderThan(20.0)) == 0
    assert server.evict("a", OlderThan(15.0)) == 3
    assert server.evict("a", OlderThan(15.0)) == 0
    assert server.evict("a", OlderThan(9.0)) == 2


def test_nothing_is_searched_before_all_is_checked(server: Server) -> None:
    """A read of a missing stream answered for the rows before it."""
    server.add("a", 3)
    queries = from_float32(np.ones((2, 1, 1, 2), dtype=np.float32), Dtype.FLOAT32)
    with pytest.raises(InvalidArgumentError):
        next(server.memory.search(server.namespace(), Search("n", 0, ("a", "a", "a"), queries, top_k=1)))


def test_a_closed_write_has_done_nothing(server: Server) -> None:
    """A call that was given up at a pause is stored, in part or whole."""
    server.add("a", 3)
    array = from_float32(np.ones((1, 1, 5, 2), dtype=np.float32), Dtype.FLOAT32)
    for steps in (
        server.memory.add(server.namespace(), Add("n", 0, ("a",), array, array, request_id="x")),
        server.memory.evict(server.namespace(), Evict("n", ("a",), Everything(), request_id="y")),
    ):
        next(steps)
        steps.close()
    assert server.stats().entries == 3
    assert server.add("a", 5, request_id="x") == server.stats("a").banks[0].first_id + 3


def done_in(steps: Steps[Result], budget: int) -> int:
    """Takes the steps; returns the work that they reported."""
    return sum(steps_of(steps, budget))


@pytest.mark.parametrize("budget", [1_000_000, UNBOUNDED])
def test_estimates_are_what_steps_report(budget: int) -> None:
    """A tenant is charged otherwise than its calls were estimated, or a wrong call cannot be estimated."""
    server = Server()
    big = NamespaceSpec((0,), heads=2, key_dim=32, value_dim=16, capacity=5000, dtype=Dtype.FLOAT32)
    namespace = Namespace(NamespaceRecord("one", "n", big, 1_000_000, "u"), Quotas())
    rng = np.random.default_rng(0)

    def array(heads: int, tokens: int, dim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal((1, heads, tokens, dim)).astype(np.float32)

    k, v, q, go = (
        from_float32(array(heads, tokens, dim), Dtype.FLOAT32)
        for heads, tokens, dim in ((2, 5000, 32), (2, 5000, 16), (4, 300, 32), (4, 300, 16))
    )
    add = Add("n", 0, ("a",), k, v)
    assert server.memory.cost(namespace, Attend("n", 0, ("a",), q, 8, 1.0)) == work.CALL
    run_through(server.memory.add(namespace, add))
    attend = Attend("n", 0, ("a",), q, 8, 1.0)
    answer = run_through(server.memory.attend(namespace, attend))
    assert answer.ids is not None
    backward = AttendBackward("n", 0, ("a",), q, answer.ids, 1.0, go)
    search = Search("n", 0, ("a",), q, 8, include_values=True)
    for command, steps in (
        (attend, server.memory.attend(namespace, attend)),
        (search, server.memory.search(namespace, search)),
        (backward, server.memory.attend_backward(namespace, backward)),
        (add, server.memory.add(namespace, add)),
    ):
        estimate = server.memory.cost(namespace, command) - work.CALL
        assert 0.8 * estimate <= done_in(steps, budget) <= 1.5 * estimate
    flat = from_float32(np.ones(7, np.float32), Dtype.FLOAT32)
    malformed: list[Command] = [
        Attend("n", 9, ("a", "x"), flat, -5, 1.0),
        Search("n", 0, (), from_float32(np.ones((0, 3, 0, 1), np.float32), Dtype.FLOAT32), 2**40),
        Evict("n", ("x",), Everything(), layers=(99,)),
    ]
    for wrong in malformed:
        assert work.CALL <= server.memory.cost(namespace, wrong) < 2 * work.CALL


# ---- request ids ----


def once(
    answers: AnsweredRequests,
    request_id: str,
    done: list[str],
    *,
    tenant: str = "t",
    uid: str = "1",
    call: str = "c",
) -> int:
    """Does some work under an id."""

    def work() -> int:
        done.append(request_id)
        return len(done)

    steps = partial(in_one_step, work)
    return run_through(answers.once(tenant, request_id, uid=uid, call=call, answer_type=int, work=steps))


def test_work_is_done_once() -> None:
    """A repeat does the work again, or an unnamed call is taken for a repeat."""
    answers, done = AnsweredRequests(Limits()), list[str]()
    assert [once(answers, "x", done), once(answers, "x", done)] == [1, 1]
    assert [once(answers, "", done), once(answers, "", done)] == [2, 3]
    assert done == ["x", "", ""]


def test_ids_belong_to_their_tenant() -> None:
    """A tenant is answered with another's result."""
    answers, done = AnsweredRequests(Limits()), list[str]()
    once(answers, "x", done, tenant="a")
    once(answers, "x", done, tenant="b")
    assert done == ["x", "x"]


def test_ids_end_with_their_namespace() -> None:
    """A namespace that was made again answers an add with what the one before stored, and stores nothing."""
    answers, done = AnsweredRequests(Limits()), list[str]()
    once(answers, "x", done, uid="1")
    once(answers, "x", done, uid="2")
    assert done == ["x", "x"]


def test_an_id_names_one_call() -> None:
    """Two different calls under one id: the second is lost in silence."""
    answers, done = AnsweredRequests(Limits()), list[str]()
    once(answers, "x", done)
    with pytest.raises(InvalidArgumentError, match="another call"):
        once(answers, "x", done, call="other")
    with pytest.raises(InvalidArgumentError, match="65"):
        once(answers, "x" * 65, done)
    assert done == ["x"]


def test_failed_work_is_not_remembered() -> None:
    """A call that failed cannot be tried again under its id."""
    answers, done = AnsweredRequests(Limits()), list[str]()

    def fail() -> int:
        raise InvalidArgumentError("x", "no")

    with pytest.raises(InvalidArgumentError):
        run_through(
            answers.once("t", "x", uid="1", call="c", answer_type=int, work=partial(in_one_step, fail))
        )
    assert once(answers, "x", done) == 1


def test_memory_of_answers_is_bounded() -> None:
    """Answers are kept for ever, or the newest are forgotten first."""
    answers, done = AnsweredRequests(Limits(request_ids_remembered=3)), list[str]()
    for number in range(5):
        once(answers, str(number), done)
    for number in (2, 3, 4):
        once(answers, str(number), done)
    assert len(done) == 5
    once(answers, "0", done)
    assert len(done) == 6


def test_answers_are_forgotten_with_their_tenant() -> None:
    """Answers of tenants that are long gone stay in memory."""
    answers, done = AnsweredRequests(Limits()), list[str]()
    once(answers, "x", done, tenant="a")
    once(answers, "x", done, tenant="b")
    answers.forget("a")
    answers.forget("nobody")
    once(answers, "x", done, tenant="b")
    once(answers, "x", done, tenant="a")
    assert done == ["x", "x", "x"]
