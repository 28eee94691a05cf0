"""Memorizing attention for PyTorch, on a Recollect memory."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recollect_torch._outage import Fallbacks
    from recollect_torch._session import Session, UncommittedWarning, current_session, session
    from recollect_torch.attention import MemorizingAttention
    from recollect_torch.transformer import MemorizingTransformer, TransformerConfig

__all__ = [
    "Fallbacks",
    "MemorizingAttention",
    "MemorizingTransformer",
    "Session",
    "TransformerConfig",
    "UncommittedWarning",
    "current_session",
    "session",
]

_HOMES = {
    "Fallbacks": "_outage",
    "MemorizingAttention": "attention",
    "MemorizingTransformer": "transformer",
    "Session": "_session",
    "TransformerConfig": "transformer",
    "UncommittedWarning": "_session",
    "current_session": "_session",
    "session": "_session",
}


if not TYPE_CHECKING:  # to which any name would be one that there is

    def __getattr__(name: str) -> object:
        # PyTorch takes seconds to import. `recollect --help` and completion ask only for the demo's options,
        # and the demo itself sets what PyTorch reads when it is loaded.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        loaded: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = loaded
        return loaded


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
