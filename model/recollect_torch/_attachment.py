"""What ties a layer to the outside: its memory, and the session that its forward pass runs in."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recollect_torch._memory import Memory
from recollect_torch._session import Session, current_session
from recollect_torch._window import Window


@dataclass(frozen=True, slots=True)
class Turn:
    """One forward pass of one layer.

    Attributes:
        layer: Number of the layer.
        session: What it runs in; None: local attention alone.
        window: The layer's XL cache; None where it is empty.
        recomputing: Whether this is activation checkpointing's second run, which must not stage again.
        remembers: Whether the layer reads and writes the session's memory.
    """

    layer: int
    session: Session | None = None
    window: Window | None = None
    recomputing: bool = False
    remembers: bool = False

    def attend(self, queries: Tensor, *, top_k: int, by_fetch: bool) -> tuple[Tensor, Tensor]:
        """Attention over the memory: output [B, Hq, T, Dv] and LSE [B, Hq, T]."""
        assert self.session is not None
        return self.session.attend(self.layer, queries, top_k=top_k, by_fetch=by_fetch)

    def stage(self, keys: Tensor, values: Tensor, *, xl_length: int) -> None:
        """Hands a segment's keys and values to the session, for the next commit."""
        if self.session is not None and not self.recomputing and (self.remembers or xl_length):
            self.session.stage(self.layer, keys, values, xl_length=xl_length, to_memory=self.remembers)


class Attachment:
    """Neither parameters nor state: a deep copy of the layer shares the memory, a pickled one has none.

    Args:
        memory: Namespace that the layer was made for, or None.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory
        self._ran_in: weakref.ref[Session] | None = None

    def begin(self, layer: int, *, rows: int, remembers: bool) -> Turn:
        """A forward pass starts.

        Args:
            layer: Number of the layer.
            rows: Batch size.
            remembers: Whether the layer is one that uses a memory.

        Raises:
            RuntimeError: The layer was made for a memory, but no session is open; or activation checkpointing
                recomputes after the session moved on.
            ValueError: The session is of another memory, or has another number of streams than `rows`.
        """
        session, recomputing = self._session()
        if session is None:
            if self.memory is not None:
                raise RuntimeError(
                    f"layer {layer} has the memory {self.memory.name!r}, but no session says which streams "
                    "to read: run it inside `with namespace.session(streams=[...])`"
                )
            return Turn(layer, recomputing=recomputing)
        memory = session.memory
        if memory is not None and self.memory is not None and memory.name != self.memory.name:
            raise ValueError(
                f"layer {layer} was made for the memory {self.memory.name!r}, but the session is of "
                f"{memory.name!r}"
            )
        window = session.enter(layer, rows=rows, recomputing=recomputing)
        return Turn(layer, session, window, recomputing, remembers and memory is not None)

    def _session(self) -> tuple[Session | None, bool]:
        """The session, and whether this is a recompute.

        A recompute runs inside backward, maybe on a thread of autograd's own that inherits no context, and
        must see what forward saw: so it gets the session that forward ran in.
        """
        session = current_session()
        if session is None and self._ran_in is None:
            return None, False  # never in a session: nothing here may hinder torch.compile
        if torch._C._current_graph_task_id() == -1:
            self._ran_in = None if session is None else weakref.ref(session)
            return session, False
        if self._ran_in is None:
            return None, True
        session = self._ran_in()
        if session is None:
            raise RuntimeError("the session of this forward pass is gone: keep it until after backward")
        return session, True

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(self.memory)

    def __reduce__(self) -> tuple[type[Self], tuple[None]]:
        return type(self), (None,)
