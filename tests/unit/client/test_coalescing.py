"""Small attends of threads that wait at the same time are sent together: noticed by the speed alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future
from types import FrameType

import pytest

import recollect
from recollect._batches import ROWS_MAX
from recollect._coalescing import UNDER_WAY_MAX, _Waiting
from tests.unit.client.attends import STREAMS, Answer, Floats, assert_same, differing, queries
from tests.unit.client.watched import World, until


@pytest.fixture(name="world")
def a_world() -> Iterator[World]:
    """Whose threads all end."""
    world = World()
    yield world
    world.watched.go.set()
    world.threads.shutdown()
    assert world.is_idle
    world.watched.end()


@pytest.mark.parametrize("with_ids", [True, False])
def test_everybody_gets_the_own_rows(world: World, with_ids: bool) -> None:
    """A thread gets another conversation's attention, or each of them has a message of its own."""
    asked = [
        (queries(n, rows=1 + n % 3), [f"s{(n + row) % STREAMS}" for row in range(1 + n % 3)])
        for n in range(20)
    ]

    def ask(q: Floats, streams: list[str]) -> Future[Answer]:
        return world.threads.submit(world.together.attend, 0, q, top_k=5, streams=streams, with_ids=with_ids)

    world.watched.go.clear()
    held = [ask(queries(0), ["s0"]) for _ in range(UNDER_WAY_MAX)]
    until(lambda: len(world.watched.rows) == UNDER_WAY_MAX)
    answers = [ask(q, streams) for q, streams in asked]
    until(lambda: world.waiting == len(asked))
    world.watched.go.set()
    for (q, streams), answer in zip(asked, answers, strict=True):
        assert_same(answer.result(), world.plain.attend(0, q, top_k=5, streams=streams, with_ids=with_ids))
    for future in held:
        future.result()
    assert world.watched.rows == [1] * UNDER_WAY_MAX + [sum(len(s) for _, s in asked)]


def test_one_after_the_other_nothing_changes(world: World) -> None:
    """A lone thread waits for others to come, or what it did is remembered."""
    for number in range(5):
        assert_same(world.together.attend(0, queries(number), top_k=5, streams=["s1"]), world.right(number))
        assert world.is_idle


def test_two_threads_do_not_wait_for_each_other(world: World) -> None:
    """Where there is nothing to put together, threads wake each other up for each call."""
    world.watched.go.clear()
    both = [world.ask(0), world.ask(1)]
    until(lambda: world.watched.rows == [1, 1])
    world.watched.go.set()
    for number, future in enumerate(both):
        assert_same(future.result(), world.right(number))


def test_an_error_is_its_callers_alone(world: World) -> None:
    """One caller's mistake fails the calls that it was sent with."""
    world.hold_up()
    names = ["s0", "s1", "nowhere", "s2", "s3"]
    answers = [world.ask(n, name) for n, name in enumerate(names)]
    until(lambda: world.waiting == len(names))
    world.watched.go.set()
    for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
        if name == "nowhere":
            with pytest.raises(recollect.NotFoundError, match="nowhere"):
                answer.result()
        else:
            assert_same(answer.result(), world.right(number, name))


def test_what_passes_is_tried_again_together(world: World) -> None:
    """A server that was away for a moment then gets as many messages as there are callers."""
    held = world.hold_up()
    answers = [world.ask(n) for n in range(6)]
    until(lambda: world.waiting == 6)
    world.watched.failures.append(recollect.UnavailableError("for the test"))
    world.watched.go.set()
    for number, answer in enumerate(answers):
        assert_same(answer.result(), world.right(number))
    for future in held:
        future.result()
    assert world.watched.rows == [1] * UNDER_WAY_MAX + [6, 6]


def test_only_what_is_alike_is_sent_together(world: World) -> None:
    """Calls that differ in layer, top_k, scale, shape or what they want are answered as if they did not."""
    world.hold_up()
    answers = [world.threads.submit(ask) for ask in differing(world.together.attend)]
    # The first of them waits for those that are held up; each of the others is the first of its kind.
    until(lambda: len(world.watched.rows) == UNDER_WAY_MAX + len(answers) - 1)
    world.watched.go.set()
    for answer, ask in zip(answers, differing(world.plain.attend), strict=True):
        assert_same(answer.result(), ask())
    assert set(world.watched.rows) == {1}


def test_an_answer_keeps_nobody_elses_rows(world: World) -> None:
    """Whoever keeps one answer keeps the whole batch in memory, or may write to what is read-only."""
    world.hold_up()
    answers = [world.ask(n) for n in range(10)]
    until(lambda: world.waiting == 10)
    world.watched.go.set()
    for answer in answers:
        for array in (answer.result().output, answer.result().lse, answer.result().ids):
            assert array is not None
            assert array.base is None or array.base.nbytes <= 2 * array.nbytes
            assert not array.flags.writeable
    assert world.watched.rows == [1] * UNDER_WAY_MAX + [10]


def test_a_batch_is_bounded(world: World) -> None:
    """Threads without number make a message that the server does not take."""
    world.hold_up()
    answers = [world.ask(n) for n in range(3 * ROWS_MAX)]
    until(lambda: world.waiting == 3 * ROWS_MAX)
    world.watched.go.set()
    for answer in answers:
        answer.result()
    assert world.watched.rows.count(ROWS_MAX) == 3
    assert len(world.watched.rows) == UNDER_WAY_MAX + 3


def test_large_calls_go_alone(world: World) -> None:
    """A large call waits for small ones, or holds up those that it was put together with."""
    world.hold_up()
    large = [
        world.threads.submit(world.together.attend, 0, queries(n, tokens=600), top_k=8, streams=["s1"])
        for n in range(3)
    ]
    until(lambda: len(world.watched.rows) == UNDER_WAY_MAX + 3)
    world.watched.go.set()
    for future in large:
        future.result()
    assert set(world.watched.rows) == {1}


def test_who_has_no_more_time_takes_nobody_along(world: World) -> None:
    """A thread whose time is over waits on, or is chosen to send when it is gone: others wait for ever."""
    world.hold_up()
    many = UNDER_WAY_MAX * ROWS_MAX  # a batch of them for each message that is back, and nobody else in it
    late = [world.ask(n, timeout_s=0.05) for n in range(many)]
    until(lambda: world.waiting == many)
    for future in late:
        with pytest.raises(recollect.DeadlineExceededError, match="before the call could be sent"):
            future.result()
    kept = world.ask(3, "s3")
    until(lambda: world.waiting == many + 1)
    world.watched.go.set()
    assert_same(kept.result(), world.right(3, "s3"))
    until(lambda: world.is_idle)
    assert world.watched.rows == [1] * (UNDER_WAY_MAX + 1)  # nobody asks for those that are gone


def test_whoever_has_the_most_time_sends(world: World) -> None:
    """A batch ends when the first of its callers has no more time, and all others ask again."""
    world.hold_up()
    hurried = [world.ask(n, timeout_s=0.5) for n in range(3)]
    until(lambda: world.waiting == 3)
    patient = world.ask(3)
    until(lambda: world.waiting == 4)
    world.hold_up_the_next(rows=4)
    for future in hurried:
        with pytest.raises(recollect.DeadlineExceededError):
            future.result()
    world.watched.go.set()
    assert_same(patient.result(), world.right(3))
    assert world.watched.rows == [1] * UNDER_WAY_MAX + [4]


def test_who_gave_up_meanwhile_leaves_nobody_asleep(world: World) -> None:
    """Each of a batch wakes the next one up: behind one that is gone they sleep until their time is over."""
    world.hold_up()
    first = world.ask(0)
    until(lambda: world.waiting == 1)
    hurried = [world.ask(n, timeout_s=0.5) for n in range(3)]
    until(lambda: world.waiting == 4)
    last = [world.ask(n) for n in range(3)]
    until(lambda: world.waiting == 7)
    world.hold_up_the_next(rows=7)
    for future in hurried:
        with pytest.raises(recollect.DeadlineExceededError):
            future.result()
    world.watched.go.set()
    for number, answer in enumerate([first, *last]):
        assert_same(answer.result(30), world.right((0, 0, 1, 2)[number]))


def test_who_gives_up_before_it_is_woken_wakes_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over when it is to wake another up: that one, and all behind it, sleep on."""
    sleep = _Waiting.sleep

    def too_long(waiting: _Waiting) -> bool:
        if waiting.deadline.timeout_s != 50:
            return sleep(waiting)
        until(lambda: waiting.next is not None)  # it is its turn, but it does not wake up any more
        return False

    monkeypatch.setattr(_Waiting, "sleep", too_long)
    world.hold_up()
    names = ["s0", "s1", "s2", "s3", "s4"]
    answers = [world.ask(0, "s0")]
    until(lambda: world.waiting == 1)
    late = world.ask(1, "s1", timeout_s=50)
    until(lambda: world.waiting == 2)
    answers += [world.ask(n, names[n]) for n in (2, 3, 4)]
    until(lambda: world.waiting == 5)
    world.watched.go.set()
    with pytest.raises(recollect.DeadlineExceededError):
        late.result()
    for number, answer in zip((0, 2, 3, 4), answers, strict=True):
        assert_same(answer.result(30), world.right(number, names[number]))


def test_who_is_chosen_when_its_time_is_over_takes_nobody_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is to send for others gives up at that moment: they sleep for ever."""
    sleep = _Waiting.sleep

    def too_long(waiting: _Waiting) -> bool:
        if waiting.deadline.timeout_s != 600:
            return sleep(waiting)
        until(lambda: bool(waiting.batch))  # it is chosen, but does not wake up any more
        return False

    monkeypatch.setattr(_Waiting, "sleep", too_long)
    world.hold_up()
    chosen = world.ask(0, timeout_s=600)
    others = [world.ask(n) for n in range(3)]
    until(lambda: world.waiting == 4)
    world.watched.go.set()
    with pytest.raises(recollect.DeadlineExceededError):
        chosen.result()
    for number, answer in enumerate(others):
        assert_same(answer.result(), world.right(number))


def test_who_is_interrupted_takes_nobody_along(world: World) -> None:
    """Ctrl-C in a thread that waits: it is chosen to send when it is gone, and others wait for ever."""

    class InterruptionError(Exception):
        """By a signal."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise InterruptionError

    world.hold_up()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptionError):
            world.together.attend(0, queries(1), top_k=5, streams=["s1"])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert world.waiting == 1
    kept = world.ask(2)
    until(lambda: world.waiting == 2)
    world.watched.go.set()
    assert_same(kept.result(), world.right(2))


def test_who_is_interrupted_while_it_sends_takes_nobody_along(world: World) -> None:
    """Ctrl-C in the thread that sends for others ends their calls, or leaves them asleep."""
    world.hold_up()
    answers = [world.ask(n) for n in range(4)]
    until(lambda: world.waiting == 4)
    world.watched.failures.append(KeyboardInterrupt())
    world.watched.go.set()
    errors = [answer.exception() for answer in answers]
    assert [type(error) for error in errors if error is not None] == [KeyboardInterrupt]
    for number, (answer, error) in enumerate(zip(answers, errors, strict=True)):
        if error is None:
            assert_same(answer.result(), world.right(number))


def test_a_client_that_is_closed_says_so_to_all(world: World) -> None:
    """Threads that wait when the client is closed wait on, or see an error that is none of the tree."""
    world.hold_up()
    answers = [world.ask(n) for n in range(4)]
    until(lambda: world.waiting == 4)
    world.client.close()
    world.watched.go.set()
    for answer in answers:
        with pytest.raises(recollect.ClosedError):
            answer.result()
