"""What the server holds for an entry beyond its key and its value."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from recollect_bench import datasets
from recollect_bench.memory import Engine, Index, fill, namespace, server_and_client, settle
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale

SIZES = (262_144, 1_048_576)
WARM = 8192
GOAL = "<= 16"

REST_S, LOOK_S = 3.0, 0.25
"""A server that has nothing to do gives back what its allocator keeps, after a second or two."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes beyond keys and values.

    Attributes:
        since_start: More than when the server was new, at rest: code that ran, and what the wire keeps, too.
        since_few: More than when it held a small bank of the same kind, at rest.
        at_work: As `since_start`, before it has come to rest.
    """

    since_start: int
    since_few: int
    at_work: int


def run(scale: Scale) -> Outcome:
    """Growth of the server's resident memory since its start, less keys and values, by 1,048,576 x 64."""
    outcome = Outcome()
    sizes = [scale.size(entries) for entries in SIZES]
    data = datasets.make("subspace", entries=max(sizes), queries=64, seed=scale.seed)
    choices: tuple[Index, ...] = ("exact", "ivf", "auto")
    for index in choices:
        helds = []
        for entries in sizes:
            held, engine = _filled(data, entries, index, scale)
            helds.append(held)
            more = (held.since_start - helds[0].since_start) / max(1, entries - sizes[0])
            outcome.figures.append(
                Figure(
                    "memory",
                    f"{index}, {entries:,} x {data.dim} float32",
                    f"{held.since_start / entries:.1f} bytes per entry",
                    ratio=held.since_start / entries,
                    goal=GOAL if entries == sizes[-1] else "",
                    limit=f"{data.dim * 8} bytes of key and value",
                    note=f"{engine}; the process holds {held.since_start / 1e6:.1f} MB more than at its "
                    f"start, {held.since_few / 1e6:.1f} more than with {scale.size(WARM):,} entries; "
                    f"{held.at_work / 1e6:.1f} before it has come to rest"
                    + (f"; {more:.1f} bytes for each beyond {sizes[0]:,}" if entries > sizes[0] else ""),
                )
            )
    return outcome


def _filled(data: datasets.DataSet, entries: int, index: Index, scale: Scale) -> tuple[_Held, Engine]:
    """What a new server holds beyond keys and values, and what answers there."""
    with server_and_client() as (server, client):
        each, few = data.keys[0].nbytes + data.values[0].nbytes, scale.size(WARM)
        new = _at_rest(server.pid, scale)
        # One that is small for "auto" has lists too: what it takes to make any is there before.
        kind: Index = "exact" if index == "exact" else "ivf"
        warm = namespace(client, "warm", dim=data.dim, capacity=few, index=kind)
        fill(warm, data.keys[:few], data.values[:few])
        settle(warm, data.queries, seconds=scale.seconds_max)
        before = _at_rest(server.pid, scale)
        space = namespace(client, "memory", dim=data.dim, capacity=entries, index=index)
        fill(space, data.keys[:entries], data.values[:entries])
        engine = settle(space, data.queries, seconds=scale.seconds_max)
        at_work = _resident_bytes(server.pid)
        at_rest = _at_rest(server.pid, scale)
        since_start = at_rest - new - (entries + few) * each
        since_few = at_rest - before - entries * each
        return _Held(since_start, since_few, at_work - at_rest + since_start), engine


def _at_rest(pid: int, scale: Scale) -> int:
    """Resident bytes once they have been the same for a while."""
    begun = changed = time.monotonic()
    now = _resident_bytes(pid)
    while time.monotonic() - changed < REST_S and time.monotonic() - begun < scale.seconds_max:
        time.sleep(LOOK_S)
        before, now = now, _resident_bytes(pid)
        changed = changed if before == now else time.monotonic()
    return now


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} says nothing of its memory")
