"""Small attends that wait at the same time are sent together, and nobody notices but by the speed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import torch
from google.protobuf.message import Message

import recollect
from recollect._batches import ROWS_MAX
from recollect._embedded_transport import AsyncEmbeddedTransport
from recollect._results import Array
from recollect._runner import AsyncRunner
from recollect._work import ATTEND, Collector, Reply, Upload
from recollect.v1 import memory_pb2 as pb
from tests.unit.client.attends import DIM, HEADS, STREAMS, Answer, assert_same, differing, queries


class Watched:
    """A real memory in this process, whose attends are noted and may be held back."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.failures = 0
        self.go = asyncio.Event()
        self.go.set()
        self._inner = AsyncEmbeddedTransport(None)

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Notes how many rows an attend has."""
        if method == ATTEND:
            assert isinstance(request, pb.AttendRequest)
            self.rows.append(len(request.streams))
            await self.go.wait()
            if self.failures:
                self.failures -= 1
                raise recollect.UnavailableError("for the test")
        return await self._inner.call(method, request, reply_type, timeout_s=timeout_s)

    async def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Passes it on."""
        return await self._inner.stream(method, question, collector, timeout_s=timeout_s)

    async def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Passes it on."""
        return await self._inner.upload(method, upload, reply_type, timeout_s=timeout_s)

    async def close(self) -> None:
        """Closes the memory."""
        await self._inner.close()


class World:
    """One namespace with some streams, asked through a coalescing client and through a plain one."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    async def fill(self) -> None:
        """Makes the namespace."""
        made = await self._client(coalesce=False).create_namespace(
            "n", layers=[0, 1], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=64, dtype="float32"
        )
        generator = np.random.default_rng(0)
        shape = (STREAMS, HEADS, 16, DIM)
        names = [f"s{number}" for number in range(STREAMS)]
        for layer in (0, 1):
            keys, values = generator.standard_normal((2, *shape), dtype=np.float32)
            await made.add(layer, keys, values, streams=names)
        self.plain = made
        self.together = await self._client(coalesce=True, retries=1).namespace("n")
        await self.together.attend(0, queries(0), top_k=5, streams=["s0"])  # asks for the limits first
        self.watched.rows.clear()

    async def held_up(self) -> asyncio.Task[Answer]:
        """An attend of stream s0 that is on its way until `watched.go` is set."""
        self.watched.go.clear()
        task = asyncio.create_task(self.together.attend(0, queries(0), top_k=5, streams=["s0"]))
        while not self.watched.rows:
            await asyncio.sleep(0)
        return task

    def _client(self, *, coalesce: bool, retries: int = 0) -> recollect.AsyncClient:
        runner = AsyncRunner(self.watched, "test://", timeout_s=60, retries=retries)
        return recollect.AsyncClient(runner, "test://", coalesce=coalesce)


def run(check: Callable[[World], Awaitable[None]]) -> None:
    """Runs a check in a loop and a world of its own."""

    async def whole() -> None:
        world = World(Watched())
        await world.fill()
        try:
            await check(world)
        finally:
            await world.watched.close()

    asyncio.run(whole())


@pytest.mark.parametrize("with_ids", [True, False])
def test_everybody_gets_the_own_rows(with_ids: bool) -> None:
    """A caller gets another conversation's attention, or each of them has a message of its own."""

    async def check(world: World) -> None:
        asked = [
            (queries(n, rows=1 + n % 3), [f"s{(n + row) % STREAMS}" for row in range(1 + n % 3)])
            for n in range(20)
        ]
        answers = await asyncio.gather(
            *(world.together.attend(0, q, top_k=5, streams=s, with_ids=with_ids) for q, s in asked)
        )
        assert world.watched.rows == [sum(len(s) for _, s in asked)]
        for (q, s), answer in zip(asked, answers, strict=True):
            assert_same(answer, await world.plain.attend(0, q, top_k=5, streams=s, with_ids=with_ids))

    run(check)


def test_one_after_the_other_nothing_changes() -> None:
    """A lone call waits for others to come."""

    async def check(world: World) -> None:
        for number in range(5):
            await world.together.attend(0, queries(number), top_k=5, streams=["s1"])
        assert world.watched.rows == [1] * 5

    run(check)


def test_an_error_is_its_callers_alone() -> None:
    """One caller's mistake fails the calls that it was sent with."""

    async def check(world: World) -> None:
        names = ["s0", "s1", "nowhere", "s2", "s3"]
        answers = await asyncio.gather(
            *(world.together.attend(0, queries(n), top_k=5, streams=[name]) for n, name in enumerate(names)),
            return_exceptions=True,
        )
        for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
            if name == "nowhere":
                assert isinstance(answer, recollect.NotFoundError)
                assert "nowhere" in str(answer)
            else:
                assert isinstance(answer, recollect.AttendResult)
                assert_same(answer, await world.plain.attend(0, queries(number), top_k=5, streams=[name]))

    run(check)


def test_what_passes_is_tried_again_together() -> None:
    """A server that was away for a moment then gets as many messages as there are callers."""

    async def check(world: World) -> None:
        world.watched.failures = 1
        answers = await asyncio.gather(
            *(world.together.attend(0, queries(n), top_k=5, streams=["s1"]) for n in range(6))
        )
        assert world.watched.rows == [6, 6]
        for number, answer in enumerate(answers):
            assert_same(answer, await world.plain.attend(0, queries(number), top_k=5, streams=["s1"]))

    run(check)


def test_only_what_is_alike_is_sent_together() -> None:
    """Calls that differ in layer, top_k, scale, shape or what they want are answered as if they did not."""

    async def check(world: World) -> None:
        for _ in range(2):
            answers = await asyncio.gather(*(ask() for ask in differing(world.together.attend)))
            assert world.watched.rows == [1] * len(answers)
            for answer, ask in zip(answers, differing(world.plain.attend), strict=True):
                assert_same(answer, await ask())
            world.watched.rows.clear()

    run(check)


def test_answers_are_like_their_questions() -> None:
    """Beside callers with torch tensors or another precision, one is answered in theirs."""

    async def check(world: World) -> None:
        asked: list[Array] = [queries(1), queries(2).astype(np.float64)]
        asked += [torch.from_numpy(queries(3)), queries(4)]
        answers = await asyncio.gather(*(world.together.attend(0, q, top_k=5, streams=["s1"]) for q in asked))
        assert sorted(world.watched.rows) == [1, 1, 2]
        for q, answer in zip(asked, answers, strict=True):
            assert type(answer.output) is type(q)
            assert answer.output.dtype == q.dtype
            plain = await world.plain.attend(0, np.asarray(q, np.float32), top_k=5, streams=["s1"])
            np.testing.assert_allclose(np.asarray(answer.output), plain.output, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(answer.ids), np.asarray(plain.ids))

    run(check)


def test_what_is_asked_is_what_it_was_when_it_was_asked() -> None:
    """A caller that uses its array again while it waits gets the answer to something else."""

    async def check(world: World) -> None:
        first = await world.held_up()
        array = queries(1)
        waiting = [
            asyncio.create_task(world.together.attend(0, array, top_k=5, streams=[name]))
            for name in ("s1", "s2")
        ]
        await asyncio.sleep(0)
        array[...] = 7
        world.watched.go.set()
        for name, answer in zip(("s1", "s2"), await asyncio.gather(*waiting), strict=True):
            assert_same(answer, await world.plain.attend(0, queries(1), top_k=5, streams=[name]))
        await first

    run(check)


def test_an_answer_keeps_nobody_elses_rows() -> None:
    """Whoever keeps one answer keeps the whole batch in memory, or may write to what is read-only."""

    async def check(world: World) -> None:
        answers = await asyncio.gather(
            *(world.together.attend(0, queries(n), top_k=5, streams=["s1"]) for n in range(10))
        )
        assert world.watched.rows == [10]
        for answer in answers:
            for array in (answer.output, answer.lse, answer.ids):
                assert array is not None
                assert array.base is None or array.base.nbytes <= 2 * array.nbytes
                assert not array.flags.writeable

    run(check)


def test_a_batch_is_bounded() -> None:
    """Callers without number make a message that the server does not take."""

    async def check(world: World) -> None:
        calls = (world.together.attend(0, queries(n), top_k=5, streams=["s1"]) for n in range(3 * ROWS_MAX))
        await asyncio.gather(*calls)
        assert max(world.watched.rows) == ROWS_MAX
        assert sum(world.watched.rows) == 3 * ROWS_MAX
        assert len(world.watched.rows) == 3

    run(check)


def test_large_calls_go_alone() -> None:
    """A large call holds up the small ones that it was put together with."""

    async def check(world: World) -> None:
        large = (world.together.attend(0, queries(n, tokens=600), top_k=8, streams=["s1"]) for n in range(3))
        await asyncio.gather(*large)
        assert world.watched.rows == [1, 1, 1]

    run(check)


def test_who_leaves_takes_nobody_along() -> None:
    """A caller that is cancelled, or whose time is over, ends the calls of others or waits on."""

    async def check(world: World) -> None:
        first = await world.held_up()
        late = asyncio.create_task(
            world.together.attend(0, queries(1), top_k=5, streams=["s1"], timeout_s=0.05)
        )
        gone = asyncio.create_task(world.together.attend(0, queries(2), top_k=5, streams=["s2"]))
        kept = asyncio.create_task(world.together.attend(0, queries(3), top_k=5, streams=["s3"]))
        with pytest.raises(recollect.DeadlineExceededError):
            await late
        gone.cancel()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        with pytest.raises(asyncio.CancelledError):
            await first
        world.watched.go.set()
        assert_same(await kept, await world.plain.attend(0, queries(3), top_k=5, streams=["s3"]))
        await world.together.attend(0, queries(4), top_k=5, streams=["s4"])

    run(check)


def test_who_leaves_before_it_is_sent_takes_nobody_along() -> None:
    """The first of a turn of the loop is cancelled in it: those that joined it wait for ever."""

    async def check(world: World) -> None:
        first = asyncio.create_task(world.together.attend(0, queries(0), top_k=5, streams=["s0"]))
        kept = asyncio.create_task(world.together.attend(0, queries(3), top_k=5, streams=["s3"]))
        await asyncio.sleep(0)
        assert not world.watched.rows
        first.cancel()
        async with asyncio.timeout(60):
            answer = await kept
        with pytest.raises(asyncio.CancelledError):
            await first
        assert world.watched.rows == [1]
        assert_same(answer, await world.plain.attend(0, queries(3), top_k=5, streams=["s3"]))
        await world.together.attend(0, queries(4), top_k=5, streams=["s4"])

    run(check)


def test_who_has_an_error_of_its_own_is_told_by_itself() -> None:
    """The first of a turn of the loop asks for what is refused: those that joined it are refused, too."""

    async def check(world: World) -> None:
        asked = [("nobody", 0), ("s1", 1), ("s2", 2)]
        answers = await asyncio.gather(
            *(world.together.attend(0, queries(n), top_k=5, streams=[name]) for name, n in asked),
            return_exceptions=True,
        )
        assert isinstance(answers[0], recollect.NotFoundError)
        for (name, n), answer in zip(asked[1:], answers[1:], strict=True):
            assert isinstance(answer, recollect.AttendResult)
            assert_same(answer, await world.plain.attend(0, queries(n), top_k=5, streams=[name]))

    run(check)
