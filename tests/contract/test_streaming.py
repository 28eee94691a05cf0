"""Answers that are larger than a message come in chunks: they are those of one call."""

from __future__ import annotations

import itertools
import time
from typing import Literal

import grpc
import numpy as np
import pytest
import torch

import recollect
from recollect.v1 import memory_pb2 as pb
from tests.clients import path_of, raw_grpc
from tests.contract.conftest import open_way
from tests.contract.memories import DTYPES, CheckedMemory, Dtype, Memories
from tests.server_process import ServerProcess

STREAMS = ["a", "b", "c"]
TOP_K, TOKENS, DIM = 40, 180, 32
WANT_BYTES_MIN = 2 * 1024 * 1024

BOTH: list[Literal["keys", "values"]] = ["keys", "values"]


def wide(memories: Memories, *, dtype: Dtype = "float32") -> CheckedMemory:
    """A memory whose reads of TOKENS tokens are some megabytes."""
    memory = memories(capacity=60, key_dim=DIM, value_dim=2 * DIM, dtype=dtype)
    memory.add(STREAMS, 70, lengths=[70, 35, 8])
    return memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_streamed_read_is_one_read(memories: Memories, dtype: Dtype) -> None:
    """Chunks landed at the wrong place, in the wrong array, or ids, scores or empty places are wrong."""
    memory = wide(memories, dtype=dtype)
    q = memory.queries(3, TOKENS)
    found = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=BOTH)
    assert found.keys is not None
    assert found.values is not None
    assert found.keys.size + found.values.size > WANT_BYTES_MIN / 2
    memory.oracle.check_search(0, q, found, streams=STREAMS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_stay_as_they_are(memories: Memories, dtype: Dtype) -> None:
    """A later answer overwrites what an earlier one returned and somebody still has, or only part of it."""
    memory = wide(memories, dtype=dtype)
    wholes, pieces = [], []
    for number in range(7):
        q = memory.queries(3, TOKENS)
        found = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=BOTH)
        assert found.values is not None
        if number % 3 == 0:  # a piece of it is enough
            pieces.append((found.ids[:, :, 2:], found.values[:, :, 2:]))
        elif number % 3 == 1:
            wholes.append((q, found))
    for q, found in wholes:
        memory.oracle.check_search(0, q, found, streams=STREAMS)
    for ids, values in pieces:
        for row, stream in enumerate(STREAMS):
            np.testing.assert_array_equal(values[row], memory.oracle.pairs(0, ids[row], stream)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_are_given_as_asked(memories: Memories, dtype: Dtype, asked: torch.dtype) -> None:
    """Large answers come in another dtype than the question's, or a change to one shows in the next one."""
    memory = wide(memories, dtype=dtype)
    q = torch.from_numpy(memory.queries(3, TOKENS)).to(asked)
    found = [memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=BOTH) for _ in range(2)]
    first, second = found
    assert isinstance(first.values, torch.Tensor)
    assert isinstance(second.values, torch.Tensor)
    assert first.values.dtype is asked
    assert torch.equal(first.values, second.values)
    for row, stream in enumerate(STREAMS):
        _, values = memory.oracle.pairs(0, first.ids[row].numpy(), stream)
        wanted = torch.from_numpy(values).to(asked)
        assert torch.equal(first.values[row], wanted)
    first.values.zero_()
    third = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=BOTH)
    assert isinstance(third.values, torch.Tensor)
    assert torch.equal(third.values, second.values)


@pytest.mark.parametrize("include", [["keys"], ["values"]])
def test_one_of_keys_and_values_is_streamed(
    memories: Memories, include: list[Literal["keys", "values"]]
) -> None:
    """What was not asked for came, or took the place of what was."""
    memory = wide(memories)
    q = memory.queries(3, TOKENS)
    found = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=include)
    assert (found.keys is None, found.values is None) == ("keys" not in include, "values" not in include)
    memory.oracle.check_search(0, q, found, streams=STREAMS)


def test_a_streamed_read_is_refused_like_another(memories: Memories) -> None:
    """The error of a stream has lost its kind, or leaves a client that cannot go on."""
    memory = wide(memories)
    q = memory.queries(3, TOKENS)
    with pytest.raises(recollect.NotFoundError, match="nobody"):
        memory.ns.search(0, q, top_k=TOP_K, streams=["a", "b", "nobody"], include=BOTH)
    with pytest.raises(recollect.FailedPreconditionError):
        memory.ns.search(
            0, q, top_k=TOP_K, streams=STREAMS, include=BOTH, min_sequences=[2**60] * len(STREAMS)
        )
    memory.check(STREAMS)


@pytest.mark.parametrize("way", ["unix", "tcp-async"])
def test_answers_beyond_the_limit_are_several_streams(way: str, rng: np.random.Generator) -> None:
    """A read beyond stream_bytes_max is refused, or its parts are put together wrongly."""
    limits = {"stream_bytes_max": 1_500_000, "message_bytes_max": 100_000}
    with ServerProcess(limits=limits) as server, open_way(way, server) as client:
        memory = wide(Memories(client, rng))
        q = memory.queries(3, TOKENS)
        found = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=BOTH)
        memory.oracle.check_search(0, q, found, streams=STREAMS)
        assert "Traceback" not in server.log


def request_of(memory: CheckedMemory, *, top_k: int, tokens: int = TOKENS) -> pb.SearchRequest:
    """A question as a message."""
    q = memory.queries(len(STREAMS), tokens).astype(np.float32)
    return pb.SearchRequest(
        namespace=memory.ns.name,
        streams=STREAMS,
        queries=pb.Tensor(data=q.tobytes(), dtype=pb.DTYPE_FLOAT32, shape=q.shape),
        top_k=top_k,
        include_keys=True,
        include_values=True,
    )


def test_the_answer_is_bounded(server: ServerProcess, rng: np.random.Generator) -> None:
    """Whoever makes messages by hand has the server hold more than stream_bytes_max."""
    target = server.tcp_url.removeprefix("grpc://")
    with recollect.connect(server.tcp_url) as client, grpc.insecure_channel(target) as channel:
        memory = wide(Memories(client, rng))
        refused = raw_grpc(channel)("SearchStream", request_of(memory, top_k=1024, tokens=1000))
    assert (refused.code, refused.detail.argument) == ("INVALID_ARGUMENT", "queries")
    assert "67,108,864" in refused.message


def test_who_hangs_up_in_the_middle_holds_nothing(rng: np.random.Generator) -> None:
    """What callers left unread stays counted, and the tenant can soon read nothing any more."""
    limits = {"bytes_in_flight_max": 80_000_000}
    with ServerProcess(limits=limits) as server, recollect.connect(server.tcp_url) as client:
        memory = wide(Memories(client, rng))
        request = request_of(memory, top_k=TOP_K).SerializeToString()
        with grpc.insecure_channel(server.tcp_url.removeprefix("grpc://")) as channel:
            ask: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path_of("SearchStream"))
            for _ in range(12):  # of 17 MB each: together they are far too much
                answer = ask(request, timeout=60)
                first, second = itertools.islice(answer, 2)
                assert len(second) > len(first)
                answer.cancel()
                time.sleep(0.1)
        found = memory.ns.search(
            0, memory.queries(3, TOKENS), top_k=TOP_K, streams=STREAMS, include=BOTH, timeout_s=30
        )
        assert found.keys is not None
        assert "Traceback" not in server.log
