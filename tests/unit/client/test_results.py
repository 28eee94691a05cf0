"""What older and newer servers say, as this client understands it."""

from __future__ import annotations

from typing import cast

import pytest

from recollect import BankStats, InternalError, NamespaceSpec
from recollect.v1 import memory_pb2 as pb


def test_a_server_that_knows_no_indexes() -> None:
    """A namespace on a server of an earlier version cannot be used, or its reads pass for approximate."""
    spec = NamespaceSpec.from_message(pb.NamespaceSpec(layers=[1], heads=1, dtype=pb.DTYPE_FLOAT16))
    assert (spec.index, spec.recall) == ("auto", 0.95)
    bank = BankStats.from_message(pb.BankStats(stream="a", layer=1, entries=3))
    assert bank == BankStats("a", 1, 3, 0, 0, 0, index="exact", recall=None)


def test_a_recall_of_zero_is_not_none() -> None:
    """An index that finds nothing looks like one that nobody compared."""
    assert BankStats.from_message(pb.BankStats(recall=0.0)).recall == 0.0


def test_an_index_of_a_newer_server() -> None:
    """An index that this client does not know is shown as one that it knows."""
    newer = cast("pb.IndexKind.ValueType", 77)
    with pytest.raises(InternalError, match=r"index .* 77"):
        NamespaceSpec.from_message(pb.NamespaceSpec(layers=[1], dtype=pb.DTYPE_FLOAT16, index=newer))
    with pytest.raises(InternalError, match=r"index .* 77"):
        BankStats.from_message(pb.BankStats(index=newer))
