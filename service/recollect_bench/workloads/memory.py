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
GOAL = "<= 16"

REST_S, LOOK_S = 3.0, 0.25
"""A server that has nothing to do gives back what its allocator keeps, after a second or two."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes beyond keys and values: at rest, and before the server had come to rest."""

    at_rest: int
    at_work: int


def run(scale: Scale) -> Outcome:
    """Growth of the server's resident memory, less keys and values, after 1,048,576 x 64, and after fewer."""
    outcome = Outcome()
    sizes = [scale.size(entries) for entries in SIZES]
    data = datasets.make("subspace", entries=max(sizes), queries=64, seed=scale.seed)
    choices: tuple[Index, ...] = ("exact", "ivf", "auto")
    for index in choices:
        helds = []
        for entries in sizes:
            held, engine = _filled(data, entries, index, scale)
            helds.append(held)
            more = (held.at_rest - helds[0].at_rest) / max(1, entries - sizes[0])
            outcome.figures.append(
                Figure(
                    "memory",
                    f"{index}, {entries:,} x {data.dim} float32",
                    f"{held.at_rest / entries:.1f} bytes per entry",
                    ratio=held.at_rest / entries,
                    goal=GOAL if entries == sizes[-1] else "",
                    limit=f"{data.dim * 8} bytes of key and value",
                    note=f"{engine}; resident memory of the process, buffers of the wire included: "
                    f"{held.at_rest / 1e6:.1f} MB once the server rests, {held.at_work / 1e6:.1f} before"
                    + (f"; {more:.1f} for each entry beyond {sizes[0]:,}" if entries > sizes[0] else ""),
                )
            )
    return outcome


def _filled(data: datasets.DataSet, entries: int, index: Index, scale: Scale) -> tuple[_Held, Engine]:
    """What a new server holds beyond keys and values, and what answers there."""
    with server_and_client() as (server, client):
        warm = namespace(client, "warm", dim=data.dim, capacity=64)
        fill(warm, data.keys[:64], data.values[:64])
        before = _at_rest(server.pid, scale)
        space = namespace(client, "memory", dim=data.dim, capacity=entries, index=index)
        fill(space, data.keys[:entries], data.values[:entries])
        engine = settle(space, data.queries, seconds=scale.seconds_max)
        beyond = before + entries * (data.keys[0].nbytes + data.values[0].nbytes)
        at_work = _resident_bytes(server.pid)
        return _Held(_at_rest(server.pid, scale) - beyond, at_work - beyond), engine


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
