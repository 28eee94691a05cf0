"""Attend as work: what is sent, how it is split, what comes out; and several as one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, cast

import numpy as np

from recollect._answers import AttendAnswer
from recollect._bits import Wire
from recollect._checks import check_limit, check_top_k
from recollect._int8 import Rows
from recollect._reads import SCALAR_BYTES, Queries, check_scale
from recollect._results import A, AttendResult, Limits
from recollect._splitting import TokenBytes
from recollect._work import ATTEND, Work
from recollect.v1 import memory_pb2 as pb


@dataclass(frozen=True, slots=True)
class AttendOptions:
    """What an attend is asked for. See `recollect.Namespace.attend`."""

    top_k: int
    scale: float
    with_ids: bool
    missing_ok: bool
    exact: bool


@dataclass(frozen=True, slots=True)
class Attend(Generic[A]):
    """One attend, checked and converted.

    Attributes:
        read: Its rows. Of several that are put together, `array` is one's: all are alike.
        wire: The queries of all rows as they travel, [B, Hq, T, Dk] or rows of integers.
        options: Of all rows.
    """

    read: Queries[A]
    wire: Wire | Rows
    options: AttendOptions

    @property
    def kind(self) -> Hashable:
        """What those have in common that can be put together."""
        read = self.read
        has_sequences = bool(read.min_sequences)
        rest = (
            has_sequences,
            read.array.likeness,
            self.wire.shape[1:],
            read.query_dtype,
            self.options,
            read.spec,
        )
        return (read.namespace, read.layer, *rest)

    @property
    def size_bytes(self) -> int:
        """Of the queries, and of ids whether they are wanted or not."""
        queries = math.prod(self.wire.shape[:3])
        return self.wire.nbytes + SCALAR_BYTES * queries * self.options.top_k

    def copied(self) -> Attend[A]:
        """The same, of what the caller's array holds now: `wire` may be a view of it."""
        return Attend(self.read, self.wire.copy(), self.options)

    def split(self, limits: Limits) -> Work[pb.AttendResponse, AttendResult[A]]:
        """As requests under the server's limits."""
        read, wire, options, spec = self.read, self.wire, self.options, self.read.spec
        heads = wire.shape[1]
        check_limit("top_k", options.top_k, limits.top_k_max)
        # The server counts the ids even where it need not send them: they bound its working memory.
        down = spec.value_dim * read.itemsize + SCALAR_BYTES + options.top_k * SCALAR_BYTES
        weight = TokenBytes(up=heads * read.query_bytes, down=heads * down)
        parts = read.split(weight, limits, "Lower top_k, or use fewer or smaller heads")
        answer = AttendAnswer(
            parts, read.array, spec, shape=wire.shape[:3], top_k=options.top_k, with_ids=options.with_ids
        )

        def build(index: int) -> pb.AttendRequest:
            part = parts[index]
            return pb.AttendRequest(
                namespace=read.namespace,
                layer=read.layer,
                streams=read.streams[part.rows],
                queries=read.message(wire[part.rows, :, part.tokens]),
                top_k=options.top_k,
                scale=options.scale,
                omit_ids=not options.with_ids,
                min_sequences=read.min_sequences[part.rows],
                missing_ok=options.missing_ok,
                exact=options.exact,
            )

        return Work(ATTEND, pb.AttendResponse, True, True, len(parts), build, answer.accept, answer.finish)


def prepare_attend(
    read: Queries[A], *, top_k: int, scale: float | None, with_ids: bool, missing_ok: bool, exact: bool
) -> Attend[A]:
    """Converts now; it is split when the limits are known."""
    options = AttendOptions(check_top_k(top_k), check_scale(scale, read.spec), with_ids, missing_ok, exact)
    return Attend(read, read.to_wire(), options)


def joined(attends: Sequence[Attend[A]]) -> Attend[A]:
    """The rows of all, of one kind, one after another."""
    first = attends[0]
    if len(attends) == 1:
        return first
    streams = [name for each in attends for name in each.read.streams]
    sequences = [sequence for each in attends for sequence in each.read.min_sequences]
    return Attend(
        replace(first.read, streams=streams, min_sequences=sequences),
        cast("Wire | Rows", np.concatenate([each.wire for each in attends])),
        first.options,
    )


def rows_of(result: AttendResult[A], first: int, end: int, like: Queries[A]) -> AttendResult[A]:
    """Some rows of a result, as if they had been asked for alone."""
    take = like.array.give_rows
    return AttendResult(
        output=take(result.output, first, end),
        lse=take(result.lse, first, end),
        ids=None if result.ids is None else take(result.ids, first, end),
        next_sequences=result.next_sequences[first:end],
    )
