"""How calls are split: every element exactly once, every message under the limit."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from recollect import InvalidArgumentError, Limits, NamespaceSpec
from recollect._attends import prepare_attend
from recollect._bits import WIRE_DTYPES, to_bits
from recollect._reads import check_read, prepare_attend_backward, prepare_search
from recollect._results import Dtype
from recollect._splitting import Assembly, RowSequences, TokenBytes, even_slices, split_grid
from recollect._writes import prepare_add, prepare_evict
from recollect.v1 import memory_pb2 as pb
from recollect_server.rpc.parts import ENVELOPE_BYTES


def limits(*, message_bytes_max: int = 0, rows_max: int = 0, tokens_max: int = 0, ids_max: int = 0) -> Limits:
    return Limits(
        message_bytes_max=message_bytes_max,
        top_k_max=0,
        rows_max=rows_max,
        tokens_max=tokens_max,
        layers_max=0,
        heads_max=0,
        dim_max=0,
        capacity_max=0,
        name_length_max=0,
        page_size_max=0,
        namespaces_max=0,
        streams_max=0,
        ids_max=ids_max,
    )


def fits(message: Message, bytes_max: int) -> bool:
    """Whether the tensors are within the limit, and all else within what is taken beside them."""
    data = 0
    for _, value in message.ListFields():
        if isinstance(value, pb.EntryIds):
            data += len(value.offsets.data)
        elif isinstance(value, pb.Tensor):
            data += len(value.data)
    return data <= bytes_max and message.ByteSize() - data <= ENVELOPE_BYTES


@given(
    rows=st.integers(1, 12),
    tokens=st.integers(1, 40),
    up=st.integers(1, 5000),
    down=st.integers(1, 5000),
    bytes_max=st.integers(6000, 200_000),
    rows_max=st.integers(0, 12),
    tokens_max=st.integers(0, 40),
)
def test_grid_covers_everything_once(
    rows: int, tokens: int, up: int, down: int, bytes_max: int, rows_max: int, tokens_max: int
) -> None:
    """A token would be sent twice, not at all, out of order, or in a message that the server refuses."""
    bounds = limits(message_bytes_max=bytes_max, rows_max=rows_max, tokens_max=tokens_max)
    names = ["stream"] * rows
    parts = split_grid(rows, tokens, TokenBytes(up, down), names=names, namespace="n", limits=bounds, hint="")
    seen = np.zeros((rows, tokens), dtype=int)
    for part in parts:
        count = seen[part.rows, part.tokens].size
        assert count >= 1
        assert count * max(up, down) <= bytes_max
        assert part.rows.stop - part.rows.start <= (rows_max or rows)
        assert part.tokens.stop - part.tokens.start <= (tokens_max or tokens)
        if part.tokens.start:  # an add must send a row's tokens in order
            assert seen[part.rows, part.tokens.start - 1].all()
        seen[part.rows, part.tokens] += 1
    assert (seen == 1).all()


def test_what_fits_is_not_split() -> None:
    """Every call would pay for several."""
    parts = split_grid(8, 512, TokenBytes(1, 1), names=["s"] * 8, namespace="n", limits=limits(), hint="")
    assert len(parts) == 1


def test_tensors_may_fill_a_message() -> None:
    """An add of a power of two, which is just as large as the limit, would be two calls."""
    bounds = limits(message_bytes_max=4 * 1024 * 1024)
    parts = split_grid(1, 8192, TokenBytes(512, 1), names=["s"], namespace="n", limits=bounds, hint="")
    assert len(parts) == 1


def test_names_have_room_of_their_own() -> None:
    """Hundreds of streams with long names would make a message that the server does not take."""
    bounds = limits(message_bytes_max=4 * 1024 * 1024)
    names = ["s" * 128] * 1024
    parts = split_grid(1024, 1, TokenBytes(1, 1), names=names, namespace="n", limits=bounds, hint="")
    assert all((part.rows.stop - part.rows.start) * 140 < ENVELOPE_BYTES for part in parts)


def test_a_single_token_beyond_the_limit_is_refused_with_advice() -> None:
    """The client would loop, or send what the server cannot take."""
    with pytest.raises(InvalidArgumentError, match="Lower top_k") as caught:
        split_grid(
            1,
            4,
            TokenBytes(10, 5000),
            names=["s"],
            namespace="n",
            limits=limits(message_bytes_max=4096),
            hint="Lower top_k",
        )
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


@given(length=st.integers(1, 500), size_max=st.integers(1, 500))
def test_slices_are_even(length: int, size_max: int) -> None:
    """A call just above a limit would be one full part and one of a few tokens."""
    slices = even_slices(length, size_max)
    sizes = [piece.stop - piece.start for piece in slices]
    assert sum(sizes) == length
    assert max(sizes) <= size_max
    assert max(sizes) - min(sizes) <= 1
    assert len(slices) == -(-length // size_max)


@given(order=st.permutations(range(6)))
def test_parts_may_be_answered_in_any_order(order: list[int]) -> None:
    """The async client would put results in each other's place, or report an older sequence."""
    parts = split_grid(
        4,
        6,
        TokenBytes(1, 1),
        names=["s"] * 4,
        namespace="n",
        limits=limits(rows_max=2, tokens_max=2),
        hint="",
    )
    whole = np.arange(4 * 3 * 6).reshape(4, 3, 6)
    assembly = Assembly(parts, whole.shape, whole.dtype)
    sequences = RowSequences(parts, 4)
    for index in order:
        part = parts[index]
        piece = whole[part.rows, :, part.tokens]
        assert assembly.shape_of(index) == piece.shape
        assembly.put(index, piece)
        sequences.put(index, [10 * row + part.tokens.stop for row in range(part.rows.start, part.rows.stop)])
    np.testing.assert_array_equal(assembly.whole, whole)
    assert sequences.latest == (6, 16, 26, 36)


DTYPES: list[Dtype] = ["float32", "float16", "bfloat16"]


@st.composite
def specs(draw: st.DrawFn) -> NamespaceSpec:
    dtype: Dtype = draw(st.sampled_from(DTYPES))
    return NamespaceSpec(
        (0,), draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 99, dtype
    )


def floats(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def ids_reply(shape: tuple[int, ...]) -> pb.EntryIds:
    offsets = pb.Tensor(data=b"\1" * (4 * int(np.prod(shape))), dtype=pb.DTYPE_INT32, shape=shape)
    return pb.EntryIds(offsets=offsets, first_ids=[2**50] * shape[0])


def floats_reply(shape: tuple[int, ...], like: pb.Tensor) -> pb.Tensor:
    size = 4 if like.dtype == pb.DTYPE_FLOAT32 else 2
    return pb.Tensor(data=b"\0" * (size * int(np.prod(shape))), dtype=like.dtype, shape=shape)


FLOAT32 = pb.Tensor(dtype=pb.DTYPE_FLOAT32)


@given(
    spec=specs(),
    rows=st.integers(1, 5),
    groups=st.integers(1, 2),
    tokens=st.integers(1, 9),
    top_k=st.integers(1, 9),
    bytes_max=st.integers(5500, 12_000),
    name_length=st.integers(1, 128),
)
def test_no_message_is_over_the_limit(
    spec: NamespaceSpec, rows: int, groups: int, tokens: int, top_k: int, bytes_max: int, name_length: int
) -> None:
    """A request would be refused by the server, or a reply by the transport, because of an estimate."""
    bounds = limits(message_bytes_max=bytes_max)
    streams = [f"{row}".rjust(name_length, "s") for row in range(rows)]
    queries = floats((rows, groups * spec.heads, tokens, spec.key_dim))
    read = check_read("namespace", spec, 0, queries, streams=streams, min_sequences=[2**60] * rows)
    search = prepare_search(
        read, top_k=top_k, include=frozenset(("keys", "values")), missing_ok=True, exact=True
    )(bounds)
    for index in range(search.count):
        request = search.build(index)
        assert isinstance(request, pb.SearchRequest)
        shape = (*request.queries.shape[:3], top_k)
        reply = pb.SearchResponse(
            scores=floats_reply(shape, FLOAT32),
            ids=ids_reply(shape),
            keys=floats_reply((*shape, spec.key_dim), request.queries),
            values=floats_reply((*shape, spec.value_dim), request.queries),
            next_sequences=[2**60] * shape[0],
        )
        assert fits(request, bytes_max)
        assert fits(reply, bytes_max)
        search.accept(index, reply)
    assert search.finish().keys is not None
    asked = prepare_attend(read, top_k=top_k, scale=None, with_ids=True, missing_ok=True, exact=True)
    attend = asked.split(bounds)
    for index in range(attend.count):
        request = attend.build(index)
        assert isinstance(request, pb.AttendRequest)
        shape3 = tuple(request.queries.shape[:3])
        reply_attend = pb.AttendResponse(
            output=floats_reply((*shape3, spec.value_dim), request.queries),
            lse=floats_reply(shape3, FLOAT32),
            ids=ids_reply((*shape3, top_k)),
            next_sequences=[2**60] * shape3[0],
        )
        assert fits(request, bytes_max)
        assert fits(reply_attend, bytes_max)
    backward = prepare_attend_backward(
        read,
        ids=np.zeros((*queries.shape[:3], top_k), np.int64),
        grad_output=floats((*queries.shape[:3], spec.value_dim)),
        grad_lse=floats(queries.shape[:3]),
        scale=1.0,
    )(bounds)
    assert all(fits(backward.build(index), bytes_max) for index in range(backward.count))


@given(
    spec=specs(),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    bytes_max=st.integers(1500, 8000),
    rows_max=st.integers(0, 5),
)
def test_a_split_add_adds_every_token_in_order(
    spec: NamespaceSpec, lengths: list[int], bytes_max: int, rows_max: int
) -> None:
    """Entries would be lost, doubled or reordered when an add is larger than one message."""
    rows, tokens = len(lengths), max(1, *lengths) + 2
    keys = np.zeros((rows, spec.heads, tokens, spec.key_dim), np.float32)
    keys[:] = np.arange(tokens)[None, None, :, None]
    values = np.zeros((rows, spec.heads, tokens, spec.value_dim), np.float32)
    streams = [f"s{row}" for row in range(rows)]
    work = prepare_add("n", spec, 0, keys, values, streams=streams, lengths=lengths, request_id=None)(
        limits(message_bytes_max=bytes_max, rows_max=rows_max)
    )
    stored: dict[str, int] = dict.fromkeys(streams, 0)
    request_ids: set[str] = set()
    for index in range(work.count):
        request = work.build(index)
        assert isinstance(request, pb.AddRequest)
        assert fits(request, bytes_max)
        request_ids.add(request.request_id)
        firsts = [stored[stream] for stream in request.streams]
        shape = tuple(request.keys.shape)
        came = np.frombuffer(request.keys.data, WIRE_DTYPES[spec.dtype]).reshape(shape)
        for row, (stream, length) in enumerate(zip(request.streams, request.lengths, strict=True)):
            start = stored[stream]
            expected = to_bits(np.arange(start, start + length, dtype=np.float32), spec.dtype)
            np.testing.assert_array_equal(came[row, 0, :length, 0], expected)
            stored[stream] += length
        nexts = [stored[stream] for stream in request.streams]
        work.accept(index, pb.AddResponse(first_ids=firsts, next_sequences=nexts, evicted=1))
    assert list(stored.values()) == lengths
    result = work.finish()
    assert result.first_ids == (0,) * rows
    assert result.next_sequences == tuple(lengths)
    assert result.evicted == work.count == len(request_ids)


def test_request_ids_of_parts_repeat_with_the_call() -> None:
    """A call repeated after a crash with its own request_id would add its entries a second time."""
    spec = NamespaceSpec((0,), 1, 4, 4, 99, "float32")
    array = floats((1, 1, 50, 4))

    def request_ids(given_id: str | None) -> list[str]:
        work = prepare_add("n", spec, 0, array, array, streams=["s"], lengths=None, request_id=given_id)(
            limits(tokens_max=20)
        )
        return [
            request.request_id
            for i in range(work.count)
            if isinstance(request := work.build(i), pb.AddRequest)
        ]

    mine = request_ids("x" * 64)
    assert len(set(mine)) == 3
    assert max(map(len, mine)) <= 64
    assert mine == request_ids("x" * 64)
    assert not set(mine) & set(request_ids("y"))
    assert not set(request_ids(None)) & set(request_ids(None))


def test_evict_is_split_by_streams_and_ids() -> None:
    """A list of ids or streams beyond the server's limit would be refused, or partly forgotten."""
    spec = NamespaceSpec((0, 3), 1, 4, 4, 99, "float32")
    streams, ids = [f"s{i}" for i in range(5)], list(range(7))
    work = prepare_evict(
        "n",
        spec,
        streams=streams,
        layers=[3],
        ids=ids,
        oldest=None,
        before_sequence=None,
        older_than_s=None,
        all=False,
        request_id=None,
        missing_ok=False,
    )(limits(rows_max=2, ids_max=3))
    asked: list[tuple[str, int]] = []
    for index in range(work.count):
        request = work.build(index)
        assert isinstance(request, pb.EvictRequest)
        assert list(request.layers) == [3]
        assert len(request.streams) <= 2
        assert len(request.ids.ids) <= 3
        asked += [(stream, entry) for stream in request.streams for entry in request.ids.ids]
        work.accept(index, pb.EvictResponse(evicted=2))
    assert sorted(asked) == sorted((stream, entry) for stream in streams for entry in ids)
    assert work.finish().evicted == 2 * work.count
