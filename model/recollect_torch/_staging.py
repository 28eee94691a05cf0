"""What forward passes computed and nobody has written yet, layer by layer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recollect_torch._window import Segment, Window, append, slide


@dataclass(slots=True)
class Lane:
    """One layer's part.

    Attributes:
        xl_length: Tokens that its XL cache holds.
        to_memory: Whether what leaves the cache goes to the memory.
        window: The XL cache; None where it is empty.
        staged: Segments since the last commit, in order.
    """

    xl_length: int = 0
    to_memory: bool = False
    window: Window | None = None
    staged: list[Segment] = field(default_factory=list[Segment])


@dataclass(frozen=True, slots=True)
class Write:
    """One add, and the XL cache that holds once it is done.

    Attributes:
        layer: Number of the layer.
        streams: One per row of the segment.
        segment: What to add; None where there is only a cache to move.
        lane: Whose cache moves, if one does.
        window: The cache after.
        request_id: Makes a repeat harmless.
    """

    layer: int
    streams: tuple[str, ...]
    segment: Segment | None
    lane: Lane | None = None
    window: Window | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Staging:
    """Segments on their way through XL caches into adds.

    Attributes:
        half_written: An add failed; it and those after it are still in line.
    """

    def __init__(self) -> None:
        self.half_written = False
        self._lanes: dict[int, Lane] = {}
        self._writes: list[Write] = []

    def lane(self, layer: int) -> Lane:
        """The part of one layer."""
        return self._lanes.setdefault(layer, Lane())

    def pending(self) -> bool:
        """Whether a commit would have anything to do."""
        return bool(self._writes) or any(lane.staged for lane in self._lanes.values())

    def drop(self) -> None:
        """Forgets everything but the XL caches."""
        self._writes.clear()
        self.half_written = False
        for lane in self._lanes.values():
            lane.staged = []

    def drop_rows(self, rows: Sequence[int], streams: Sequence[str]) -> None:
        """Forgets what these rows have, XL caches included, and what waits to be added to these streams."""
        self._clear(rows)
        # Before a commit only rows that moved away wait here, each alone in its add.
        self._writes = [write for write in self._writes if write.streams[0] not in streams]

    def depart(self, rows: Sequence[int], streams: Sequence[str]) -> None:
        """Lines up what these rows have, XL caches included, to be added to the streams that they leave."""
        for layer, lane in sorted(self._lanes.items()):
            for row, stream in zip(rows, streams, strict=True):
                if lane.to_memory and (segment := _everything(lane, row)) is not None:
                    self._writes.append(Write(layer, (stream,), segment))
        self._clear(rows)

    def line_up(self, streams: tuple[str, ...]) -> None:
        """Turns the staged segments into one add per layer."""
        for layer, lane in sorted(self._lanes.items()):
            if lane.staged:
                window, leaving = slide(lane.window, append(lane.staged), xl_length=lane.xl_length)
                segment = leaving if lane.to_memory else None
                self._writes.append(Write(layer, streams, segment, lane, window))
                lane.staged = []

    def send(self, add: Callable[[Write], None]) -> None:
        """Calls `add` for each write in line; one that raises stays in line, with those after it."""
        while self._writes:
            write = self._writes[0]
            self.half_written = True
            add(write)
            if write.lane is not None:
                write.lane.window = write.window
            del self._writes[0]
        self.half_written = False

    def _clear(self, rows: Sequence[int]) -> None:
        for lane in self._lanes.values():
            lane.staged = [segment.without(rows) for segment in lane.staged]
            if lane.window is not None:
                lane.window = lane.window.without(rows)


def _everything(lane: Lane, row: int) -> Segment | None:
    """A row's XL cache and staged segments, as one."""
    segments = ([] if lane.window is None else [lane.window.as_segment()]) + lane.staged
    return append([segment.of_rows([row]) for segment in segments]) if segments else None
