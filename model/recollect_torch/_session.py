"""A session: which stream each batch row reads and writes, and when what was computed is written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, Self

from torch import Tensor

from recollect_torch._arguments import check_choice, check_moves, check_rows, check_streams
from recollect_torch._fetch import fetch
from recollect_torch._link import Link, OnError, Stale
from recollect_torch._memory import Memory
from recollect_torch._outage import Fallbacks, Outage
from recollect_torch._recompute import Moment, now
from recollect_torch._remote import Bank, Retrieved, attend, nothing
from recollect_torch._staging import Staging, Write
from recollect_torch._window import Segment, Window

_opened: ContextVar[tuple[Opening, ...]] = ContextVar("recollect_sessions", default=())


class UncommittedWarning(UserWarning):
    """A session was left with adds that nobody committed; they were dropped."""


def session(
    memory: Memory | None,
    *,
    streams: Sequence[str],
    on_error: OnError = "raise",
    stale: Stale = "raise",
    timeout_s: float | None = None,
    retry_interval_s: float = 1.0,
) -> Session:
    """Opens a session; use it in a `with` statement around forward, backward and commit.

        with session(ns, streams=["doc-1", "doc-2"]) as s:
            loss = model(ids).loss
            loss.backward()
            s.commit()

    Args:
        memory: A namespace; None for a run without memory, which still keeps XL caches.
        streams: One name per batch row, all different.
        on_error: When the memory is away: "raise", or "local" to go on with local attention and count it in
            `Session.fallbacks`. Adds of that time are dropped; a namespace that the server lost is made
            again, empty.
        stale: When an entry that forward attended to was evicted before backward: "raise", or "zero" for a
            gradient of zero from that retrieval, counted.
        timeout_s: Deadline of each call, in seconds; None for the client's default.
        retry_interval_s: During an outage the memory is asked at most this often.

    Raises:
        ValueError: A stream is named twice, or none is, or an option is unknown.
    """
    check_choice("on_error", on_error, ("raise", "local"))
    check_choice("stale", stale, ("raise", "zero"))
    link = None
    if memory is not None:
        outage = Outage(retry_interval_s=retry_interval_s)
        link = Link(memory, on_error=on_error, stale=stale, timeout_s=timeout_s, outage=outage)
    return Session(link, streams=streams)


def current_session() -> Session | None:
    """The innermost session whose `with` block this thread or task is in."""
    return next((opening.session for opening in reversed(_opened.get()) if opening.lasts), None)


def _lasting() -> tuple[Opening, ...]:
    """What this context knows of that was not left since."""
    return tuple(opening for opening in _opened.get() if opening.lasts)


class Opening(NamedTuple):
    """One time that a session was entered. A context may still know it when it was left in another one."""

    session: Session
    number: int

    @property
    def lasts(self) -> bool:
        """Whether it is what the session is open by now."""
        return self.session._opening == self.number


class Session:
    """One stream per batch row, for the layers that run inside the `with` block; made by `session`.

    Forward stages; `commit` writes, one add per layer, and moves the XL caches. Until then nothing that a
    segment computed is seen by the next. Several forwards before a commit append, in order. What is still
    staged when the block ends is dropped: silently after an exception, with an `UncommittedWarning`
    otherwise (call `rollback` where that is what you want).

    With activation checkpointing, backward computes forward again, and must find what forward found: call it
    before `commit` and `reset`, or it raises RuntimeError. Otherwise backward may come later, also after the
    block. What forward computed without the memory (`on_error="local"`) is computed again without it. If the
    memory is away by the time of a recompute, the gradient is that of local attention, and counted.

    Attributes:
        fallbacks: How often the session went on without its memory.
    """

    def __init__(self, link: Link | None, *, streams: Sequence[str]) -> None:
        self._link = link
        self._streams = check_streams(streams)
        self.fallbacks = Fallbacks() if link is None else link.fallbacks
        self._staging = Staging()
        self._valid_lengths: tuple[int, ...] | None = None
        self._opening = self._openings = 0  # by which it is open now, 0 by none; how often it was opened
        self._generation, self._moved = 0, now()

    # ---- what a training loop uses ----

    @property
    def memory(self) -> Memory | None:
        """The namespace, or None."""
        return None if self._link is None else self._link.memory

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream of each batch row."""
        return self._streams

    @property
    def waited_s(self) -> float:
        """Seconds spent in calls to the memory since the session was made."""
        return 0.0 if self._link is None else self._link.waited_s

    @property
    def valid_lengths(self) -> tuple[int, ...] | None:
        """How many tokens of each row are not padding (on the right); None: all.

        Set it before forward; the padding is then not stored. `commit` and `rollback` set it back to None.
        """
        return self._valid_lengths

    @valid_lengths.setter
    def valid_lengths(self, lengths: Sequence[int] | Tensor | None) -> None:
        if lengths is None:
            self._valid_lengths = None
            return
        checked = tuple(int(length) for length in lengths)
        if len(checked) != len(self._streams) or min(checked) < 0:
            raise ValueError(
                f"valid_lengths must be {len(self._streams)} numbers, 0 or more, one per row; "
                f"got {list(checked)}"
            )
        self._valid_lengths = checked

    def commit(self) -> None:
        """Writes what is staged, one add per layer, and moves the XL caches.

        If it raises, what was written stays written and the rest stays staged: call `commit` again to go on
        (no entry is written twice) or `rollback` to drop the rest.

        Raises:
            recollect.RecollectError: An add failed. With `on_error="local"` the adds of a memory that is away
                are dropped instead, and counted.
        """
        if self._staging.pending():
            self._move_on()
        self._staging.send(self._add)
        self._staging.line_up(self._streams)
        self._staging.send(self._add)
        self._valid_lengths = None

    def rollback(self) -> None:
        """Drops what is staged, and what a failed commit has not written."""
        self._staging.drop()
        self._valid_lengths = None

    def reset(self, rows: Sequence[int] | None = None, *, streams: Sequence[str] | None = None) -> None:
        """A document starts in these rows: the next forward finds nothing of the one before.

        Without `streams` the rows' streams are forgotten: all their entries are evicted, and what the rows
        have staged or in the XL cache is dropped. With `streams` the rows go over to those instead, and the
        old streams stay; what the rows have staged or cached is added to them by the next commit.

        Args:
            rows: Batch rows; None for all.
            streams: New names, one per row in `rows`.

        Raises:
            ValueError: A row does not exist or comes twice, or two rows would have the same stream.
            RuntimeError: A commit failed half-way: repeat it or roll back first.
            recollect.RecollectError: The streams could not be evicted. That is tried again before the next
                retrieval; no entry of the old document is ever returned.
        """
        rows = check_rows(rows, len(self._streams))
        if self._staging.half_written:
            raise RuntimeError("a commit failed half-way: call commit() again, or rollback(), before reset()")
        if not rows:
            return
        old = [self._streams[row] for row in rows]
        if streams is not None:
            moved = check_moves(self._streams, rows, streams)
            self._staging.depart(rows, old)
            self._streams = moved
        self._move_on()
        if streams is None:
            self._staging.drop_rows(rows, old)
            if self._link is not None:
                self._link.forget(old)

    def flush(self) -> None:
        """Commits, and moves the XL caches into the memory, so that a later session can go on."""
        self.commit()
        self._move_on()
        self._staging.depart(range(len(self._streams)), self._streams)
        self._staging.send(self._add)

    def __enter__(self) -> Self:
        if self._opening:
            raise RuntimeError("this session is already open")
        self._openings += 1
        self._opening, self._moved = self._openings, now()
        _opened.set((*_lasting(), Opening(self, self._opening)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opening = 0
        # Sessions may be left in any order, and in another context than they were entered in.
        _opened.set(_lasting())
        staged = self._staging.pending()
        self.rollback()
        if staged and kind is None:
            warnings.warn(
                "the session ended with staged adds, which were dropped: call commit() to keep them, "
                "rollback() if you do not want them",
                UncommittedWarning,
                stacklevel=2,
            )

    # ---- what a layer uses ----

    @property
    def generation(self) -> int:
        """How often the session has moved on: what forward finds is another thing since."""
        return self._generation

    @property
    def moved(self) -> Moment:
        """When the session moved on last, or was entered."""
        return self._moved

    def enter(self, layer: int, *, rows: int) -> Window | None:
        """A layer starts its forward pass, or starts it again under activation checkpointing.

        Returns:
            The layer's XL cache; None where it is empty.

        Raises:
            ValueError: The batch has another number of rows than the session has streams.
        """
        if rows != len(self._streams):
            raise ValueError(
                f"the batch has {rows} rows, but the session has {len(self._streams)} streams: one per row"
            )
        return self._staging.lane(layer).window

    def attend(
        self, layer: int, queries: Tensor, *, top_k: int, by_fetch: bool, unanswered: bool = False
    ) -> Retrieved:
        """Attention over the rows' streams; see `recollect_torch._remote.attend`."""
        assert self._link is not None
        bank = Bank(self._link, layer, self._streams, top_k, unanswered)
        if not queries.shape[2]:
            return Retrieved(*nothing(queries, bank), answered=True)
        return fetch(queries, bank) if by_fetch else attend(queries, bank)

    def stage(self, layer: int, keys: Tensor, values: Tensor, *, xl_length: int, to_memory: bool) -> None:
        """Notes the keys and values of a segment, for the next commit.

        Args:
            layer: Number of the layer.
            keys: [B, Hkv, T, Dk], normalised, without position.
            values: [B, Hkv, T, Dv].
            xl_length: Tokens that the layer's XL cache holds.
            to_memory: Whether what leaves the cache goes to the memory.
        """
        tokens = keys.shape[2]
        lengths = self._valid_lengths or (tokens,) * len(self._streams)
        if max(lengths) > tokens:
            raise ValueError(f"valid_lengths are {list(lengths)}, but the segment has {tokens} tokens")
        lane = self._staging.lane(layer)
        lane.xl_length, lane.to_memory = xl_length, to_memory
        lane.staged.append(Segment(keys.detach(), values.detach(), lengths))

    # ---- inside ----

    def _move_on(self) -> None:
        self._generation, self._moved = self._generation + 1, now()

    def _add(self, write: Write) -> None:
        if self._link is None or write.segment is None:
            return
        rows = [row for row, length in enumerate(write.segment.lengths) if length]
        if not rows:
            return
        segment, link = write.segment.of_rows(rows), self._link
        ragged = len(set(segment.lengths)) > 1

        def add(memory: Memory) -> bool:
            memory.add(
                write.layer,
                segment.keys,
                segment.values,
                streams=[write.streams[row] for row in rows],
                lengths=segment.lengths if ragged else None,
                request_id=write.request_id,
                timeout_s=link.timeout_s,
            )
            return True

        link.ask("commit", add, of=segment.keys)
