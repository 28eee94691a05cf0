"""The part of a namespace that the layers use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor


class Spec(Protocol):
    """Shape of a memory."""

    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


class Found(Protocol):
    """Answer of `search` with keys and values."""

    @property
    def ids(self) -> Tensor:
        """int64 [B, Hq, T, K]; -1 where there is no entry."""
        ...

    @property
    def keys(self) -> Tensor | None:
        """[B, Hq, T, K, Dk]."""
        ...

    @property
    def values(self) -> Tensor | None:
        """[B, Hq, T, K, Dv]."""
        ...


class Attended(Protocol):
    """Answer of `attend`."""

    @property
    def output(self) -> Tensor:
        """[B, Hq, T, Dv]; 0 where the memory is empty."""
        ...

    @property
    def lse(self) -> Tensor:
        """float32 [B, Hq, T]; -inf where the memory is empty."""
        ...

    @property
    def ids(self) -> Tensor | None:
        """int64 [B, Hq, T, K]; None where none were asked for."""
        ...


class Memory(Protocol):
    """What a session asks of a memory; `recollect.Namespace` is one."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Spec: ...

    def ensure(self, *, timeout_s: float | None = None) -> object:
        """Makes the namespace again, empty, if the server lost it."""
        ...

    def add(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        *,
        streams: Sequence[str],
        lengths: Sequence[int] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> object: ...

    def search(
        self,
        layer: int,
        queries: Tensor,
        *,
        top_k: int,
        streams: Sequence[str],
        include: Sequence[Literal["keys", "values"]] = (),
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Found: ...

    def attend(
        self,
        layer: int,
        queries: Tensor,
        *,
        top_k: int,
        streams: Sequence[str],
        scale: float | None = None,
        with_ids: bool = True,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Attended: ...

    def attend_backward(
        self,
        layer: int,
        queries: Tensor,
        *,
        ids: Tensor,
        streams: Sequence[str],
        grad_output: Tensor,
        grad_lse: Tensor | None = None,
        scale: float | None = None,
        timeout_s: float | None = None,
    ) -> Tensor: ...

    def evict(
        self,
        *,
        streams: Sequence[str],
        all: bool = False,
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> object: ...


def check_fit(spec: Spec, *, layer: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Refuses a memory that was made for another shape of layer.

    Raises:
        ValueError: Names what differs.
    """
    if layer not in spec.layers:
        raise ValueError(
            f"layer {layer} is to have a memory, but the namespace holds layers {list(spec.layers)}; "
            "make the namespace with that layer, or give this module combine=None (local attention only)"
        )
    for name, wanted, came in (
        ("heads", kv_heads, spec.heads),
        ("key_dim", head_dim, spec.key_dim),
        ("value_dim", head_dim, spec.value_dim),
    ):
        if wanted != came:
            raise ValueError(
                f"layer {layer} has {heads} heads, kv_heads={kv_heads}, head_dim={head_dim}: the namespace "
                f"must have {name}={wanted}, but has {name}={came}"
            )
