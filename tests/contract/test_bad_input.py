"""Bad input, in messages past the client's own checks: a clear error, and nothing stored changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import Raw
from tests.contract import messages
from tests.contract.bad_cases import (
    Spoilt,
    add_cases,
    backward_cases,
    create_cases,
    evict_cases,
    pairs_cases,
    scale_cases,
    search_cases,
)
from tests.contract.messages import floats

_numbers = itertools.count()


class Target:
    """A namespace with 6 entries, made and watched by raw messages."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.name = f"bad-{next(_numbers)}"
        assert raw("CreateNamespace", messages.create(self.name)).code == "OK"
        assert raw("Add", messages.add(self.name)).code == "OK"
        forward = raw("Attend", messages.attend(self.name))
        self.ids = cast("pb.AttendResponse", forward.response).ids

    def message(self, method: str) -> Message:
        """A valid one."""
        made: dict[str, Callable[[], Message]] = {
            "Add": lambda: messages.add(self.name),
            "Search": lambda: messages.search(self.name),
            "Attend": lambda: messages.attend(self.name),
            "AttendBackward": lambda: messages.attend_backward(self.name, self.ids),
            "Evict": lambda: messages.evict(self.name),
            "CreateNamespace": lambda: messages.create(f"{self.name}-new"),
            "GetStats": lambda: pb.GetStatsRequest(namespace=self.name),
            "ListNamespaces": pb.ListNamespacesRequest,
        }
        return made[method]()

    def seen(self) -> list[bytes]:
        """All that can be read."""
        answers = [
            self.raw("GetStats", pb.GetStatsRequest(namespace=self.name, streams=["a", "b"])),
            self.raw("Search", messages.search(self.name)),
        ]
        responses = [answer.response for answer in answers]
        return [response.SerializeToString() for response in responses if response is not None]


@pytest.fixture
def target(raw: Raw) -> Iterator[Target]:
    """A namespace of the server, as long as the test takes: a server takes so many."""
    made = Target(raw)
    yield made
    raw("DeleteNamespace", pb.DeleteNamespaceRequest(name=made.name, missing_ok=True))


def check_refused(target: Target, method: str, spoilt: Spoilt) -> None:
    """The spoilt message is refused as it must be, and the valid one still succeeds afterwards."""
    before = target.seen()
    assert len(before) == 2
    request = target.message(method)
    spoilt.spoil(request)
    answer = target.raw(method, request)
    assert answer.code == spoilt.code, answer
    assert answer.detail.reason == spoilt.code or spoilt.code != "INVALID_ARGUMENT"
    assert answer.detail.argument.partition("[")[0] == spoilt.argument, answer
    for part in (*spoilt.says, spoilt.argument.removesuffix("s")):
        assert part in answer.message, answer.message
    assert target.seen() == before
    assert target.raw(method, target.message(method)).code == "OK"


def _cases(cases: dict[str, Spoilt]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spoilt", list(cases.values()), ids=list(cases))


@_cases(add_cases())
def test_bad_add(target: Target, spoilt: Spoilt) -> None:
    """A bad add was stored, in whole or in part, or its error does not say what to do."""
    check_refused(target, "Add", spoilt)


@_cases({**search_cases(), **pairs_cases()})
def test_bad_search(target: Target, spoilt: Spoilt) -> None:
    """A bad search reached FAISS, or its error does not say what to do."""
    check_refused(target, "Search", spoilt)


@_cases({**search_cases(), **scale_cases()})
def test_bad_attend(target: Target, spoilt: Spoilt) -> None:
    """A bad attend reached FAISS, or its error does not say what to do."""
    check_refused(target, "Attend", spoilt)


@_cases(backward_cases())
def test_bad_attend_backward(target: Target, spoilt: Spoilt) -> None:
    """A bad backward gave a gradient, or its error does not say what to do."""
    check_refused(target, "AttendBackward", spoilt)


@_cases(evict_cases())
def test_bad_evict(target: Target, spoilt: Spoilt) -> None:
    """A bad evict removed something, or its error does not say what to do."""
    before = target.seen()
    request = target.message("Evict")
    spoilt.spoil(request)
    answer = target.raw("Evict", request)
    assert answer.code == spoilt.code, answer
    assert answer.detail.argument.partition("[")[0] == spoilt.argument, answer
    for part in (*spoilt.says, spoilt.argument.removesuffix("s")):
        assert part in answer.message, answer.message
    assert target.seen() == before


@_cases(create_cases())
def test_bad_namespace(raw: Raw, spoilt: Spoilt) -> None:
    """A namespace was made that nothing can be stored in."""
    request = messages.create(f"bad-{next(_numbers)}")
    spoilt.spoil(request)
    answer = raw("CreateNamespace", request)
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.detail.argument == spoilt.argument
    for part in (*spoilt.says, spoilt.argument.removesuffix("s")):
        assert part in answer.message, answer.message
    assert raw("GetNamespace", pb.GetNamespaceRequest(name=request.name)).code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 4}, "heads is 2 there and 4 here"),
        ({"key_dim": 8}, "key_dim is 4 there and 8 here"),
        ({"value_dim": 8}, "value_dim is 3 there and 8 here"),
        ({"capacity": 17}, "capacity is 16 there and 17 here"),
        ({"dtype": int(pb.DTYPE_BFLOAT16)}, "dtype is float32 there and bfloat16 here"),
        ({"value_dtype": int(pb.DTYPE_INT8)}, "value_dtype is None there and int8 here"),
        ({"index": int(pb.INDEX_KIND_IVF)}, "index is auto there and ivf here"),
        ({"recall": 0.9}, "recall is 0.95 there and 0.9 here"),
    ],
)
def test_a_spec_that_contradicts(target: Target, changes: dict[str, float], says: str) -> None:
    """An existing namespace was used, or changed, under another spec."""
    before = target.seen()
    request = pb.CreateNamespaceRequest(name=target.name, spec=messages.spec(**changes), exist_ok=True)
    answer = target.raw("CreateNamespace", request)
    assert answer.code == "ALREADY_EXISTS"
    assert answer.detail.reason == "NAMESPACE_EXISTS"
    assert says in answer.message
    assert target.seen() == before


def test_a_spec_that_says_nothing_of_its_index_is_that_of_the_defaults(target: Target) -> None:
    """A client that knows no indexes finds its namespace changed, or cannot take what a newer one made."""
    silent = pb.CreateNamespaceRequest(name=target.name, spec=messages.spec(), exist_ok=True)
    said = messages.spec(index=int(pb.INDEX_KIND_AUTO), recall=0.95)
    for request in (silent, pb.CreateNamespaceRequest(name=target.name, spec=said, exist_ok=True)):
        answer = target.raw("CreateNamespace", request)
        assert answer.code == "OK", answer
        made = cast("pb.CreateNamespaceResponse", answer.response).namespace.spec
        assert (made.index, made.recall) == (pb.INDEX_KIND_AUTO, 0.95)


@pytest.mark.parametrize("page_size", [-1, 1001])
def test_bad_page_size(raw: Raw, page_size: int) -> None:
    """A page beyond the limit was built."""
    answer = raw("ListNamespaces", pb.ListNamespacesRequest(page_size=page_size))
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "page_size")
    assert str(page_size) in answer.message


@pytest.mark.parametrize("token", ["no token", "////", "\N{SNOWMAN}"])
def test_bad_page_token(raw: Raw, token: str) -> None:
    """A page token of one's own making was an internal error."""
    answer = raw("ListNamespaces", pb.ListNamespacesRequest(page_token=token))
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "page_token")


def test_an_answer_beyond_the_message_limit(target: Target) -> None:
    """A small request that asks for gigabytes was served."""
    request = messages.search(target.name)
    request.queries.CopyFrom(floats(2, 4, 4096, 4))
    request.top_k = 1024
    answer = target.raw("Search", request)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "queries")
    assert "4,194,304" in answer.message
    assert "fewer" in answer.message


def test_an_oversized_message(target: Target, request: pytest.FixtureRequest) -> None:
    """A message beyond the limit was read into memory, or took the server down."""
    if "embedded" in str(request.node.name):
        pytest.skip("embedded:// has no wire that could bound a message")
    before = target.seen()
    large = messages.add(target.name)
    large.keys.data = bytes(4 * 1024 * 1024 + 128 * 1024)
    answer = target.raw("Add", large)
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in answer.message
    assert target.seen() == before


def test_too_many_ids(target: Target) -> None:
    """A list of ids beyond the limit was searched."""
    request = messages.evict(target.name)
    request.ids.ids.extend(range(1_048_577))
    answer = target.raw("Evict", request)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "ids")
    assert "1048577" in answer.message
