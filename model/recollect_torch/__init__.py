"""Memorizing attention for PyTorch, on a Recollect memory."""

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
