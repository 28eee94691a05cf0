"""Shared memory: whose a region is, what the server does with what lies there, and how much there may be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import Answer, Raw, raw_grpc
from tests.contract import messages
from tests.installation import Installation
from tests.server_process import ServerProcess

BYTES = 65_536
SUFFIX = ".region"
NAMESPACE = "shared"
UNKNOWN = b"\0" * 16


@pytest.fixture(scope="module")
def unix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A server with keys, also on a unix socket."""
    limits = {"regions_max": 6, "regions_of_tenant_max": 4, "message_bytes_max": 32_768}
    folder = tmp_path_factory.mktemp("data")
    with ServerProcess(data_dir=folder, limits=limits) as server, Installation(server) as installed:
        yield installed
        assert "Traceback" not in server.log


@contextlib.contextmanager
def asking(installation: Installation, token: str) -> Iterator[Raw]:
    """Raw calls over the unix socket."""
    target = f"unix:{installation.server.socket}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield raw_grpc(channel, token=token)


def opened(ask: Raw, size_bytes: int = BYTES) -> bytes:
    """The id of a new region."""
    reply = ask("OpenRegion", pb.OpenRegionRequest(bytes=size_bytes)).response
    assert isinstance(reply, pb.OpenRegionResponse)
    assert reply.bytes >= size_bytes
    return reply.region


@contextlib.contextmanager
def claimed(installation: Installation, region: bytes) -> Iterator[int | None]:
    """The region's descriptor, or None if the server closes the connection without handing one over."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(f"{installation.server.socket}{SUFFIX}")
        connection.sendall(region)
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        try:
            yield descriptors[0] if descriptors else None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


@contextlib.contextmanager
def region_of(installation: Installation, ask: Raw, size_bytes: int = BYTES) -> Iterator[tuple[bytes, int]]:
    """A region that is open: its id and its descriptor. When it is left, the server has forgotten it."""
    region = opened(ask, size_bytes)
    with claimed(installation, region) as descriptor:
        assert descriptor is not None
        yield region, descriptor
    gone_by_s = time.monotonic() + 30
    while ask("Search", search(region)).detail.reason != "REGION_NOT_FOUND":
        assert time.monotonic() < gone_by_s, "the server keeps a region that nobody has"


@pytest.fixture
def ours(unix: Installation, request: pytest.FixtureRequest) -> Iterator[Raw]:
    """A tenant of the test's own, with a namespace that holds something."""
    token = unix.tenant(f"t{abs(hash(request.node.name))}"[:20])
    with asking(unix, token) as ask:
        assert ask("CreateNamespace", messages.create(NAMESPACE)).code == "OK"
        assert ask("Add", messages.add(NAMESPACE)).code == "OK"
        yield ask


def search(region: bytes = b"", **changes: int) -> pb.SearchRequest:
    """A search with pairs, to be answered in a region."""
    asked = messages.search(NAMESPACE)
    asked.include_keys = asked.include_values = True
    asked.region = region
    for name, value in changes.items():
        setattr(asked, name, value)
    return asked


def add_from(region: bytes, *, keys_at: int = 0, values_at: int = 0) -> pb.AddRequest:
    """An add whose tensors lie in a region."""
    asked = messages.add(NAMESPACE)
    for tensor, offset in ((asked.keys, keys_at), (asked.values, values_at)):
        tensor.ClearField("data")
        tensor.offset = offset
    asked.region = region
    return asked


def placed(descriptor: int, tensor: pb.Tensor, dtype: type[np.generic] = np.float32) -> np.ndarray:
    """What lies where a tensor of the answer says."""
    assert not tensor.data
    size = int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(os.pread(descriptor, size, tensor.offset), dtype).reshape(tuple(tensor.shape))


def test_an_answer_in_a_region_is_the_answer(unix: Installation, ours: Raw) -> None:
    """What lies in a region is not what a message would have carried, or old bytes show through."""
    plain = ours("Search", search()).response
    assert isinstance(plain, pb.SearchResponse)
    with region_of(unix, ours) as (region, descriptor):
        os.pwrite(descriptor, b"\xff" * BYTES, 0)  # as of an answer before
        shared = ours("Search", search(region)).response
        assert isinstance(shared, pb.SearchResponse)
        for name in ("scores", "keys", "values"):
            there = np.frombuffer(getattr(plain, name).data, np.float32)
            assert np.array_equal(placed(descriptor, getattr(shared, name)).ravel(), there)
        offsets = np.frombuffer(plain.ids.offsets.data, np.int32)
        assert np.array_equal(placed(descriptor, shared.ids.offsets, np.int32).ravel(), offsets)
        assert shared.ids.first_ids == plain.ids.first_ids


def test_pairs_are_widened_where_asked(unix: Installation) -> None:
    """Halves that are asked for as float32 come as halves, with a wrong header, or beyond their region."""
    with asking(unix, unix.tenant("halves")) as ask:
        made = messages.create(NAMESPACE)
        made.spec.dtype = pb.DTYPE_BFLOAT16
        assert ask("CreateNamespace", made).code == "OK"
        stored, asked = messages.add(NAMESPACE), search()
        for tensor in (stored.keys, stored.values, asked.queries):
            bits = np.random.default_rng(0).integers(0x3F00, 0x4100, tuple(tensor.shape), dtype=np.uint16)
            tensor.CopyFrom(messages.tensor(bits, pb.DTYPE_BFLOAT16))
        assert ask("Add", stored).code == "OK"
        plain = ask("Search", asked).response
        asked.pairs_dtype = pb.DTYPE_FLOAT32
        wide = ask("Search", asked).response
        assert isinstance(plain, pb.SearchResponse)
        assert isinstance(wide, pb.SearchResponse)
        with region_of(unix, ask) as (region, descriptor):
            asked.region = region
            shared = ask("Search", asked).response
            assert isinstance(shared, pb.SearchResponse)
            for name in ("keys", "values"):
                halves = np.frombuffer(getattr(plain, name).data, np.uint16)
                wanted = (halves.astype(np.uint32) << 16).view(np.float32)
                assert getattr(wide, name).dtype == getattr(shared, name).dtype == pb.DTYPE_FLOAT32
                assert np.array_equal(np.frombuffer(getattr(wide, name).data, np.float32), wanted)
                assert np.array_equal(placed(descriptor, getattr(shared, name)).ravel(), wanted)
        # Room for halves is not room for twice as much.
        with region_of(unix, ask, 120_000) as (region, _):
            for dtype, code in ((pb.DTYPE_UNSPECIFIED, "OK"), (pb.DTYPE_FLOAT32, "INVALID_ARGUMENT")):
                asked.region, asked.top_k, asked.pairs_dtype = region, 200, dtype
                assert ask("Search", asked).code == code


def test_streams_without_entries_are_zero_in_a_region(unix: Installation, ours: Raw) -> None:
    """Rows that nobody searched show what the region held before."""
    with region_of(unix, ours) as (region, descriptor):
        os.pwrite(descriptor, b"\xff" * BYTES, 0)
        asked = search(region, missing_ok=True)
        asked.streams[:] = ["nobody", "nothing"]
        answer = ours("Search", asked).response
        assert isinstance(answer, pb.SearchResponse)
        assert not placed(descriptor, answer.keys).any()
        assert not placed(descriptor, answer.values).any()


def test_entries_are_taken_from_a_region(unix: Installation, ours: Raw) -> None:
    """Keys or values come from the wrong place of a region."""
    with region_of(unix, ours) as (region, descriptor):
        asked = add_from(region, keys_at=64, values_at=1024)
        keys = np.random.default_rng(0).standard_normal(tuple(asked.keys.shape)).astype(np.float32)
        values = np.arange(np.prod(asked.values.shape), dtype=np.float32).reshape(tuple(asked.values.shape))
        os.pwrite(descriptor, keys.tobytes(), 64)
        os.pwrite(descriptor, values.tobytes(), 1024)
        assert ours("Add", asked).code == "OK"
    found = pb.SearchRequest(
        namespace=NAMESPACE,
        layer=messages.LAYER,
        streams=["a"],
        queries=messages.tensor(100 * keys[:1]),
        top_k=1,
        include_keys=True,
        include_values=True,
    )
    answer = ours("Search", found).response
    assert isinstance(answer, pb.SearchResponse)
    best = (keys[0] @ keys[0].transpose(0, 2, 1)).argmax(axis=2)  # [H, T]
    for head in range(messages.HEADS):
        shape = tuple(answer.values.shape)
        came = np.frombuffer(answer.values.data, np.float32).reshape(shape)[0, head, :, 0]
        assert np.array_equal(came, values[0, head][best[head]])


def test_queries_may_lie_where_they_are_answered(unix: Installation, ours: Raw) -> None:
    """The answer is written over queries that are still to be searched, or their place is not checked."""
    asked = search()
    queries = np.random.default_rng(0).standard_normal(tuple(asked.queries.shape)).astype(np.float32)
    asked.queries.CopyFrom(messages.tensor(queries))
    plain = ours("Search", asked).response
    assert isinstance(plain, pb.SearchResponse)
    asked.queries.ClearField("data")
    with region_of(unix, ours) as (region, descriptor):
        asked.region = region
        for offset in (0, 64, 32_768 - queries.nbytes):
            os.pwrite(descriptor, queries.tobytes(), offset)
            asked.queries.offset = offset
            shared = ours("Search", asked).response
            assert isinstance(shared, pb.SearchResponse)
            assert placed(descriptor, shared.values).tobytes() == plain.values.data
            assert placed(descriptor, shared.scores).tobytes() == plain.scores.data
        for offset in (-1, 2**62, 32_768 - queries.nbytes + 1, BYTES):
            asked.queries.offset = offset
            refused = ours("Search", asked)
            assert (refused.code, refused.detail.argument) == ("INVALID_ARGUMENT", "queries")
    asked.region = b""
    assert ours("Search", asked).detail.argument == "queries"


@pytest.mark.parametrize("who", ["another tenant", "another key of the tenant"])
def test_a_region_is_of_who_opened_it(unix: Installation, who: str) -> None:
    """Somebody else has answers written to a region, or entries taken from it, or learns that it exists."""
    name = f"owner-{len(who)}"
    token = unix.tenant(name)
    other = unix.tenant(f"{name}-other") if who == "another tenant" else unix.token(name)
    with asking(unix, token) as ask, asking(unix, other) as theirs:
        for each in (ask, theirs):
            each("CreateNamespace", messages.create(NAMESPACE))
            each("Add", messages.add(NAMESPACE))
        with region_of(unix, ask) as (region, descriptor):
            for build in (search, add_from):
                foreign, missing = (
                    theirs("Add" if build is add_from else "Search", build(region)),
                    theirs("Add" if build is add_from else "Search", build(UNKNOWN)),
                )
                assert (foreign.code, foreign.detail.reason) == ("NOT_FOUND", "REGION_NOT_FOUND")
                assert (foreign.message, foreign.detail) == (missing.message, missing.detail)
            assert not os.pread(descriptor, BYTES, 0).strip(b"\0")


def test_a_region_is_handed_over_once(unix: Installation, ours: Raw) -> None:
    """Who learns an id can map the memory that another one reads his answers from."""
    with region_of(unix, ours) as (region, _), claimed(unix, region) as second:
        assert second is None
        assert ours("Search", search(region)).code == "OK"
    for guess in (UNKNOWN, b"\xff" * 64):
        with claimed(unix, guess) as descriptor:
            assert descriptor is None


def test_a_region_cannot_be_shrunk(unix: Installation, ours: Raw) -> None:
    """A caller cuts the memory off under the server, which then ends with a bus error."""
    with region_of(unix, ours) as (region, descriptor):
        for size in (0, 2 * BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert ours("Search", search(region)).code == "OK"


@pytest.mark.parametrize(
    ("keys_at", "values_at"),
    [(-1, 0), (0, 2**62), (32_768 - 8, 0), (0, BYTES)],
    ids=["negative", "huge", "beyond what a message holds", "at the end"],
)
def test_tensors_lie_within_the_region(unix: Installation, ours: Raw, keys_at: int, values_at: int) -> None:
    """The server reads beyond a region, or takes more from it than a message may hold."""
    with region_of(unix, ours) as (region, _):
        refused = ours("Add", add_from(region, keys_at=keys_at, values_at=values_at))
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.detail.argument in ("keys", "values")
    assert "region" in refused.message


def test_what_lies_in_a_region_is_checked_like_any_other(unix: Installation, ours: Raw) -> None:
    """NaN, an overlarge add, an offset without a region, or data beside an offset is taken."""
    with region_of(unix, ours) as (region, descriptor):
        os.pwrite(descriptor, np.full(64, np.nan, np.float32).tobytes(), 0)
        assert "finite" in ours("Add", add_from(region)).message
        os.pwrite(descriptor, bytes(BYTES), 0)
        both = add_from(region)
        both.keys.data = messages.add(NAMESPACE).keys.data
        assert ours("Add", both).detail.argument == "keys"
        large = add_from(region)
        for tensor in (large.keys, large.values):
            tensor.shape[2] = 400  # each fits into a message, both do not
        assert "32,768" in ours("Add", large).message
        assert ours("Add", add_from(region)).code == "OK"
    assert ours("Add", add_from(b"")).detail.argument == "keys"
    queries = search()
    queries.queries.ClearField("data")
    queries.queries.offset = 0
    assert ours("Search", queries).detail.argument == "queries"


def test_an_answer_that_does_not_fit_is_refused_before_the_search(unix: Installation, ours: Raw) -> None:
    """The server writes beyond a region, or fails in the middle."""
    with region_of(unix, ours, 1) as (region, _):
        refused = ours("Search", search(region))
    assert (refused.code, refused.detail.argument) == ("INVALID_ARGUMENT", "region")
    assert "bytes" in refused.message


def test_sizes_have_bounds(ours: Raw) -> None:
    """A caller has the server share nothing, or all that it has."""
    for size in (0, -1, 2**40):
        refused = ours("OpenRegion", pb.OpenRegionRequest(bytes=size))
        assert (refused.code, refused.detail.argument) == ("INVALID_ARGUMENT", "bytes")


def test_numbers_have_bounds(unix: Installation, ours: Raw) -> None:
    """One tenant takes all regions, or all tenants all memory; or one that was closed counts for ever."""
    other = unix.tenant("bounded")
    with contextlib.ExitStack() as stack, asking(unix, other) as theirs:
        for _ in range(4):
            stack.enter_context(region_of(unix, ours))
        refused = ours("OpenRegion", pb.OpenRegionRequest(bytes=1))
        assert (refused.code, refused.detail.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REGIONS")
        for _ in range(2):
            stack.enter_context(claimed(unix, opened(theirs)))
        assert theirs("OpenRegion", pb.OpenRegionRequest(bytes=1)).detail.reason == "TOO_MANY_REGIONS"
    with region_of(unix, ours):
        pass


def test_nobody_else_shares_memory(unix: Installation) -> None:
    """A caller on another machine is given a region that he cannot have."""
    token = unix.tenant("remote")
    refused = unix.rpc("OpenRegion", pb.OpenRegionRequest(bytes=1), token=token)
    assert (refused.code, refused.detail.reason) == ("FAILED_PRECONDITION", "REGION_UNUSABLE")


def test_who_has_not_asked_yet_is_not_waited_for(unix: Installation, ours: Raw) -> None:
    """Silent connections keep others from their regions."""
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(f"{unix.server.socket}{SUFFIX}")
        with region_of(unix, ours) as (region, _):
            assert ours("Search", search(region)).code == "OK"


def test_two_calls_do_not_share_a_region(unix: Installation, ours: Raw) -> None:
    """Two answers are written over each other."""
    answers: list[Answer[Message]] = []
    with region_of(unix, ours) as (region, _):

        def many() -> None:
            answers.extend(ours("Search", search(region)) for _ in range(40))

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {each.code for each in answers} <= {"OK", "FAILED_PRECONDITION"}
    assert {each.detail.reason for each in answers} <= {"", "REGION_UNUSABLE"}
    assert any(each.code == "OK" for each in answers)


def test_the_socket_is_its_owners(tmp_path: Path) -> None:
    """Other users of the machine can ask for the regions of a development server."""
    with ServerProcess() as server:
        assert Path(f"{server.socket}{SUFFIX}").stat().st_mode & 0o777 == 0o600
        server.terminate()
        server.wait()
        assert not Path(f"{server.socket}{SUFFIX}").exists()
    with ServerProcess(data_dir=tmp_path) as server:
        assert Path(f"{server.socket}{SUFFIX}").stat().st_mode & 0o777 == 0o660
