"""Sessions: what is written, when, where to, and exactly once."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Sequence
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

import recollect
from recollect_torch import MemorizingAttention, UncommittedWarning, current_session, session
from tests.unit.torch.conftest import MakeMemory, make_dense
from tests.unit.torch.dense_memory import DenseMemory
from tests.unit.torch.reference import dense, relative_error

STREAMS = ["a", "b"]


def make_layer(number: int = 1, *, xl_length: int = 0) -> MemorizingAttention:
    return MemorizingAttention(16, 2, layer=number, combine="joint", xl_length=xl_length).double()


def tokens(count: int = 4) -> Tensor:
    return torch.randn(2, count, 16, dtype=torch.float64)


class FailingMemory(DenseMemory):
    """The oracle, whose n-th add fails: before it is done, or after, when only the answer is lost."""

    fail_at = 0
    done_first = False
    request_ids: tuple[str | None, ...] = ()

    def add(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        *,
        streams: Sequence[str],
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        self.fail_at -= 1
        self.request_ids += (request_id,)
        if self.fail_at == 0 and not self.done_first:
            raise recollect.InternalError("no")
        answer = super().add(
            layer, keys, values, streams=streams, lengths=lengths, request_id=request_id, timeout_s=timeout_s
        )
        if self.fail_at == 0:
            raise recollect.DeadlineExceededError("late")
        return answer


def failing(*, fail_at: int, done_first: bool = False) -> FailingMemory:
    memory = FailingMemory(make_dense().spec)
    memory.fail_at, memory.done_first = fail_at, done_first
    return memory


def test_nothing_is_seen_before_commit(dense_memory: DenseMemory) -> None:
    """A segment retrieves its own entries."""
    layer, x = make_layer(), tokens()
    alone = layer(x)
    with session(dense_memory, streams=STREAMS) as s:
        for _ in range(2):
            assert torch.equal(layer(x), alone)
        assert dense_memory.adds == []
        s.commit()
        assert not torch.equal(layer(x), alone)
        s.rollback()
    assert dense_memory.stored("a", 1) == 8


def test_commit_makes_one_add_per_layer_in_the_order_of_forward(make_memory: MakeMemory) -> None:
    """Several forwards cost several adds, or are stored in another order."""
    memory = make_memory(capacity=6)
    layer, first, second, x = make_layer(), tokens(4), tokens(4), tokens()
    with session(memory, streams=STREAMS) as s:
        layer(first)
        layer(second)
        s.commit()
        out = layer(x)
        s.rollback()
    past = torch.cat((first, second), dim=1)[:, -6:]
    assert relative_error(out, dense(layer, x, past, combine="joint", gate=None)) < 1e-5


def test_commit_counts_adds(dense_memory: DenseMemory) -> None:
    """A commit repeats itself, or writes layers that did not run."""
    with session(dense_memory, streams=STREAMS) as s:
        for number in (3, 1):
            for _ in range(2):
                make_layer(number)(tokens())
        s.commit()
        s.commit()
    assert dense_memory.adds == [(1, ("a", "b")), (3, ("a", "b"))]


def test_padding_is_not_stored(dense_memory: DenseMemory) -> None:
    """Padding is retrieved later, as if it were text; or rows of different length drift apart."""
    layer = make_layer()
    with session(dense_memory, streams=STREAMS) as s:
        s.valid_lengths = torch.tensor([3, 0])
        layer(tokens())
        s.valid_lengths = [1, 2]
        layer(tokens())
        s.commit()
        layer(tokens())
        s.commit()
    assert [dense_memory.stored(stream, 1) for stream in STREAMS] == [8, 6]


@pytest.mark.parametrize("lengths", [[1], [1, -1], [1, 9]])
def test_wrong_lengths_are_refused(dense_memory: DenseMemory, lengths: list[int]) -> None:
    """A wrong length cuts rows short without a word."""

    def forward() -> None:
        with session(dense_memory, streams=STREAMS) as s:
            s.valid_lengths = lengths
            make_layer()(tokens())

    with pytest.raises(ValueError, match="valid_lengths"):
        forward()


def test_reset_forgets_one_row_and_leaves_the_other(make_memory: MakeMemory) -> None:
    """A new document retrieves from the one before, or another row's document is lost with it."""
    layer, past, x = make_layer(xl_length=3), tokens(9), tokens()
    with session(make_memory(), streams=STREAMS) as s:
        layer(past)
        s.commit()
        layer(tokens())  # staged by the old document: lost in row 0 alone
        s.reset([0])
        s.commit()
        s.rollback()
        layer(past)
        s.reset([0])
        s.rollback()
        out = layer(x)
        s.rollback()
    assert torch.allclose(out[0], layer(x)[0], rtol=1e-9)
    assert not torch.allclose(out[1], layer(x)[1], rtol=1e-3)


def test_reset_then_search_then_add(make_memory: MakeMemory) -> None:
    """What a document writes after its start is not found again."""
    layer, old, new, x = make_layer(), tokens(), tokens(), tokens()
    with session(make_memory(), streams=STREAMS) as s:
        layer(old)
        s.commit()
        s.reset()
        layer(new)
        s.commit()
        out = layer(x)
        s.rollback()
    assert relative_error(out, dense(layer, x, new, combine="joint", gate=None)) < 1e-5


def test_a_row_can_move_to_another_stream_and_back(make_memory: MakeMemory) -> None:
    """A conversation that is put aside loses its memory, or the tokens that were in the XL cache."""
    layer, first, second, x = make_layer(xl_length=3), tokens(5), tokens(5), tokens()
    with session(make_memory(), streams=STREAMS) as s:
        layer(first)
        s.commit()
        layer(second)  # staged: still belongs to the old stream
        s.reset([0], streams=["c"])
        assert s.streams == ("c", "b")
        s.commit()
        out = layer(x)
        s.rollback()
        assert torch.allclose(out[0], layer(x)[0])
        s.rollback()
        s.reset([0], streams=["a"])
        back = layer(x)
        s.rollback()
    past = torch.cat((first, second), dim=1)
    wanted = dense(layer, x, past, combine="joint", gate=None)
    assert relative_error(back, wanted) < 1e-5


def test_rows_can_swap_streams(make_memory: MakeMemory) -> None:
    """Dynamic batching mixes up conversations."""
    layer, past, x = make_layer(), tokens(), tokens()
    with session(make_memory(), streams=STREAMS) as s:
        layer(past)
        s.commit()
        s.reset(streams=["b", "a"])
        out = layer(x)
        s.rollback()
    wanted = dense(layer, x, past.flip(0), combine="joint", gate=None)
    assert relative_error(out, wanted) < 1e-5


@pytest.mark.parametrize(
    ("rows", "streams", "message"),
    [
        ([2], None, "rows"),
        ([0, 0], None, "rows"),
        ([0], ["b"], "named more than once"),
        ([0], ["c", "d"], "streams"),
    ],
)
def test_wrong_resets_are_refused(
    dense_memory: DenseMemory, rows: list[int], streams: list[str] | None, message: str
) -> None:
    """A wrong row forgets somebody else's document."""
    with session(dense_memory, streams=STREAMS) as s, pytest.raises(ValueError, match=message):
        s.reset(rows, streams=streams)


@pytest.mark.parametrize("streams", [[], ["a", "a"], "ab"])
def test_wrong_streams_are_refused(dense_memory: DenseMemory, streams: list[str]) -> None:
    """Two rows share a stream and retrieve from each other."""
    with pytest.raises(ValueError, match="streams"):
        session(dense_memory, streams=streams)


def test_unknown_options_are_refused(dense_memory: DenseMemory) -> None:
    """A misspelt option means the default."""
    misspelt = cast("Literal['raise']", "ignore")
    with pytest.raises(ValueError, match="on_error"):
        session(dense_memory, streams=STREAMS, on_error=misspelt)
    with pytest.raises(ValueError, match="stale"):
        session(dense_memory, streams=STREAMS, stale=misspelt)


@pytest.mark.parametrize("done_first", [False, True])
def test_a_failed_commit_can_be_repeated(done_first: bool) -> None:
    """After an error half of the layers have a segment twice, or not at all."""
    memory = failing(fail_at=2, done_first=done_first)
    layers = [make_layer(number, xl_length=2) for number in (0, 1, 2)]
    with session(memory, streams=STREAMS) as s:
        for layer in layers:
            layer(tokens())
        with pytest.raises(recollect.RecollectError):
            s.commit()
        with pytest.raises(RuntimeError, match="half-way"):
            s.reset([0])
        s.commit()
        for layer in layers:
            layer(tokens())
        s.commit()
    assert [memory.stored("a", number) for number in (0, 1, 2)] == [6, 6, 6]
    assert memory.request_ids[1] == memory.request_ids[2]
    assert len(set(memory.request_ids)) == len(memory.request_ids) - 1


def test_rollback_after_a_failed_commit_drops_the_rest() -> None:
    """What the user gave up is written later."""
    memory = failing(fail_at=2)
    with session(memory, streams=STREAMS) as s:
        for number in (0, 1, 2):
            make_layer(number)(tokens())
        with pytest.raises(recollect.InternalError):
            s.commit()
        s.rollback()
        s.commit()
        s.reset([0])
    assert [memory.stored("b", number) for number in (0, 1, 2)] == [4, 0, 0]


def test_an_exception_drops_what_is_staged(dense_memory: DenseMemory) -> None:
    """A batch that failed is in the memory."""

    def fail() -> None:
        with session(dense_memory, streams=STREAMS):
            make_layer()(tokens())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert dense_memory.adds == []
    assert current_session() is None


def test_leaving_without_commit_warns(dense_memory: DenseMemory) -> None:
    """Who forgets to commit trains with an empty memory and is not told."""
    with pytest.warns(UncommittedWarning), session(dense_memory, streams=STREAMS):
        make_layer()(tokens())
    assert dense_memory.adds == []


def test_sessions_nest_and_are_per_thread(dense_memory: DenseMemory) -> None:
    """A layer runs in the session of another thread, or in one that has ended."""
    inside: list[object] = []
    with session(dense_memory, streams=STREAMS) as outer:
        with session(None, streams=["x"]) as inner:
            assert current_session() is inner
        assert current_session() is outer
        thread = threading.Thread(target=lambda: inside.append(current_session()))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="already open"):
            outer.__enter__()
    assert inside == [None]
    assert current_session() is None


def test_sessions_may_be_left_in_any_order(dense_memory: DenseMemory) -> None:
    """What runs after two blocks that overlap goes to a session that is over, and is never stored."""
    first, second = (session(dense_memory, streams=[name]) for name in STREAMS)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current_session() is second
    second.__exit__(None, None, None)
    assert current_session() is None


def test_a_session_may_be_left_in_another_context(dense_memory: DenseMemory) -> None:
    """An async generator that another task closes ends in a ValueError, and its session stays current."""
    context = contextvars.copy_context()
    opened = session(dense_memory, streams=STREAMS)
    context.run(opened.__enter__)
    assert context.run(current_session) is opened
    opened.__exit__(None, None, None)
    assert context.run(current_session) is None
    with opened:
        assert current_session() is opened


def test_a_session_that_is_opened_again_elsewhere_is_not_here(dense_memory: DenseMemory) -> None:
    """A layer outside of sessions reads another thread's streams, and writes to them; or none is let go."""
    opened = session(dense_memory, streams=STREAMS)

    def look() -> None:
        contextvars.copy_context().run(opened.__exit__, None, None, None)
        contextvars.Context().run(opened.__enter__)  # another thread's
        assert current_session() is None
        opened.__exit__(None, None, None)
        later = session(dense_memory, streams=STREAMS)
        gone = weakref.ref(later)
        later.__enter__()
        contextvars.Context().run(later.__exit__, None, None, None)
        del later
        with session(dense_memory, streams=STREAMS):
            gc.collect()
            assert gone() is None

    def run() -> None:
        opened.__enter__()
        look()

    contextvars.copy_context().run(run)


def test_a_session_without_memory_is_the_control() -> None:
    """The control without memory needs another model or another training loop."""
    layer, x = make_layer(), tokens()
    with session(None, streams=STREAMS) as s:
        assert torch.allclose(layer(x), layer(x))
        s.commit()
        s.reset([1])
        s.flush()
        assert (s.memory, s.waited_s) == (None, 0.0)


def test_waiting_is_added_up(dense_memory: DenseMemory) -> None:
    """The progress bar shows no time spent waiting for memory."""
    with session(dense_memory, streams=STREAMS) as s:
        assert s.waited_s == 0.0
        make_layer()(tokens())
        before = s.waited_s
        s.commit()
        assert 0.0 < before < s.waited_s


def test_a_namespace_opens_a_session(client: recollect.Client) -> None:
    """`namespace.session(...)`, as it is documented, does not lead here."""
    ns = client.create_namespace("by-entry-point", layers=[1], heads=2, key_dim=8, value_dim=8, capacity=64)
    layer = MemorizingAttention(16, 2, layer=1, memory=ns)
    with ns.session(streams=STREAMS) as s:
        layer(torch.randn(2, 3, 16))
        s.commit()
    assert ns.stats().entries == 6
