"""Many tenants on one server: what an idle namespace costs beyond its data, and how long a restart takes.

    python -m tests.benchmarks.tenants [--tenants 1000]

A real server process, real keys, all calls over gRPC; once with the registry in a file and once in Redis.
Writes docs/benchmarks/tenants.md and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import psutil

import recollect
from tests.benchmarks import reports
from tests.installation import Installation
from tests.redis_server import RedisServer
from tests.server_process import ServerProcess

ENTRIES, PARTS = 4096, 4
HEADS, DIM, LAYER = 1, 16, 0
STREAM = ["a"]
IDLE_S = 3.0
"""Without calls before memory is measured."""
ASKED = 10
"""Tenants whose first call after a restart is timed."""
OVERHEAD_GOAL_KIB, RESTART_GOAL_S = 64, 10
KIB, MIB = 1024, 1024**2

Start = Callable[[], ServerProcess]


class Restart(TypedDict):
    """Seconds from the start of the process on. First calls: connecting, the namespace, an attend."""

    ready_s: float
    readyz_s: float
    first_calls_ms: list[float]
    all_answered_s: float
    stop_s: float


class Measured(TypedDict):
    """One run. Memory in bytes: resident, of the server's process."""

    registry: str
    tenants: int
    making_tenants_s: float
    making_namespaces_s: float
    rss_before: int
    rss_with_tenants: int
    rss_with_entries: int
    allocated: int
    restart: Restart
    rss_restarted: int
    adding_again_s: float
    rss_again: int


def rows(count: int) -> list[tuple[str, Callable[[Measured], str]]]:
    """What the report says of each run."""
    return [
        (
            "making a tenant and its key (admin API)",
            lambda r: f"{1000 * r['making_tenants_s'] / count:.1f} ms",
        ),
        (
            f"connecting, making a namespace, {PARTS} adds",
            lambda r: f"{1000 * r['making_namespaces_s'] / count:.1f} ms",
        ),
        ("memory of the server before", lambda r: f"{r['rss_before'] / MIB:.1f} MiB"),
        ("... with tenants and keys", lambda r: f"{r['rss_with_tenants'] / MIB:.1f} MiB"),
        ("... with namespaces and entries", lambda r: f"{r['rss_with_entries'] / MIB:.1f} MiB"),
        ("buffers allocated for the entries", lambda r: f"{r['allocated'] / MIB:.1f} MiB"),
        (
            f"**a namespace beyond its data, with its tenant and key** (goal: {OVERHEAD_GOAL_KIB} KiB)",
            lambda r: f"**{overhead_kib(r):.1f} KiB**",
        ),
        ("stopping (SIGTERM)", lambda r: f"{r['restart']['stop_s']:.2f} s"),
        (
            f"**start until `recollect ready`** (goal: {RESTART_GOAL_S} s)",
            lambda r: f"**{r['restart']['ready_s']:.2f} s**",
        ),
        ("start until `/readyz` answers 200", lambda r: f"{r['restart']['readyz_s']:.2f} s"),
        (
            f"first calls of {ASKED} tenants, the slowest",
            lambda r: f"{max(r['restart']['first_calls_ms']):.1f} ms",
        ),
        (f"start until all {ASKED} were answered", lambda r: f"{r['restart']['all_answered_s']:.2f} s"),
        ("memory after the restart", lambda r: f"{r['rss_restarted'] / MIB:.1f} MiB"),
        ("... with all entries added again", lambda r: f"{r['rss_again'] / MIB:.1f} MiB"),
    ]


def report(runs: list[Measured], command: str) -> str:
    """The runs as a page of Markdown."""
    count, kib = runs[0]["tenants"], ENTRIES * HEADS * 2 * DIM * 2 // KIB
    lines = [
        "# Many tenants",
        "",
        f"{count:,} tenants, each with one key and one namespace of {ENTRIES:,} entries: {HEADS} head, keys",
        f"and values of {DIM}, float16, so {kib} KiB of data. A real server process; one client that does",
        "one thing after the other, over gRPC and HTTP on loopback.",
        "",
        f"| {' | '.join(['registry', *(run['registry'] for run in runs)])} |",
        f"|---|{'---:|' * len(runs)}",
        *(f"| {name} | {' | '.join(cell(run) for run in runs)} |" for name, cell in rows(count)),
        "",
        "Memory is what is resident of the server's process. What it costs to load code is counted before: a",
        "first tenant had done all of it.",
        "",
        "A restart brings back tenants, keys, quotas and namespaces with their specs, and no entries: they",
        "are not durable yet. So the times are of a server that knows everybody and holds nothing. The",
        "entries were then added again.",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}. Made with",
        f"`{command}`. All figures: [tenants.json](tenants.json).",
    ]
    return "\n".join(lines) + "\n"


def overhead_kib(run: Measured) -> float:
    """What an idle namespace costs beyond its data, with its tenant and key."""
    return (run["rss_with_entries"] - run["rss_before"] - run["allocated"]) / run["tenants"] / KIB


@contextlib.contextmanager
def place(registry: str) -> Iterator[Start]:
    """Starts servers that keep tenants in the same place."""
    with contextlib.ExitStack() as stack:
        if registry == "Redis":
            redis = stack.enter_context(RedisServer())
            yield lambda: ServerProcess(environment={"RECOLLECT_REGISTRY__URL": redis.url})
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-tenants-")), "data")
            yield lambda: ServerProcess(data_dir=folder)


def resident(server: ServerProcess) -> int:
    """Bytes of the server's process in memory, once it has nothing to do."""
    time.sleep(IDLE_S)
    return int(psutil.Process(server.process.pid).memory_info().rss)


def fill(server: ServerProcess, tokens: Mapping[str, str]) -> int:
    """Gives each tenant a namespace, if it has none, and entries; returns the bytes allocated for them."""
    block = np.random.default_rng(0).standard_normal((1, HEADS, ENTRIES // PARTS, DIM)).astype(np.float16)
    allocated = 0
    for token in tokens.values():
        with recollect.connect(server.tcp_url, token=token) as client:
            namespace = client.create_namespace(
                "n", layers=[LAYER], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=ENTRIES, exist_ok=True
            )
            for _ in range(PARTS):
                namespace.add(LAYER, block, block, streams=STREAM)
            stats = namespace.stats()
            assert stats.entries == ENTRIES
            allocated += stats.bytes
    return allocated


def ask(server: ServerProcess, token: str) -> None:
    """A tenant's first call: it is known, and so is its namespace, which is empty."""
    queries = np.ones((1, HEADS, 8, DIM), dtype=np.float16)
    with recollect.connect(server.tcp_url, token=token) as client:
        namespace = client.namespace("n")
        out = namespace.attend(LAYER, queries, top_k=8, streams=STREAM, missing_ok=True)
        assert np.isneginf(out.lse).all(), "entries are not durable"


def restart(old: ServerProcess, start: Start, tokens: Mapping[str, str]) -> tuple[ServerProcess, Restart]:
    """Ends a server and starts the next one."""
    began_s = time.perf_counter()
    old.terminate()
    assert old.wait() == 0
    stop_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    server = start()
    ready_s = time.perf_counter() - began_s
    with Installation(server) as installation:
        while not installation.http.get("/readyz").is_success:
            time.sleep(0.01)
        readyz_s = time.perf_counter() - began_s
        first_calls_ms: list[float] = []
        for token in list(tokens.values())[:: max(1, len(tokens) // ASKED)][:ASKED]:
            asked_s = time.perf_counter()
            ask(server, token)
            first_calls_ms.append(1000 * (time.perf_counter() - asked_s))
        all_answered_s = time.perf_counter() - began_s
    return server, Restart(
        ready_s=ready_s,
        readyz_s=readyz_s,
        first_calls_ms=first_calls_ms,
        all_answered_s=all_answered_s,
        stop_s=stop_s,
    )


def measure(registry: str, count: int) -> Measured:
    """One run from an empty registry."""
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(place(registry))
        server = stack.enter_context(start())
        with Installation(server) as installation:
            # What is loaded with the first call of its kind is no tenant's.
            fill(server, {"warm": installation.tenant("warm")})
            rss_before, began_s = resident(server), time.perf_counter()
            tokens = {f"t{number}": installation.tenant(f"t{number}") for number in range(count)}
            making_tenants_s = time.perf_counter() - began_s
        rss_with_tenants, began_s = resident(server), time.perf_counter()
        allocated = fill(server, tokens)
        making_namespaces_s = time.perf_counter() - began_s
        rss_with_entries = resident(server)
        server, restarted = restart(server, start, tokens)
        stack.enter_context(server)
        rss_restarted, began_s = resident(server), time.perf_counter()
        assert fill(server, tokens) == allocated
        return Measured(
            registry=registry,
            tenants=count,
            making_tenants_s=making_tenants_s,
            making_namespaces_s=making_namespaces_s,
            rss_before=rss_before,
            rss_with_tenants=rss_with_tenants,
            rss_with_entries=rss_with_entries,
            allocated=allocated,
            restart=restarted,
            rss_restarted=rss_restarted,
            adding_again_s=time.perf_counter() - began_s,
            rss_again=resident(server),
        )


def main() -> None:
    """Measures both registries and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tenants", type=int, default=1000)
    options = parser.parse_args()
    runs = [measure(registry, options.tenants) for registry in ("SQLite file", "Redis")]
    command = f"python -m tests.benchmarks.tenants --tenants {options.tenants}"
    reports.write("tenants", report(runs, command), runs)


if __name__ == "__main__":
    main()
