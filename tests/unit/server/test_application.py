"""Request ids, the queue of a device, and bounds on what is stored."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest

from recollect_server.application.catalog import SEQUENCES_PER_MS, Catalog
from recollect_server.application.commands import Add, Evict, Search
from recollect_server.application.dispatch import Dispatcher
from recollect_server.application.memory import Memory
from recollect_server.application.request_ids import AnsweredRequests
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidArgumentError,
    MemoryExhaustedError,
    NamespaceNotFoundError,
    OverloadedError,
    TooManyNamespacesError,
    TooManyStreamsError,
)
from recollect_server.domain.eviction import Everything, OlderThan
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine.cpu import CpuDevice
from recollect_server.registry.in_memory import InMemoryNamespaces

PATIENCE_S = 60.0
SPEC = NamespaceSpec(layers=(0, 1), heads=1, key_dim=2, value_dim=2, capacity=100, dtype=Dtype.FLOAT32)
CALLER, OTHER = Caller("one"), Caller("other")


class Server:
    """The use cases on a clock that the test moves."""

    def __init__(self, **limits: int) -> None:
        self.now_s = 1000.0
        self.limits = Limits(**limits)
        self.catalog = Catalog(
            InMemoryNamespaces(), CpuDevice(), limits=self.limits, clock=lambda: self.now_s
        )
        self.memory = Memory(self.catalog, limits=self.limits, clock=lambda: self.now_s)

    def add(self, stream: str, tokens: int, *, caller: Caller = CALLER, namespace: str = "n") -> int:
        """Adds ones to a stream; returns its first id."""
        array = from_float32(np.ones((1, 1, tokens, 2), dtype=np.float32), Dtype.FLOAT32)
        command = Add(namespace=namespace, layer=0, streams=(stream,), keys=array, values=array)
        return self.memory.add(caller, command).first_ids[0]


@pytest.fixture
def server() -> Server:
    """With a namespace."""
    made = Server(memory_bytes_max=3 * 64 * 16, namespaces_max=2)
    made.catalog.create(CALLER, "n", spec=SPEC)
    return made


def test_memory_is_bounded(server: Server) -> None:
    """The server allocates beyond its bound, or a refused add was stored in part."""
    for stream in "abc":
        server.add(stream, 60)
    before = server.catalog.stats(CALLER, "n")
    with pytest.raises(MemoryExhaustedError, match="1,024 bytes more"):
        server.add("d", 1)
    assert server.catalog.stats(CALLER, "n") == before
    server.add("a", 4)  # needs no more
    with pytest.raises(MemoryExhaustedError):
        server.add("a", 1)
    server.memory.evict(CALLER, Evict("n", ("b",), Everything()))
    server.add("d", 1)


def test_streams_are_bounded() -> None:
    """A caller that never reuses a stream's name fills the server."""
    server = Server(streams_max=4)
    server.catalog.create(CALLER, "n", spec=SPEC)
    for stream in "abcd":
        server.add(stream, 1)
    with pytest.raises(TooManyStreamsError, match="4"):
        server.add("e", 1)
    server.memory.evict(CALLER, Evict("n", ("a",), Everything()))
    server.add("e", 1)


def test_namespaces_are_bounded(server: Server) -> None:
    """A tenant may make namespaces without end."""
    server.catalog.create(CALLER, "m", spec=SPEC)
    with pytest.raises(TooManyNamespacesError):
        server.catalog.create(CALLER, "o", spec=SPEC)
    server.catalog.create(CALLER, "m", spec=SPEC, exist_ok=True)
    server.catalog.create(OTHER, "o", spec=SPEC)
    server.catalog.delete(CALLER, "m")
    server.catalog.create(CALLER, "o", spec=SPEC)


def test_another_tenants_namespace_is_like_none(server: Server) -> None:
    """A tenant learns of another's namespace, or reads or deletes it."""
    server.add("a", 1)

    def refusals(caller: Caller, name: str) -> list[str]:
        said = []
        for call in (
            lambda: server.catalog.get(caller, name),
            lambda: server.catalog.delete(caller, name),
            lambda: server.catalog.stats(caller, name),
            lambda: server.add("a", 1, caller=caller, namespace=name),
            lambda: server.memory.evict(caller, Evict(name, ("a",), Everything())),
        ):
            with pytest.raises(NamespaceNotFoundError) as caught:
                call()
            said.append(str(caught.value).replace(repr(name), "NAME"))
        return said

    assert refusals(OTHER, "n") == refusals(OTHER, "nothing")
    assert server.catalog.list(OTHER, page_size=0, after="") == ([], "")
    server.catalog.create(OTHER, "n", spec=SPEC)
    assert server.catalog.stats(OTHER, "n").entries == 0
    assert server.catalog.stats(CALLER, "n").entries == 1


def test_ids_begin_at_the_namespaces_birth(server: Server) -> None:
    """A namespace made again, by this process or the next, gives out ids of the one before."""
    assert server.add("a", 5) == 1_000_000 * SEQUENCES_PER_MS
    server.catalog.delete(CALLER, "n")
    server.catalog.create(CALLER, "n", spec=SPEC)  # within the same millisecond
    assert server.add("a", 5) == 1_000_000 * SEQUENCES_PER_MS + 5
    server.catalog.delete(CALLER, "n")
    server.now_s = 500.0  # a clock that was set back
    server.catalog.create(CALLER, "n", spec=SPEC)
    assert server.add("a", 5) == 1_000_000 * SEQUENCES_PER_MS + 10


def test_age_is_that_of_the_add(server: Server) -> None:
    """older_than_s evicts by something else than the time of the add."""
    server.add("a", 3)
    server.now_s += 10
    server.add("a", 2)
    server.now_s += 10
    assert server.memory.evict(CALLER, Evict("n", ("a",), OlderThan(20.0))) == 0
    assert server.memory.evict(CALLER, Evict("n", ("a",), OlderThan(15.0))) == 3
    assert server.memory.evict(CALLER, Evict("n", ("a",), OlderThan(15.0))) == 0
    assert server.memory.evict(CALLER, Evict("n", ("a",), OlderThan(9.0))) == 2


def test_nothing_is_searched_before_all_is_checked(server: Server) -> None:
    """A read of a missing stream answered for the rows before it."""
    server.add("a", 3)
    queries = from_float32(np.ones((2, 1, 1, 2), dtype=np.float32), Dtype.FLOAT32)
    with pytest.raises(InvalidArgumentError):
        server.memory.search(CALLER, Search("n", 0, ("a", "a", "a"), queries, top_k=1))


# ---- request ids ----


def once(
    answers: AnsweredRequests,
    request_id: str,
    done: list[str],
    *,
    tenant: str = "t",
    epoch: int = 1,
    call: str = "c",
) -> int:
    """Does some work under an id."""

    def work() -> int:
        done.append(request_id)
        return len(done)

    return answers.once(tenant, request_id, epoch=epoch, call=call, answer_type=int, work=work)


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
    once(answers, "x", done, epoch=1)
    once(answers, "x", done, epoch=2)
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
        answers.once("t", "x", epoch=1, call="c", answer_type=int, work=fail)
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


# ---- the queue ----


class Gate:
    """Work that holds the device until it is let go."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._go = threading.Event()
        self._began = threading.Event()
        self.held: Future[None] = dispatcher.submit(self._hold)
        assert self._began.wait(PATIENCE_S)

    def open(self) -> None:
        """Lets go."""
        self._go.set()

    def _hold(self) -> None:
        self._began.set()
        assert self._go.wait(PATIENCE_S)


def test_work_runs_in_order_on_one_thread() -> None:
    """GPU resources are used by two threads, or a later call overtakes an earlier one."""
    dispatcher, seen = Dispatcher(Limits()), list[tuple[int, int]]()
    futures = [
        dispatcher.submit(partial(lambda n: seen.append((n, threading.get_ident())), number))
        for number in range(20)
    ]
    for future in futures:
        future.result(PATIENCE_S)
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1
    dispatcher.drain()


def test_a_full_queue_refuses() -> None:
    """Calls pile up without bound instead of being told to come back."""
    dispatcher = Dispatcher(Limits(calls_waiting_max=3))
    gate = Gate(dispatcher)
    waiting = [dispatcher.submit(lambda: None) for _ in range(2)]
    with pytest.raises(OverloadedError) as caught:
        dispatcher.submit(lambda: None)
    assert caught.value.retry_after_s
    waiting[0].cancel()  # its caller gave up: that makes room
    again = dispatcher.submit(lambda: 1)
    gate.open()
    assert again.result(PATIENCE_S) == 1
    dispatcher.drain()


def test_nobody_works_for_a_caller_who_left() -> None:
    """Work whose deadline has passed is done all the same."""
    dispatcher, done = Dispatcher(Limits()), list[int]()
    gate = Gate(dispatcher)
    late = dispatcher.submit(lambda: done.append(1), deadline_s=time.monotonic() - 1)
    timely = dispatcher.submit(lambda: done.append(2), deadline_s=time.monotonic() + PATIENCE_S)
    gate.open()
    with pytest.raises(DeadlineExceededError):
        late.result(PATIENCE_S)
    timely.result(PATIENCE_S)
    assert done == [2]
    dispatcher.drain()


def test_drain_finishes_what_was_queued() -> None:
    """A shutdown drops calls that were accepted, or accepts new ones."""
    dispatcher = Dispatcher(Limits())
    gate = Gate(dispatcher)
    queued = [dispatcher.submit(partial(int, number)) for number in range(5)]
    drained = threading.Thread(target=dispatcher.drain)
    drained.start()
    refused = False
    end = time.monotonic() + PATIENCE_S
    while not refused and time.monotonic() < end:
        try:
            dispatcher.submit(lambda: None)
        except DrainingError as error:
            refused = error.retry_after_s is not None
    gate.open()
    drained.join(PATIENCE_S)
    assert refused
    assert [future.result(PATIENCE_S) for future in queued] == list(range(5))


def test_a_failure_is_its_callers_alone() -> None:
    """One call's exception ends the device's thread."""
    dispatcher = Dispatcher(Limits())

    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dispatcher.submit(fail).result(PATIENCE_S)
    assert dispatcher.submit(lambda: 7).result(PATIENCE_S) == 7
    dispatcher.drain()
