"""Attention over the memory by the memory: queries go out, outputs and log-sum-exps come back.

Queries arrive with their learned scale multiplied in, so the scale on the wire is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recollect import NotFoundError, StaleEntryError
from recollect_torch._link import Link
from recollect_torch._memory import Attended, Memory

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Bank:
    """One layer of a memory, for one batch.

    Attributes:
        link: Who is asked.
        layer: Number of the layer.
        streams: One per batch row.
        top_k: Entries that each query attends to.
        unanswered: Whether to do as if the memory were away, without asking it.
    """

    link: Link
    layer: int
    streams: tuple[str, ...]
    top_k: int
    unanswered: bool = False

    def retrieve(self, call: Callable[[Memory], Answer], *, of: Tensor) -> Answer | None:
        """One read, as `Link.ask` makes it; None where it goes without an answer."""
        return None if self.unanswered else self.link.ask("retrieve", call, of=of)


class Retrieved(NamedTuple):
    """What attention over the memory gave.

    Attributes:
        output: [B, Hq, T, Dv]; 0 where the memory is empty or away.
        lse: [B, Hq, T]; -inf there.
        answered: Whether the memory answered.
    """

    output: Tensor
    lse: Tensor
    answered: bool


def attend(queries: Tensor, bank: Bank) -> Retrieved:
    """Attention over the memory by the memory; only queries, outputs and gradients travel.

    Args:
        queries: [B, Hq, T, Dk], scaled.
        bank: What to attend to.
    """
    with_ids = torch.is_grad_enabled() and queries.requires_grad
    answer = bank.retrieve(
        lambda m: m.attend(
            bank.layer,
            queries.detach(),
            top_k=bank.top_k,
            streams=bank.streams,
            scale=1.0,
            with_ids=with_ids,
            missing_ok=True,
            timeout_s=bank.link.timeout_s,
        ),
        of=queries,
    )
    # torch leaves `apply` untyped; here is what it takes and gives.
    apply: Callable[[Tensor, Bank, Attended | None, bool], tuple[Tensor, Tensor]] = _Attend.apply
    return Retrieved(*apply(queries, bank, answer, with_ids), answered=answer is not None)


def nothing(queries: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
    """What an empty memory answers; its LSE is float32, as that of any answer."""
    output = queries.new_zeros((*queries.shape[:3], bank.link.memory.spec.value_dim))
    return output, queries.new_full(queries.shape[:3], float("-inf"), dtype=torch.float32)


class _Context(Protocol):
    """What autograd hands from forward to backward."""

    bank: Bank
    answered: bool
    losses: int

    @property
    def saved_tensors(self) -> tuple[Tensor, Tensor]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


class _Attend(torch.autograd.Function):
    """Attention whose gradient is one more call: the memory keeps nothing between the two."""

    @staticmethod
    def forward(
        ctx: _Context, queries: Tensor, bank: Bank, answer: Attended | None, with_ids: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.bank, ctx.answered, ctx.losses = bank, answer is not None, bank.link.losses
        ids = None if answer is None else answer.ids
        if with_ids and ids is None:
            # The shape of a real answer: where forward got one a recompute may get none, and checkpointing
            # compares the two.
            ids = torch.full((*queries.shape[:3], bank.top_k), -1, device=queries.device)
        ctx.save_for_backward(queries, ids)
        return nothing(queries, bank) if answer is None else (answer.output, answer.lse)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch declares *args
        ctx: _Context, grad_output: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        queries, ids = ctx.saved_tensors
        if not ctx.answered or (grad_output is None and grad_lse is None):
            return None, None, None, None
        if ctx.losses != ctx.bank.link.losses:  # the ids mean nothing to the memory that there is now
            ctx.bank.link.count("backward")
            return None, None, None, None
        if grad_output is None:
            spec = ctx.bank.link.memory.spec
            grad_output = queries.new_zeros((*queries.shape[:3], spec.value_dim))
        return _grad_queries(ctx.bank, queries, ids, grad_output, grad_lse), None, None, None


def _grad_queries(
    bank: Bank, queries: Tensor, ids: Tensor, grad_output: Tensor, grad_lse: Tensor | None
) -> Tensor | None:
    """The gradient of the queries, or None for zero."""
    link = bank.link
    # An overflow under loss scaling is news for the scaler, not an error: it stays here, as NaN.
    finite = grad_output.isfinite().all(dim=-1)  # [B, H, T]
    if grad_lse is not None:
        finite = finite & grad_lse.isfinite()
        grad_lse = grad_lse.masked_fill(~finite, 0.0)
    grad_output = grad_output.masked_fill(~finite[..., None], 0.0)
    try:
        grad = link.ask(
            "backward",
            lambda m: m.attend_backward(
                bank.layer,
                queries,
                ids=ids,
                streams=bank.streams,
                grad_output=grad_output,
                grad_lse=grad_lse,
                scale=1.0,
                timeout_s=link.timeout_s,
            ),
            of=grad_output,
        )
    except (StaleEntryError, NotFoundError) as error:
        _tolerate(error, link)
        return None
    return None if grad is None else grad.masked_fill(~finite[..., None], float("nan"))


def _tolerate(error: StaleEntryError | NotFoundError, link: Link) -> None:
    """Counts that what forward attended to is gone; raises where that is not wanted, or not the case."""
    # A stream that was forgotten since is the same to a query as entries that were evicted. Or the server
    # lost it, and another process made the namespace again.
    forgotten = isinstance(error, NotFoundError)
    if forgotten and error.reason != "STREAM_NOT_FOUND":
        raise error
    if link.stale == "zero":
        link.fallbacks.stale += 1
    elif forgotten and link.on_error == "local":
        link.count("backward")
    else:
        error.add_note(
            "entries that the forward pass attended to are gone: call backward before commit and reset, "
            'give the namespace more capacity, or make the session with stale="zero"'
        )
        raise error
