"""Add and evict as work: what is sent, how it is split, what comes out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from recollect._bits import WIRE_DTYPES, Wire
from recollect._checks import (
    check_int,
    check_ints,
    check_layer,
    check_list,
    check_names,
    check_positive,
    check_rank,
    check_shape,
    check_text,
    refusal,
)
from recollect._regions import SHARED_FROM_BYTES, Region
from recollect._results import DTYPE_NUMBERS, AddResult, Array, Dtype, EvictResult, Limits, NamespaceSpec
from recollect._splitting import Part, RowSequences, TokenBytes, even_slices, split_grid
from recollect._tensor import floats_message, user_array
from recollect._work import ADD, EVICT, Work
from recollect.errors import InvalidArgumentError
from recollect.v1 import memory_pb2 as pb

AddWork = Work[pb.AddResponse, AddResult]
EvictWork = Work[pb.EvictResponse, EvictResult]

_ID_BYTES_MAX = 10  # of an int64 as a varint


def prepare_add(
    namespace: str,
    spec: NamespaceSpec,
    layer: int,
    keys: Array,
    values: Array,
    *,
    streams: Sequence[str],
    lengths: Sequence[int] | None,
    request_id: str | None,
) -> Callable[[Limits], AddWork]:
    """Checks and converts now; splits when the limits are known."""
    layer = check_layer("layer", layer, spec)
    user_keys, user_values = user_array("keys", keys), user_array("values", values)
    check_rank("keys", user_keys.shape, f"[B, {spec.heads}, T, {spec.key_dim}]")
    rows, _, tokens, _ = user_keys.shape
    check_shape("keys", user_keys.shape, (rows, spec.heads, tokens, spec.key_dim))
    check_shape("values", user_values.shape, (rows, spec.heads, tokens, spec.value_dim), ", to go with keys")
    names = check_names("streams", streams, count=rows, distinct=True)
    row_lengths = check_ints("lengths", lengths, rows, minimum=0, maximum=tokens) or [tokens] * rows
    tokens = max(1, *row_lengths)  # padding beyond the longest row stays here
    batch = _Batch(
        namespace=namespace,
        spec=spec,
        layer=layer,
        streams=names,
        lengths=row_lengths,
        keys=user_keys.to_wire(spec.dtype)[:, :, :tokens],
        values=user_values.to_wire(spec.dtype)[:, :, :tokens],
        request_id=_request_id(request_id),
    )
    return batch.split


@dataclass(frozen=True, slots=True)
class _Batch:
    """All that an add adds: checked and converted, and not yet split."""

    namespace: str
    spec: NamespaceSpec
    layer: int
    streams: list[str]
    lengths: list[int]
    keys: Wire
    values: Wire
    request_id: str

    def split(self, limits: Limits) -> AddWork:
        rows, heads, tokens, _ = self.keys.shape
        dims = self.spec.key_dim + self.spec.value_dim
        parts = split_grid(
            rows,
            tokens,
            TokenBytes(up=heads * dims * WIRE_DTYPES[self.spec.dtype].itemsize, down=1),
            names=self.streams,
            namespace=self.namespace,
            limits=limits,
            hint="Make the namespace with fewer or smaller heads, or raise the server's limit",
        )
        answer = _AddAnswer(parts, rows)
        shared = self.keys.nbytes + self.values.nbytes >= SHARED_FROM_BYTES
        return Work(
            ADD,
            pb.AddResponse,
            retry_safe=True,
            concurrent=False,
            count=len(parts),
            build=lambda index: self._part(parts, index).whole(),
            accept=answer.accept,
            finish=answer.finish,
            upload=partial(self._part, parts) if shared else None,
        )

    def _part(self, parts: Sequence[Part], index: int) -> _Entries:
        rows, tokens = parts[index].rows, parts[index].tokens
        size = tokens.stop - tokens.start
        request = pb.AddRequest(
            namespace=self.namespace,
            layer=self.layer,
            streams=self.streams[rows],
            lengths=[min(max(length - tokens.start, 0), size) for length in self.lengths[rows]],
            request_id=_part_id(self.request_id, index, len(parts)),
        )
        return _Entries(request, self.keys[rows, :, tokens], self.values[rows, :, tokens], self.spec.dtype)


class _Entries:
    """A request with keys and values, in its message or beside it."""

    def __init__(self, request: pb.AddRequest, keys: Wire, values: Wire, dtype: Dtype) -> None:
        self._request = request
        self._arrays = (keys, values)
        self._dtype: Dtype = dtype
        self.size_bytes = keys.nbytes + values.nbytes

    def whole(self) -> pb.AddRequest:
        """All in the message."""
        keys, values = (floats_message(array, self._dtype) for array in self._arrays)
        return self._with(keys, values, b"")

    def beside(self, region: Region) -> pb.AddRequest:
        """Keys and values in a region."""
        number = DTYPE_NUMBERS[self._dtype]
        keys, values = (
            pb.Tensor(dtype=number, shape=array.shape, offset=offset)
            for array, offset in zip(self._arrays, region.put(self._arrays), strict=True)
        )
        return self._with(keys, values, region.id)

    def _with(self, keys: pb.Tensor, values: pb.Tensor, region: bytes) -> pb.AddRequest:
        request = pb.AddRequest(keys=keys, values=values, region=region)
        request.MergeFrom(self._request)
        return request


class _AddAnswer:
    """The answers to the parts of an add, as one."""

    def __init__(self, parts: Sequence[Part], rows: int) -> None:
        self._parts = parts
        self._first_ids = [0] * rows
        self._sequences = RowSequences(parts, rows)
        self._evicted = 0

    def accept(self, index: int, reply: pb.AddResponse) -> None:
        part = self._parts[index]
        if part.tokens.start == 0:
            self._first_ids[part.rows] = reply.first_ids
        self._sequences.put(index, reply.next_sequences)
        self._evicted += reply.evicted

    def finish(self) -> AddResult:
        return AddResult(tuple(self._first_ids), self._sequences.latest, self._evicted)


def prepare_evict(
    namespace: str,
    spec: NamespaceSpec,
    *,
    streams: Sequence[str],
    layers: Sequence[int] | None,
    ids: Sequence[int] | None,
    oldest: int | None,
    before_sequence: int | None,
    older_than_s: float | None,
    all: bool,
    request_id: str | None,
    missing_ok: bool,
) -> Callable[[Limits], EvictWork]:
    """Checks now; splits when the limits are known."""
    names = check_names("streams", streams, distinct=True)
    if not names:
        raise refusal("streams", "at least one name", names)
    chosen_layers = _chosen_layers(layers, spec)
    base = pb.EvictRequest(namespace=namespace, layers=chosen_layers, missing_ok=missing_ok)
    _select(
        base,
        ids=ids is not None,
        oldest=oldest,
        before_sequence=before_sequence,
        older_than_s=older_than_s,
        all=all,
    )
    listed_ids = [] if ids is None else _listed_ids(ids)
    base_id = _request_id(request_id)

    def split(limits: Limits) -> EvictWork:
        stream_slices = even_slices(len(names), limits.rows_max or len(names))
        pieces = [(rows, chosen) for rows in stream_slices for chosen in _id_slices(len(listed_ids), limits)]
        evicted: list[int] = []

        def build(index: int) -> pb.EvictRequest:
            rows, chosen = pieces[index]
            request = pb.EvictRequest()
            request.CopyFrom(base)
            request.streams.extend(names[rows])
            request.request_id = _part_id(base_id, index, len(pieces))
            if ids is not None:
                request.ids.CopyFrom(pb.IdList(ids=listed_ids[chosen]))
            return request

        return Work(
            method=EVICT,
            reply_type=pb.EvictResponse,
            retry_safe=True,
            concurrent=False,
            count=len(pieces),
            build=build,
            accept=lambda _, reply: evicted.append(reply.evicted),
            finish=lambda: EvictResult(sum(evicted)),
        )

    return split


def _chosen_layers(layers: Sequence[int] | None, spec: NamespaceSpec) -> list[int]:
    """The layers to evict from; none for all of them."""
    if layers is None:
        return []
    listed = check_list("layers", layers, "a list of layer numbers")
    if not listed:
        raise refusal("layers", "at least one layer, or None for every layer", [])
    return [check_layer("layers", layer, spec) for layer in listed]


def _listed_ids(ids: Sequence[int]) -> list[int]:
    return [check_int("ids", entry, minimum=0) for entry in check_list("ids", ids, "a list of ids")]


def _id_slices(count: int, limits: Limits) -> list[slice]:
    """Which of `count` listed ids go together into one message."""
    if not count:
        return [slice(0, 0)]
    cap = min(limits.ids_max or count, count)
    if limits.message_bytes_max:
        cap = min(cap, max(1, limits.message_bytes_max // (2 * _ID_BYTES_MAX)))
    return even_slices(count, cap)


def _select(
    request: pb.EvictRequest,
    *,
    ids: bool,
    oldest: int | None,
    before_sequence: int | None,
    older_than_s: float | None,
    all: bool,
) -> None:
    """Sets the one selector that was given; ids themselves follow part by part."""
    selectors = {
        "ids": ids,
        "oldest": oldest is not None,
        "before_sequence": before_sequence is not None,
        "older_than_s": older_than_s is not None,
        "all": all,
    }
    given = [name for name, is_given in selectors.items() if is_given]
    if len(given) != 1:
        raise InvalidArgumentError(
            f"evict takes exactly one of {', '.join(selectors)}; got {' and '.join(given) or 'none'}",
            argument=given[1] if given else "ids",
        )
    if oldest is not None:
        request.oldest = check_int("oldest", oldest, minimum=0)
    elif before_sequence is not None:
        request.before_sequence = check_int("before_sequence", before_sequence, minimum=0)
    elif older_than_s is not None:
        request.older_than_s = check_positive("older_than_s", older_than_s, zero_ok=True)
    elif all:
        request.all = True


def _request_id(given: str | None) -> str:
    return uuid.uuid4().hex if given is None else check_text("request_id", given)


def _part_id(base: str, index: int, count: int) -> str:
    # Each part is a write of its own; the same call, repeated with its id, repeats the same parts' ids.
    # A hash, because a suffix might make an id of the user's own too long.
    return base if count == 1 else uuid.uuid5(uuid.NAMESPACE_OID, f"{base}/{index}").hex
