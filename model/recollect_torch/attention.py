"""Memorizing attention (Wu et al. 2022): local causal attention, and attention over a memory."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect_torch._arguments import check_choice
from recollect_torch._attachment import Attachment
from recollect_torch._combine import Gate, JointSoftmax
from recollect_torch._local import local_attention, window_bias
from recollect_torch._memory import Memory, check_fit
from recollect_torch._positions import RelativePositionBias, RotaryPosition
from recollect_torch._window import Window

Combine = Literal["gate", "joint"]
Position = Literal["none", "rope", "relative"]
Retrieval = Literal["attend", "fetch"]


class MemorizingAttention(nn.Module):
    """Causal self-attention that also attends to the `num_retrieved` nearest entries of a memory.

    It replaces the attention of a transformer block: [B, T, dim] in, [B, T, dim] out, causal. Queries and
    keys are normalised, queries times a learned scale per head (section 3.2 of the paper; Henry et al. 2020).
    What it reads and writes comes from the session it runs in (`recollect_torch.session`); outside of
    any session it is local attention.

    Args:
        dim: Size of a token's vector.
        heads: Query heads, Hq.
        memory: Namespace that the layer is for: it is checked to fit, and forward then insists on a session.
            None: the memory of the session at hand, if it has one.
        layer: The layer's number: which bank of the memory is its own. No two of a model have the same.
        kv_heads: Key and value heads, Hkv; query heads share them in groups. None: as many as query heads.
        head_dim: Size of a head, for keys and values. None: dim / heads.
        num_retrieved: Entries that each query attends to.
        combine: "gate": two softmaxes and a learned gate per head, as in the paper; "joint": one softmax over
            local and retrieved keys; None: a layer of the model that has no memory.
        position: Of the local window only, the memory never sees one: "none", "rope" or "relative" (a bias).
        xl_length: Tokens of earlier segments that local attention sees besides the segment at hand
            (Dai et al. 2019). They enter the memory when they leave that window.
        retrieval: "attend": the memory attends, one call each for forward and backward; "fetch": keys and
            values are brought here, which is the same mathematics at many times the traffic.
        scale_init: Start of the learned scales. Scores lie between minus and plus the scale, so the paper's 1
            starts from a nearly flat softmax.
        gate_init: Start of the gates' logits.

    Raises:
        ValueError: Sizes do not divide, an option is unknown, or the memory is of another shape.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        memory: Memory | None = None,
        layer: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        num_retrieved: int = 32,
        combine: Combine | None = "gate",
        position: Position = "none",
        xl_length: int = 0,
        retrieval: Retrieval = "attend",
        scale_init: float = 8.0,
        gate_init: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("combine", combine, ("gate", "joint", None))
        check_choice("position", position, ("none", "rope", "relative"))
        check_choice("retrieval", retrieval, ("attend", "fetch"))
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        self.layer, self.retrieval = layer, retrieval
        self.num_retrieved, self.xl_length = num_retrieved, xl_length
        self._check_sizes(dim, head_dim)
        self.head_dim = dim // heads if head_dim is None else head_dim
        self._attachment = Attachment(memory)
        if memory is not None:
            self._check_memory(memory)
        self.q_proj = nn.Linear(dim, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.heads * self.head_dim, dim, bias=False)
        self.scale = nn.Parameter(torch.full((self.heads,), float(scale_init)))
        self.rotary = RotaryPosition(self.head_dim) if position == "rope" else None
        self.relative = RelativePositionBias(self.heads) if position == "relative" else None
        self.combine: Gate | JointSoftmax | None = None
        if combine is not None:
            self.combine = Gate(heads, init=gate_init) if combine == "gate" else JointSoftmax()

    def forward(self, x: Tensor) -> Tensor:
        """Attends.

        Args:
            x: [B, T, dim]; row b continues stream b of the session.

        Returns:
            [B, T, dim].

        Raises:
            RuntimeError: The layer was made for a memory, but no session is open; or activation checkpointing
                recomputes it after the session moved on.
            recollect.RecollectError: The memory could not be asked, in a session with `on_error="raise"`.
        """
        check = None if self.combine is None else self._check_memory
        turn = self._attachment.begin(self.layer, rows=x.shape[0], check_memory=check)
        q, k, v = self._project(x)
        attended, local_lse = self._attend_locally(q, k, v, turn.window)
        if self.combine is not None and turn.remembers:
            remembered, lse = turn.attend(q, top_k=self.num_retrieved, by_fetch=self.retrieval == "fetch")
            attended = self.combine(remembered.to(attended), lse, local=attended, local_lse=local_lse)
        self._attachment.end(turn, k, v, xl_length=self.xl_length)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out

    def extra_repr(self) -> str:
        """What the sub-modules do not show."""
        return (
            f"layer={self.layer}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, "
            f"num_retrieved={self.num_retrieved}, xl_length={self.xl_length}, retrieval={self.retrieval!r}"
        )

    def _check_sizes(self, dim: int, head_dim: int | None) -> None:
        if self.heads < 1 or self.kv_heads < 1:
            raise ValueError(
                f"heads and kv_heads must be at least 1; got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if head_dim is None and dim % self.heads:
            raise ValueError(
                f"heads must divide dim={dim} where head_dim is not given; got heads={self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads; got kv_heads={self.kv_heads}"
            )
        if self.num_retrieved < 1 or self.xl_length < 0:
            raise ValueError(
                "num_retrieved must be at least 1 and xl_length at least 0; "
                f"got num_retrieved={self.num_retrieved}, xl_length={self.xl_length}"
            )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, Hq, T, D], scaled; keys [B, Hkv, T, D], of length 1; values [B, Hkv, T, D]."""
        q = F.normalize(self._split(self.q_proj(x)), dim=-1) * self.scale[:, None, None]
        k = F.normalize(self._split(self.k_proj(x)), dim=-1)
        return q, k, self._split(self.v_proj(x))

    def _split(self, y: Tensor) -> Tensor:
        rows, tokens, size = y.shape
        return y.reshape(rows, tokens, size // self.head_dim, self.head_dim).transpose(1, 2)

    def _attend_locally(
        self, q: Tensor, k: Tensor, v: Tensor, window: Window | None
    ) -> tuple[Tensor, Tensor | None]:
        """Over the XL cache and the segment: output [B, Hq, T, D]; LSE [B, Hq, T] for a joint softmax."""
        cached = None
        if window is not None:
            k = torch.cat((window.keys.to(k), k), dim=2)
            v = torch.cat((window.values.to(v), v), dim=2)
            cached = torch.tensor(window.lengths, device=q.device)
        queries, keys = q.shape[2], k.shape[2]
        relative = None if self.relative is None else self.relative(queries, keys)
        bias = window_bias(queries, keys, xl_lengths=cached, bias=relative, like=q)
        if self.rotary is not None:
            q, k = self.rotary(q, start=keys - queries), self.rotary(k, start=0)
        if self.kv_heads != self.heads:
            group = self.heads // self.kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return local_attention(q, k, v, bias=bias, with_lse=isinstance(self.combine, JointSoftmax))

    def _check_memory(self, memory: Memory) -> None:
        check_fit(
            memory.spec, layer=self.layer, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim
        )
