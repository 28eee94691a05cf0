"""What the server holds for an entry beyond its key and its value."""

from __future__ import annotations

from pathlib import Path

from recollect_bench import datasets
from recollect_bench.memory import Index, fill, namespace, server_and_client, settle
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale

ENTRIES = 1_048_576
GOAL = "<= 16"


def run(scale: Scale) -> Outcome:
    """Growth of the server's resident memory per entry, less key and value, after 1,048,576 x 64."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    data = datasets.make("subspace", entries=entries, queries=64, seed=scale.seed)
    choices: tuple[Index, ...] = ("exact", "ivf", "auto")
    for index in choices:
        with server_and_client() as (server, client):
            warm = namespace(client, "warm", dim=data.dim, capacity=64)
            fill(warm, data.keys[:64], data.values[:64])
            before = _resident_bytes(server.pid)
            space = namespace(client, "memory", dim=data.dim, capacity=entries, index=index)
            half = entries // 2
            fill(space, data.keys[:half], data.values[:half])
            settle(space, data.queries, seconds=scale.seconds_max)
            at_half = _resident_bytes(server.pid)
            fill(space, data.keys[half:], data.values[half:])
            engine = settle(space, data.queries, seconds=scale.seconds_max)
            at_end = _resident_bytes(server.pid)
        each = data.keys[0].nbytes + data.values[0].nbytes
        beyond = at_end - before - entries * each
        further = (at_end - at_half) / (entries - half) - each
        outcome.figures.append(
            Figure(
                "memory",
                f"{index}, {entries:,} x {data.dim} float32",
                f"{beyond / entries:.1f} bytes per entry",
                ratio=beyond / entries,
                goal=GOAL,
                limit=f"{data.dim * 8} bytes of key and value",
                note=f"{engine}; resident memory of the process, buffers of the wire included; "
                f"of each entry in the second half {further:.1f}",
            )
        )
    return outcome


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} says nothing of its memory")
