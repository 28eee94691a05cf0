"""The memory is away, lost or has moved on: go on and count, or raise, as the user chose."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

import recollect
from recollect_torch import Fallbacks, MemorizingAttention, session
from recollect_torch._outage import Outage
from tests.unit.torch.conftest import MakeMemory, make_dense
from tests.unit.torch.unreliable_memory import Unreliable

STREAMS = ["a", "b"]


@pytest.fixture
def memory() -> Unreliable:
    return Unreliable(make_dense().spec)


def make_layer(combine: Literal["gate", "joint"] = "gate") -> MemorizingAttention:
    return MemorizingAttention(16, 2, layer=1, combine=combine).double()


def tokens() -> Tensor:
    return torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)


AWAY = pytest.mark.parametrize(
    "error",
    [recollect.UnavailableError("gone"), recollect.DeadlineExceededError("late")],
    ids=["gone", "late"],
)


@AWAY
@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_local_goes_on_and_comes_back(
    memory: Unreliable,
    combine: Literal["gate", "joint"],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A restart of the server ends the training run, or memory stays off after it; or nobody is told."""
    layer, x = make_layer(combine), tokens()
    with session(memory, streams=STREAMS, on_error="local", retry_interval_s=0.0) as s:
        layer(tokens())
        s.commit()
        with_memory = layer(x)
        s.rollback()
        memory.away = error
        for _ in range(3):
            layer(x).sum().backward()
            s.commit()
        assert torch.equal(layer(x), make_alone(layer, x))
        s.rollback()
        memory.away = None
        assert torch.equal(layer(x), with_memory)
        s.rollback()
    assert s.fallbacks == Fallbacks(retrieve=4, commit=3)
    messages = [record.getMessage() for record in caplog.records if record.name == "recollect_torch"]
    assert [message[:14] for message in messages] == ["memory is away", "memory is back"]


@AWAY
def test_raise_raises_and_says_what_else_there_is(memory: Unreliable, error: Exception) -> None:
    """By default a run goes on without its memory and nobody notices."""
    layer = make_layer()
    with session(memory, streams=STREAMS) as s:
        layer(tokens())
        memory.away = error
        for call in (lambda: layer(tokens()), s.commit):
            with pytest.raises(type(error)) as caught:
                call()
            assert "on_error" in caught.value.__notes__[0]
        memory.away = None
        s.commit()
    assert memory.stored("a", 1) == 4
    assert s.fallbacks == Fallbacks()


def test_an_outage_between_forward_and_backward(memory: Unreliable) -> None:
    """The server goes away after forward, and backward ends the run; or gives NaN."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS, on_error="local", retry_interval_s=0.0) as s:
        layer(tokens())
        s.commit()
        out = layer(x)
        memory.away = recollect.UnavailableError("gone")
        out.sum().backward()
        s.rollback()
    assert s.fallbacks == Fallbacks(backward=1)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_while_it_is_away_the_memory_is_not_asked_each_time(memory: Unreliable) -> None:
    """Each layer of each step waits for a full deadline during an outage."""
    layer = make_layer()
    memory.away = recollect.UnavailableError("gone")
    with session(memory, streams=STREAMS, on_error="local", retry_interval_s=3600.0) as s:
        for _ in range(5):
            layer(tokens())
            s.commit()
    assert memory.asked == 1
    assert s.fallbacks == Fallbacks(retrieve=5, commit=5)


def test_a_slow_failure_is_followed_by_a_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs costs a deadline per retry interval: nearly all of the time."""
    now = [100.0]
    monkeypatch.setattr("recollect_torch._outage.time.monotonic", lambda: now[0])
    outage = Outage(retry_interval_s=1.0)
    assert not outage.pausing()
    outage.failed(recollect.DeadlineExceededError("late"), took_s=30.0)
    now[0] += 29.0
    assert outage.pausing()
    now[0] += 2.0
    assert not outage.pausing()
    outage.answered()
    now[0] -= 20.0
    assert not outage.pausing()


def test_a_lost_namespace_is_made_again(memory: Unreliable, caplog: pytest.LogCaptureFixture) -> None:
    """After a restart without durability the run never gets its memory back."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS, on_error="local") as s:
        layer(tokens())
        s.commit()
        memory.restart_empty()
        out = layer(x)
        assert torch.equal(out, make_alone(layer, x))
        out.sum().backward()
        s.commit()
        assert memory.stored("a", 1) == 4
    assert s.fallbacks == Fallbacks()
    assert "made it again" in caplog.text


def make_alone(layer: MemorizingAttention, x: Tensor) -> Tensor:
    """Local attention alone."""
    with session(None, streams=STREAMS):
        return torch.as_tensor(layer(x))


def test_a_gradient_never_uses_ids_from_before_a_loss(memory: Unreliable) -> None:
    """Ids of the old memory name other entries in the new one, and the gradient is silently wrong."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS, on_error="local") as s:
        layer(tokens())
        s.commit()
        out = layer(x)
        memory.restart_empty()
        s.commit()  # makes the namespace again and adds entries with the same ids
        asked = memory.asked
        out.sum().backward()
        assert memory.asked == asked
    assert s.fallbacks == Fallbacks(backward=1)


def test_a_loss_that_another_process_made_good(memory: Unreliable) -> None:
    """Of several processes that share a namespace, one makes it again and the others stop."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS, on_error="local") as s:
        layer(tokens())
        s.commit()
        out = layer(x)
        memory.banks.clear()
        out.sum().backward()
        s.rollback()
    assert s.fallbacks == Fallbacks(backward=1)


def test_a_loss_raises_by_default(memory: Unreliable) -> None:
    """A lost memory looks like an empty one."""
    with session(memory, streams=STREAMS):
        memory.restart_empty()
        with pytest.raises(recollect.NotFoundError):
            make_layer()(tokens())


def test_a_reset_during_an_outage_is_made_up_for(memory: Unreliable) -> None:
    """A document retrieves from the one before it, because the server was away when it began."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS, on_error="local", retry_interval_s=0.0) as s:
        layer(tokens())
        s.commit()
        memory.away = recollect.UnavailableError("gone")
        s.reset()
        memory.away = None
        assert torch.equal(layer(x), make_alone(layer, x))
        s.commit()
    assert s.fallbacks == Fallbacks(reset=1)
    assert memory.stored("a", 1) == 4


def test_a_reset_that_raised_is_made_up_for(memory: Unreliable) -> None:
    """After an error was handled, the old document is still there."""
    layer, x = make_layer(), tokens()
    with session(memory, streams=STREAMS) as s:
        layer(tokens())
        s.commit()
        memory.away = recollect.UnavailableError("gone")
        with pytest.raises(recollect.UnavailableError):
            s.reset()
        memory.away = None
        assert torch.equal(layer(x), make_alone(layer, x))
        s.rollback()


@pytest.mark.parametrize("error", [recollect.ResourceExhaustedError("quota"), recollect.InternalError("bug")])
def test_other_errors_are_raised_anyway(memory: Unreliable, error: Exception) -> None:
    """A used-up quota or a bug looks like an outage, for the whole run."""
    memory.away = error
    with session(memory, streams=STREAMS, on_error="local"), pytest.raises(type(error)):
        make_layer()(tokens())


@pytest.mark.parametrize("combine", ["gate", "joint"])
def test_stale_entries_raise_or_give_zero(make_memory: MakeMemory, combine: Literal["gate", "joint"]) -> None:
    """An entry that was evicted between forward and backward gives a wrong gradient without a word."""
    layer, memory = make_layer(combine), make_memory(capacity=4)
    with session(memory, streams=STREAMS) as s:
        layer(tokens())
        s.commit()
        out = layer(tokens())
        s.commit()
        with pytest.raises(recollect.StaleEntryError) as caught:
            out.sum().backward()
        assert "backward before commit" in caught.value.__notes__[0]
    with session(memory, streams=STREAMS, stale="zero") as s:
        out = layer(x := tokens())
        s.commit()
        out.sum().backward()
    assert s.fallbacks == Fallbacks(stale=1)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("stale", ["raise", "zero"])
def test_a_stream_forgotten_before_backward_is_stale_too(
    make_memory: MakeMemory, stale: Literal["raise", "zero"]
) -> None:
    """A reset between forward and backward ends in an error that the user cannot make sense of."""
    layer = make_layer()
    with session(make_memory(), streams=STREAMS, stale=stale) as s:
        layer(tokens())
        s.commit()
        out = layer(tokens())
        s.reset()
        if stale == "zero":
            out.sum().backward()
            assert s.fallbacks == Fallbacks(stale=1)
        else:
            with pytest.raises((recollect.NotFoundError, recollect.StaleEntryError)) as caught:
                out.sum().backward()
            assert "backward before commit" in caught.value.__notes__[0]
        s.rollback()
