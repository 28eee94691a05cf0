"""What ties a layer to the outside: its memory, and the session that its forward pass runs in."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch._compile import _disable_dynamo

from recollect_torch._memory import Memory
from recollect_torch._recompute import History, Moment, Stretch, now, recomputing
from recollect_torch._session import Session, current_session
from recollect_torch._window import Window

# The compiler stays out of sessions and clients: one graph ends before them, the next begins after. This is
# what `torch.compiler.disable` does, but that one loads the compiler on import, which takes seconds.
untraced = _disable_dynamo


@dataclass(slots=True)
class Turn:
    """One forward pass of one layer.

    Attributes:
        layer: Number of the layer.
        began: When.
        session: What it runs in; None: local attention alone.
        window: The layer's XL cache; None where it is empty.
        recomputing: Whether this is activation checkpointing's second run, which must not stage again.
        remembers: Whether the layer reads and writes the session's memory.
        answered: Whether the memory answered. A second run does without what the first had to do without.
    """

    layer: int
    began: Moment
    session: Session | None = None
    window: Window | None = None
    recomputing: bool = False
    remembers: bool = False
    answered: bool = True

    @untraced
    def attend(self, queries: Tensor, *, top_k: int, by_fetch: bool) -> tuple[Tensor, Tensor]:
        """Attention over the memory: output [B, Hq, T, Dv] and LSE [B, Hq, T]."""
        assert self.session is not None
        found = self.session.attend(
            self.layer, queries, top_k=top_k, by_fetch=by_fetch, unanswered=not self.answered
        )
        self.answered = found.answered
        return found.output, found.lse


class Attachment:
    """Neither parameters nor state: a deep copy of the layer shares the memory, a pickled one has none.

    Args:
        memory: Namespace that the layer was made for, or None.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory
        self._history = History()

    @untraced
    def begin(self, layer: int, *, rows: int, check_memory: Callable[[Memory], None] | None) -> Turn:
        """A forward pass starts.

        Args:
            layer: Number of the layer.
            rows: Batch size.
            check_memory: Refuses a memory that does not fit; None for a layer that uses none.

        Raises:
            RuntimeError: The layer was made for a memory, but no session is open; or activation checkpointing
                recomputes after the session moved on.
            ValueError: The session is of another memory, or has another number of streams than `rows`.
        """
        repeated = self._history.repeated() if recomputing() else None
        session = current_session() if repeated is None else _session_of(repeated, layer)
        turn = Turn(layer, now(), session, recomputing=recomputing())
        if repeated is not None:
            turn.answered = repeated.answered
        if session is None:
            if self.memory is not None:
                raise RuntimeError(
                    f"layer {layer} has the memory {self.memory.name!r}, but no session says which streams "
                    "to read: run it inside `with namespace.session(streams=[...])`"
                )
            return turn
        memory = session.memory
        if memory is not None and self.memory is not None and memory.name != self.memory.name:
            raise ValueError(
                f"layer {layer} was made for the memory {self.memory.name!r}, but the session is of "
                f"{memory.name!r}"
            )
        turn.window = session.enter(layer, rows=rows)
        if memory is not None and check_memory is not None:
            check_memory(memory)
            turn.remembers = True
        return turn

    @untraced
    def end(self, turn: Turn, keys: Tensor, values: Tensor, *, xl_length: int) -> None:
        """A forward pass is over: its keys and values go to the session, for the next commit."""
        if turn.recomputing:
            return
        session, began = turn.session, turn.began
        if session is None:
            local = Stretch(None, 0, True, first=began.number, last=began.number)
            self._history.note(local, began=began, since=None)
            return
        passed = Stretch(
            weakref.ref(session), session.generation, turn.answered, first=began.number, last=began.number
        )
        self._history.note(passed, began=began, since=session.moved)
        if turn.remembers or xl_length:
            session.stage(turn.layer, keys, values, xl_length=xl_length, to_memory=turn.remembers)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(self.memory)

    def __reduce__(self) -> tuple[type[Self], tuple[None]]:
        return type(self), (None,)


def _session_of(repeated: Stretch, layer: int) -> Session | None:
    """The session that a forward pass ran in, which must be as it was then."""
    session, generation = None, 0
    if repeated.session is not None:
        session = repeated.session()
        if session is None:
            raise RuntimeError("the session of this forward pass is gone: keep it until after backward")
        generation = session.generation
    if repeated.generation != generation:
        raise RuntimeError(
            f"layer {layer} is recomputed after the session moved on: call backward before commit and "
            "reset when activation checkpointing is on"
        )
    return session
