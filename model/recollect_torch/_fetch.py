"""Attention over the memory on keys and values that are fetched; for research that wants the pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from recollect_torch._remote import Bank, Retrieved


def fetch(queries: Tensor, bank: Bank) -> Retrieved:
    """The same as `attend`, on keys and values that are brought here; autograd does the rest."""
    found = bank.retrieve(
        lambda m: m.search(
            bank.layer,
            queries.detach(),
            top_k=bank.top_k,
            streams=bank.streams,
            include=("keys", "values"),
            missing_ok=True,
            timeout_s=bank.link.timeout_s,
        ),
        of=queries,
    )
    if found is None or found.keys is None or found.values is None:
        # The shape of a real answer: where forward got one a recompute may get none, and checkpointing
        # compares the two.
        shape = (*queries.shape[:3], bank.top_k)
        keys = queries.new_zeros(()).expand(*shape, queries.shape[-1])
        values = queries.new_zeros(()).expand(*shape, bank.link.memory.spec.value_dim)
        ids = torch.full(shape, -1, device=queries.device)
        return Retrieved(*attend_to_pairs(queries, keys, values, ids=ids), answered=False)
    keys, values = found.keys.to(queries), found.values.to(queries)
    return Retrieved(*attend_to_pairs(queries, keys, values, ids=found.ids), answered=True)


def attend_to_pairs(queries: Tensor, keys: Tensor, values: Tensor, *, ids: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q.k) v over each query's own pairs.

    Args:
        queries: [B, Hq, T, Dk], scaled.
        keys: [B, Hq, T, K, Dk].
        values: [B, Hq, T, K, Dv].
        ids: int64 [B, Hq, T, K]; slots with -1 have no entry and stay out of the softmax.

    Returns:
        Output [B, Hq, T, Dv] and LSE [B, Hq, T]; 0 and -inf where there is no pair.
    """
    vacant = ids < 0
    empty = vacant.all(dim=-1, keepdim=True)  # [B, Hq, T, 1]
    scores = torch.einsum("bhtd,bhtkd->bhtk", queries, keys)
    # A query with nothing but -inf would give NaN, in the gradient too: its scores stay as they are, and what
    # comes of them is blanked after.
    scores = scores.masked_fill(vacant & ~empty, float("-inf"))
    lse = scores.logsumexp(dim=-1, keepdim=True)
    p = (scores - lse).exp().masked_fill(vacant, 0.0)
    output = torch.einsum("bhtk,bhtkd->bhtd", p, values)
    return output, lse.masked_fill(empty, float("-inf")).squeeze(-1)
