"""Bounds, one by one: what is just allowed passes, what is just beyond is refused and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from recollect_server.domain import validation
from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.eviction import ByIds, OlderThan, Oldest
from recollect_server.domain.limits import FAISS_TOP_K_MAX, Limits
from recollect_server.domain.spec import Dtype, NamespaceSpec, validate_name

SPEC = NamespaceSpec(layers=(0,), heads=2, key_dim=4, value_dim=3, capacity=10, dtype=Dtype.FLOAT32)
LIMITS = Limits(rows_max=3, tokens_max=5, top_k_max=7, ids_max=4, name_length_max=6, heads_max=2)


def ones(*shape: int, dtype: Dtype = Dtype.FLOAT32, fill: float = 1.0) -> DenseArray:
    """An array of one value."""
    return from_float32(np.full(shape, fill, dtype=np.float32), dtype)


def entries(keys: DenseArray, values: DenseArray, *, lengths: tuple[int, ...] = ()) -> list[int]:
    """Checks an add of two rows."""
    return validation.check_entries(keys, values, rows=2, lengths=lengths, spec=SPEC, limits=LIMITS)


def queries(array: DenseArray) -> None:
    """Checks queries of two rows."""
    validation.check_queries("queries", array, rows=2, dim=4, spec=SPEC, limits=LIMITS)


ALLOWED: dict[str, Callable[[], object]] = {
    "rows": lambda: validation.check_streams(["a", "b", "c"], LIMITS, distinct=True),
    "repeated rows of a read": lambda: validation.check_streams(["a", "a"], LIMITS, distinct=False),
    "smallest top_k": lambda: validation.check_top_k(1, LIMITS),
    "largest top_k": lambda: validation.check_top_k(7, LIMITS),
    "tokens": lambda: entries(ones(2, 2, 5, 4), ones(2, 2, 5, 3)),
    "lengths": lambda: entries(ones(2, 2, 5, 4), ones(2, 2, 5, 3), lengths=(0, 5)),
    "query heads": lambda: queries(ones(2, 4, 5, 4)),
    "large keys": lambda: entries(ones(2, 2, 1, 4, fill=2.0**50), ones(2, 2, 1, 3, fill=1e38)),
    "smallest scale": lambda: validation.check_scale(1e-30),
    "largest scale": lambda: validation.check_scale(1e5),
    "ids": lambda: validation.check_selector(ByIds(np.arange(4)), LIMITS),
    "no entries": lambda: validation.check_selector(Oldest(0), LIMITS),
    "no age": lambda: validation.check_selector(OlderThan(0.0), LIMITS),
    "least recall": lambda: dataclasses.replace(SPEC, recall=0.5).validate(LIMITS),
    "perfect recall": lambda: dataclasses.replace(SPEC, recall=1.0).validate(LIMITS),
    "name": lambda: validate_name("name", "a/b@+-", LIMITS),
    "answer": lambda: validation.check_answer_bytes(
        10, hit_bytes=8, other_bytes=20, limits=Limits(message_bytes_max=100)
    ),
}

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no rows": (lambda: validation.check_streams([], LIMITS, distinct=True), "streams: has 0"),
    "rows": (lambda: validation.check_streams(["a"] * 4, LIMITS, distinct=False), "streams: has 4"),
    "recall": (
        lambda: dataclasses.replace(SPEC, recall=0.4999).validate(LIMITS),
        "spec.recall: is 0.4999; it must be from 0.5 to 1.0",
    ),
    "recall beyond all": (
        lambda: dataclasses.replace(SPEC, recall=1.01).validate(LIMITS),
        "spec.recall: is 1.01",
    ),
    "no recall at all": (
        lambda: dataclasses.replace(SPEC, recall=np.nan).validate(LIMITS),
        "spec.recall: is nan",
    ),
    "top_k 0": (lambda: validation.check_top_k(0, LIMITS), "top_k: is 0"),
    "top_k": (lambda: validation.check_top_k(8, LIMITS), "from 1 to 7"),
    "no tokens": (lambda: entries(ones(2, 2, 0, 4), ones(2, 2, 0, 3)), "keys: has 0 tokens"),
    "tokens": (lambda: entries(ones(2, 2, 6, 4), ones(2, 2, 6, 3)), "keys: has 6 tokens"),
    "value tokens": (lambda: entries(ones(2, 2, 5, 4), ones(2, 2, 4, 3)), "values: has shape"),
    "length": (lambda: entries(ones(2, 2, 5, 4), ones(2, 2, 5, 3), lengths=(0, 6)), r"lengths\[1\]: is 6"),
    "query heads": (lambda: queries(ones(2, 3, 5, 4)), "queries: has 3 heads"),
    "many query heads": (lambda: queries(ones(2, 6, 5, 4)), "queries: has 6 heads"),
    "query dtype": (lambda: queries(ones(2, 4, 5, 4, dtype=Dtype.BFLOAT16)), "bfloat16.*float32"),
    "large keys": (lambda: entries(ones(2, 2, 1, 4, fill=2.0**51), ones(2, 2, 1, 3)), "overflow"),
    "large queries": (lambda: queries(ones(2, 4, 5, 4, fill=-(2.0**51))), "overflow"),
    "large scale": (lambda: validation.check_scale(1.1e5), "scale"),
    "scale that is no number": (lambda: validation.check_scale(float("nan")), "scale: is nan"),
    "ids": (lambda: validation.check_selector(ByIds(np.arange(5)), LIMITS), "ids: has 5"),
    "name": (lambda: validate_name("name", "abcdefg", LIMITS), "name: has 7 characters"),
    "name that hides": (lambda: validate_name("name", ".a", LIMITS), "name: is '.a'"),
    "answer": (
        lambda: validation.check_answer_bytes(
            10, hit_bytes=8, other_bytes=21, limits=Limits(message_bytes_max=100)
        ),
        "101 bytes",
    ),
}


@pytest.mark.parametrize("check", list(ALLOWED.values()), ids=list(ALLOWED))
def test_just_allowed(check: Callable[[], object]) -> None:
    """What the limits allow is refused."""
    check()


@pytest.mark.parametrize(("check", "says"), list(REFUSED.values()), ids=list(REFUSED))
def test_just_beyond(check: Callable[[], object], says: str) -> None:
    """What the limits refuse is let through, or the error is no help."""
    with pytest.raises(InvalidArgumentError, match=says):
        check()


def test_limits_refuse_what_would_abort_the_process() -> None:
    """A setting lets k reach GPU FAISS that aborts the process."""
    Limits(top_k_max=FAISS_TOP_K_MAX)
    with pytest.raises(ValueError, match="2048"):
        Limits(top_k_max=FAISS_TOP_K_MAX + 1)


@pytest.mark.parametrize("field", list(Limits.__slots__))
def test_no_limit_may_be_zero(field: str) -> None:
    """A limit of 0 makes a server that refuses everything."""
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})
