"""A hundred thousand malformed messages to a server with keys, all calls in turn: it blames the sender."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from google.protobuf.message import Message

import recollect
from recollect.v1 import memory_pb2 as pb
from tests.clients import METHODS
from tests.contract import messages
from tests.contract.memories import CheckedMemory, Memories
from tests.installation import Installation
from tests.property.flood import Answers, flood
from tests.property.mutations import Mutator
from tests.property.test_malformed_messages import NAME, valid
from tests.server_process import ServerProcess

log = logging.getLogger(__name__)

SEED = 3
COUNT, COUNT_SLOW = 4_000, 105_000
"""Messages; a few of them are right."""
WARM_UP = 5
"""The first fifth of the messages fills caches, pools and the allocator."""
GROWTH_BYTES_MAX = 64 * 1024**2
"""Of the process from then on, at equal stored data."""
REPAIR_EVERY = 5
"""Rounds through all methods."""
WITNESS_STREAMS = ("a", "b")
METHOD_NAMES = [path.rpartition("/")[2] for path in METHODS]


@dataclass
class Flooded:
    """A server with a tenant that sends nonsense and one that must not notice."""

    installation: Installation
    token: str
    witness: CheckedMemory
    process: psutil.Process

    def rpc(self, method: str, request: pb.CreateNamespaceRequest | pb.AddRequest) -> None:
        """A call of the tenant that sends nonsense, which has to succeed."""
        assert self.installation.rpc(method, request, token=self.token).code == "OK"

    def begin_again(self) -> None:
        """Deletes all that the nonsense has made, and makes the one namespace that it is about."""
        while True:
            listed = self.installation.rpc("ListNamespaces", pb.ListNamespacesRequest(), token=self.token)
            assert isinstance(listed.response, pb.ListNamespacesResponse)
            if not listed.response.namespaces:
                break
            for each in listed.response.namespaces:
                delete = pb.DeleteNamespaceRequest(name=each.name)
                assert self.installation.rpc("DeleteNamespace", delete, token=self.token).code == "OK"
        self.rpc("CreateNamespace", messages.create(NAME))
        self.rpc("Add", messages.add(NAME))

    def resident_bytes(self) -> int:
        """Of the server, once it holds the same as whenever this is asked."""
        self.begin_again()
        return int(self.process.memory_info().rss)


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    """Two tenants; quotas bound what nonsense can store."""
    data_dir: Path = tmp_path_factory.mktemp("data") / "data"
    limits = {"memory_bytes_max": 128 * 1024**2, "capacity_max": 4096}
    with ServerProcess(data_dir=data_dir, limits=limits) as server, Installation(server) as installation:
        quotas = {"namespaces_max": 64, "streams_max": 1000, "bytes_max": 64 * 1024**2}
        quotas["changes_per_minute"] = 1_000_000  # what is to be seen are messages, not how many of them
        token = installation.tenant("nonsense", **quotas)
        with recollect.connect(server.tcp_url, token=installation.tenant("witness")) as client:
            witness = Memories(client, np.random.default_rng(SEED))(name=NAME, capacity=50)
            witness.add(WITNESS_STREAMS, 20)
            found = Flooded(installation, token, witness, psutil.Process(server.process.pid))
            found.begin_again()
            yield found
        assert server.is_alive


def to_spoil(method: str, number: int) -> Message:
    """A message that is right; those that make and delete namespaces speak of others than the rest."""
    match method:
        case "CreateNamespace":
            return messages.create(f"new-{number % 100}")
        case "DeleteNamespace":
            return pb.DeleteNamespaceRequest(name=f"new-{number % 70}")
        case "GetNamespace":
            return pb.GetNamespaceRequest(name=NAME)
        case "GetStats":
            return pb.GetStatsRequest(namespace=NAME, streams=["a"])
        case "ListNamespaces":
            return pb.ListNamespacesRequest(page_size=2)
    return valid(method)


class Nonsense:
    """Messages for all methods in turn, without end.

    Attributes:
        spoilt: How many of those given so far were not what a client would send.
    """

    def __init__(self, seed: int) -> None:
        self.spoilt = 0
        self._mutator = Mutator(
            [to_spoil(method, 0).SerializeToString() for method in METHOD_NAMES], seed=seed
        )

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for number in itertools.count():
            if number % REPAIR_EVERY == 0:  # nonsense deletes and evicts too: leave it something to work on
                yield "CreateNamespace", messages.create(NAME).SerializeToString()
                yield "Add", messages.add(NAME).SerializeToString()
            for method in METHOD_NAMES:
                raw = to_spoil(method, number).SerializeToString()
                self.spoilt += 1
                yield method, self._mutator.of(raw)


def hold_out(flooded: Flooded, count: int) -> None:
    """Sends so many; the answers, the log, the memory and what others have stored must be as they should."""
    answers, nonsense, began_s = Answers(), Nonsense(SEED), time.monotonic()
    source = iter(nonsense)
    flood(flooded.installation, flooded.token, itertools.islice(source, count // WARM_UP), answers)
    before = flooded.resident_bytes()
    flood(flooded.installation, flooded.token, itertools.islice(source, count - count // WARM_UP), answers)
    growth = flooded.resident_bytes() - before
    took_s = time.monotonic() - began_s
    log.info("%d messages, %d of them spoilt, in %d s: %s", count, nonsense.spoilt, took_s, answers)
    log.info("grew by %.1f MiB from %d MiB", growth / 2**20, before / 2**20)
    assert not answers.faults, "\n".join(answers.faults)
    assert answers.statuses.total() == count
    assert nonsense.spoilt >= count / 1.05
    assert set(answers.by_method) == set(METHOD_NAMES)
    assert not [status for status in answers.statuses if "QUOTA_CALLS" in status], "sent too fast to be read"
    assert answers.statuses["OK"] > count // 20
    assert growth <= GROWTH_BYTES_MAX
    assert flooded.installation.server.is_alive
    assert "Traceback" not in flooded.installation.server.log
    flooded.witness.check(WITNESS_STREAMS)
    with recollect.connect(flooded.installation.server.tcp_url, token=flooded.token) as client:
        after = Memories(client, np.random.default_rng(count))(name="after")
        after.add(WITNESS_STREAMS, 9)
        after.check(WITNESS_STREAMS)


def test_thousands_of_malformed_messages(flooded: Flooded) -> None:
    """A malformed message is a defect, ends the server, makes it grow, or changes what others have stored."""
    hold_out(flooded, COUNT)


@pytest.mark.slow
def test_a_hundred_thousand_malformed_messages(flooded: Flooded) -> None:
    """As above, for what is too rare to be among thousands."""
    hold_out(flooded, COUNT_SLOW)
