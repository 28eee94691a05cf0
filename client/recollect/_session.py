"""The door to sessions, which the model package provides."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

from recollect._checks import check_choice
from recollect._extensions import load_extension

if TYPE_CHECKING:
    from recollect._namespace import Namespace


class Session(Protocol):
    """Binds batch rows to streams while a model runs. Adds are staged in forward and written by `commit`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...

    def commit(self) -> None: ...


class SessionFactory(Protocol):
    """What the entry point `torch` of the group `recollect.sessions` is."""

    def __call__(
        self,
        namespace: Namespace,
        *,
        streams: Sequence[str],
        on_error: Literal["raise", "local"],
        stale: Literal["raise", "zero"],
        timeout_s: float | None,
    ) -> Session: ...


def open_session(
    namespace: Namespace,
    *,
    streams: Sequence[str],
    on_error: Literal["raise", "local"],
    stale: Literal["raise", "zero"],
    timeout_s: float | None,
) -> Session:
    """Finds the factory and calls it."""
    check_choice("on_error", on_error, ("raise", "local"))
    check_choice("stale", stale, ("raise", "zero"))
    factory = load_extension("recollect.sessions", "torch", extra="torch", what="Namespace.session")
    return cast("SessionFactory", factory)(
        namespace, streams=streams, on_error=on_error, stale=stale, timeout_s=timeout_s
    )
