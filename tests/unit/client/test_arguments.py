"""Bad arguments: refused here, before anything is sent, with an error that says which, what and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

import recollect
from recollect import InvalidArgumentError, Namespace, NotFoundError

QUERIES = np.ones((2, 4, 3, 8), np.float32)
KEYS = np.ones((2, 2, 3, 8), np.float32)
VALUES = np.ones((2, 2, 3, 4), np.float32)
IDS = np.zeros((2, 4, 3, 5), np.int64)
GRAD = np.ones((2, 4, 3, 4), np.float32)
TWO = ["a", "b"]

SEARCH = {"layer": 1, "queries": QUERIES, "top_k": 5, "streams": TWO}
ADD = {"layer": 1, "keys": KEYS, "values": VALUES, "streams": TWO}
BACKWARD = {"layer": 1, "queries": QUERIES, "ids": IDS, "streams": TWO, "grad_output": GRAD}
EVICT: dict[str, object] = {"streams": TWO}
CREATE = {"name": "m", "layers": [0], "heads": 1, "key_dim": 4, "value_dim": 4, "capacity": 9}

CASES: list[tuple[str, Mapping[str, object], str, object]] = [
    ("search", SEARCH, "layer", "1"),
    ("search", SEARCH, "layer", True),
    ("search", SEARCH, "queries", QUERIES[0]),
    ("search", SEARCH, "queries", QUERIES[:, :3]),
    ("search", SEARCH, "queries", QUERIES[..., :7]),
    ("search", SEARCH, "queries", QUERIES[:, :, :0]),
    ("search", SEARCH, "queries", QUERIES.tolist()),
    ("search", SEARCH, "queries", QUERIES.astype(np.int32)),
    ("search", SEARCH, "top_k", 0),
    ("search", SEARCH, "top_k", 10_000),
    ("search", SEARCH, "top_k", 2.5),
    ("search", SEARCH, "streams", "ab"),
    ("search", SEARCH, "streams", ["a"]),
    ("search", SEARCH, "streams", ["a", ""]),
    ("search", SEARCH, "streams", ["a", 3]),
    ("search", SEARCH, "include", "keys"),
    ("search", SEARCH, "include", ("scores",)),
    ("search", SEARCH, "min_sequences", [1]),
    ("search", SEARCH, "min_sequences", [1, -1]),
    ("search", SEARCH, "top_k", 2**40),
    ("search", SEARCH, "queries", np.ma.masked_array(QUERIES)),
    ("search", SEARCH, "streams", None),
    ("search", SEARCH, "streams", 2),
    ("search", SEARCH, "streams", ["a", "\ud800"]),
    ("search", SEARCH, "include", None),
    ("search", SEARCH, "include", 2),
    ("search", SEARCH, "min_sequences", 1),
    ("search", SEARCH, "min_sequences", [1, 2**70]),
    ("search", SEARCH, "timeout_s", 0),
    ("search", SEARCH, "timeout_s", 10**400),
    ("search", SEARCH, "query_dtype", "int4"),
    ("attend", SEARCH, "query_dtype", "float16"),
    ("attend", SEARCH, "query_dtype", 8),
    ("attend", SEARCH, "scale", 0.0),
    ("attend", SEARCH, "scale", float("nan")),
    ("attend", SEARCH, "scale", "big"),
    ("attend", SEARCH, "scale", 10**400),
    ("attend", SEARCH, "streams", None),
    ("attend", SEARCH, "min_sequences", [0, 2**63]),
    ("attend", SEARCH, "top_k", -1),
    ("attend_backward", BACKWARD, "ids", IDS[:, :, :2]),
    ("attend_backward", BACKWARD, "ids", IDS[..., 0]),
    ("attend_backward", BACKWARD, "ids", IDS.astype(np.float32)),
    ("attend_backward", BACKWARD, "grad_output", GRAD[..., :3]),
    ("attend_backward", BACKWARD, "grad_output", np.full_like(GRAD, np.inf)),
    ("attend_backward", BACKWARD, "grad_lse", GRAD),
    ("add", ADD, "keys", KEYS[:, :1]),
    ("add", ADD, "keys", KEYS[..., :7]),
    ("add", ADD, "keys", KEYS * 1e6),
    ("add", ADD, "values", VALUES[:, :, :2]),
    ("add", ADD, "values", VALUES[:1]),
    ("add", ADD, "streams", ["a", "a"]),
    ("add", ADD, "lengths", [3]),
    ("add", ADD, "lengths", [3, 4]),
    ("add", ADD, "lengths", [3, -1]),
    ("add", ADD, "keys", np.ma.masked_array(KEYS)),
    ("add", ADD, "values", np.ma.masked_array(VALUES)),
    ("add", ADD, "streams", None),
    ("add", ADD, "lengths", 3),
    ("add", ADD, "lengths", [3, 2**70]),
    ("add", ADD, "request_id", ""),
    ("add", ADD, "request_id", "r\udfff"),
    ("evict", EVICT, "streams", []),
    ("evict", EVICT | {"oldest": 1}, "layers", []),
    ("evict", EVICT | {"oldest": 1}, "layers", 1),
    ("evict", EVICT, "oldest", -1),
    ("evict", EVICT, "before_sequence", -1),
    ("evict", EVICT, "older_than_s", -0.5),
    ("evict", EVICT, "ids", [-1]),
    ("evict", EVICT, "ids", [2**63]),
    ("evict", EVICT, "ids", 5),
    ("evict", EVICT, "oldest", 2**70),
    ("evict", EVICT, "before_sequence", 2**70),
    ("evict", EVICT, "older_than_s", 10**400),
    ("evict", EVICT | {"all": True}, "oldest", 1),
    ("session", {"streams": TWO}, "on_error", "ignore"),
    ("session", {"streams": TWO}, "stale", "skip"),
    ("create_namespace", CREATE, "name", ""),
    ("create_namespace", CREATE, "layers", []),
    ("create_namespace", CREATE, "layers", [1, 1]),
    ("create_namespace", CREATE, "layers", 1),
    ("create_namespace", CREATE, "layers", None),
    ("create_namespace", CREATE, "layers", [2**40]),
    ("create_namespace", CREATE, "name", "m\ud800"),
    ("create_namespace", CREATE, "heads", 0),
    ("create_namespace", CREATE, "heads", 2**31),
    ("create_namespace", CREATE, "key_dim", 2**40),
    ("create_namespace", CREATE, "value_dim", 2**40),
    ("create_namespace", CREATE, "capacity", 2**70),
    ("create_namespace", CREATE, "dtype", "int8"),
    ("create_namespace", CREATE, "value_dtype", "int4"),
    ("create_namespace", CREATE, "value_dtype", 8),
    ("create_namespace", CREATE | {"dtype": "float16"}, "value_dtype", "float32"),
    ("create_namespace", CREATE, "index", "hnsw"),
    ("create_namespace", CREATE, "index", 1),
    ("create_namespace", CREATE, "recall", 0),
    ("create_namespace", CREATE, "recall", -0.5),
    ("create_namespace", CREATE, "recall", float("nan")),
    ("create_namespace", CREATE, "recall", "most"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[recollect.Client]:
    with recollect.connect("embedded://") as connected:
        yield connected


@pytest.fixture(scope="module")
def namespace(client: recollect.Client) -> Namespace:
    return client.create_namespace("n", layers=[1], heads=2, key_dim=8, value_dim=4, capacity=9)


@pytest.mark.parametrize(
    ("method", "good", "argument", "bad"),
    CASES,
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_bad_arguments_are_named(
    client: recollect.Client,
    namespace: Namespace,
    method: str,
    good: Mapping[str, object],
    argument: str,
    bad: object,
) -> None:
    """A mistake would surface as a TypeError inside the client, or as an error that does not say where."""
    target = client if method == "create_namespace" else namespace
    with pytest.raises(InvalidArgumentError) as caught:
        getattr(target, method)(**{**good, argument: bad})
    assert argument in str(caught.value)
    assert caught.value.argument in (argument, "all", "oldest")
    assert namespace.stats().entries == 0


def test_a_layer_that_is_not_there(namespace: Namespace) -> None:
    """A wrong layer would come out as another class here than from the server."""
    for call in (
        lambda: namespace.search(2, QUERIES, top_k=1, streams=TWO),
        lambda: namespace.add(2, KEYS, VALUES, streams=TWO),
        lambda: namespace.evict(streams=TWO, layers=[1, 2], all=True),
    ):
        with pytest.raises(NotFoundError, match=r"layer.* \[1\]; got 2") as caught:
            call()
        assert caught.value.reason == "LAYER_NOT_FOUND"


def test_evict_needs_a_selector(namespace: Namespace) -> None:
    """A forgotten argument would evict nothing, or everything."""
    with pytest.raises(InvalidArgumentError, match="exactly one of ids, oldest"):
        namespace.evict(streams=TWO)


@pytest.mark.parametrize("page_size", [0, 2**31, 2**70, None], ids=str)
def test_pages_have_a_size_that_can_be_sent(client: recollect.Client, page_size: int | None) -> None:
    """A page size that the wire has no room for is an error of a library, which says nothing of pages."""
    listed = client.list_namespaces(page_size=page_size)
    if page_size is None:
        assert len(list(listed)) <= 1
        return
    with pytest.raises(InvalidArgumentError, match="page_size"):
        list(listed)


def test_the_largest_that_can_be_sent_is(client: recollect.Client, namespace: Namespace) -> None:
    """What the wire has room for is refused, or wraps around on its way: other entries are evicted."""
    namespace.add(1, KEYS, VALUES, streams=TWO)
    try:
        assert namespace.evict(streams=TWO, ids=[2**63 - 1]).evicted == 0
        with pytest.raises(recollect.FailedPreconditionError, match=str(2**63 - 1)):
            namespace.search(1, QUERIES, top_k=1, streams=TWO, min_sequences=[0, 2**63 - 1])
        assert namespace.evict(streams=TWO, before_sequence=2**63 - 1).evicted == 6
    finally:
        namespace.evict(streams=TWO, all=True)
