"""Fetching keys and values over gRPC: in shared memory, streamed, split into messages, and as many raw bytes.

    python -m tests.benchmarks.stream [--rounds 15]

All ways take turns in one run. "Raw" is a gRPC stream of 1 MiB chunks of nothing in particular, from a
server process of its own, received and thrown away. What the search itself takes is measured by a search
of the same queries that fetches neither keys nor values.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import grpc.aio
import numpy as np

import recollect
from recollect._runner import _Known
from tests.benchmarks.reports import machine, write
from tests.server_process import ServerProcess

HEADS, TOKENS, TOP_K, DIM, ENTRIES = 8, 512, 32, 64, 4096
CHUNK_BYTES = 1024 * 1024
ANSWER_BYTES = HEADS * TOKENS * TOP_K * (2 * DIM * 2 + 8)
RAW = "/raw/Stream"
REST_S = 0.03
"""Before each call: threads of the one before it spin for a while."""


async def serve_raw() -> None:
    """Sends ANSWER_BYTES in chunks to whoever calls."""
    server = grpc.aio.server()

    async def send(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        chunk = bytes(CHUNK_BYTES)
        for at in range(0, ANSWER_BYTES, CHUNK_BYTES):
            await context.write(chunk[: ANSWER_BYTES - at])

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(send)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def raw_stream() -> Iterator[Callable[[], None]]:
    """A call that receives the bytes."""
    command = [sys.executable, "-m", "tests.benchmarks.stream", "--serve-raw"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            options = [("grpc.max_receive_message_length", -1)]
            with grpc.insecure_channel(
                f"127.0.0.1:{int(process.stdout.readline())}", options=options
            ) as channel:
                open_stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(RAW)

                def receive() -> None:
                    assert sum(len(chunk) for chunk in open_stream(b"")) == ANSWER_BYTES

                yield receive
        finally:
            process.terminate()


def ways(url: str, name: str, *, split: bool = False) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls of one server: the search alone, and with keys and values."""
    client = recollect.connect(url)
    if split:
        # As told by a server that has no streams.
        client._runner._defaults.known = _Known(replace(client.server_info().limits, stream_bytes_max=0))
    rng = np.random.default_rng(0)
    ns = client.create_namespace(
        name.replace(" ", "-"),
        layers=[0],
        heads=HEADS,
        key_dim=DIM,
        value_dim=DIM,
        capacity=ENTRIES,
        dtype="float16",
    )
    for _ in range(4):
        pairs = rng.standard_normal((2, 1, HEADS, ENTRIES // 4, DIM)).astype(np.float16)
        ns.add(0, pairs[0], pairs[1], streams=["s"])
    q = rng.standard_normal((1, HEADS, TOKENS, DIM)).astype(np.float16)
    if name == "streamed":
        yield "search alone", lambda: ns.search(0, q, top_k=TOP_K, streams=["s"])
    yield name, lambda: ns.search(0, q, top_k=TOP_K, streams=["s"], include=["keys", "values"])


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    with ServerProcess() as server, raw_stream() as raw:
        calls = {
            "raw bytes": raw,
            **dict(ways(server.tcp_url, "streamed")),
            **dict(ways(server.unix_url, "shared memory")),
            **dict(ways(server.tcp_url, "split into messages", split=True)),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 2):
            for name, call in calls.items():
                time.sleep(REST_S)
                started_s = time.perf_counter()
                call()
                if turn >= 2:
                    times[name].append(time.perf_counter() - started_s)
    return times


def report(times: dict[str, list[float]]) -> str:
    """The page."""
    medians = {name: statistics.median(each) for name, each in times.items()}
    alone, raw = medians["search alone"], medians["raw bytes"]
    rows = [
        f"| {name} | {1e3 * each:.0f} | {1e3 * min(times[name]):.0f} to {1e3 * max(times[name]):.0f} | "
        + ("|" if name in ("raw bytes", "search alone") else f"{raw / max(each - alone, 1e-9):.2f} |")
        for name, each in medians.items()
    ]
    return "\n".join(
        (
            "# Fetching keys and values",
            "",
            f"Keys and values of {HEADS * TOKENS:,} query-heads, k={TOP_K}, {DIM} dimensions, float16: "
            f"{ANSWER_BYTES / 1e6:.0f} MB, from {ENTRIES:,} entries, on one machine: over TCP, or a unix socket for "
            "shared memory. Repeat with `make bench-stream`. Why it is so: [ADR 22](../adr/0022-streamed-reads.md), "
            "[ADR 23](../adr/0023-shared-memory.md).",
            "",
            f"On {machine()}",
            "",
            "| way | median, ms | from, to | speed beyond the search, to raw bytes |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            "*Raw bytes* are received and thrown away: a gRPC stream of 1 MiB chunks. *Search alone* fetches ids "
            "and scores. *Streamed* and *shared memory* include gathering the pairs in the server and copying them "
            "into the caller's array. *Split* has the same server take the read in messages of 4 MiB, each of which "
            "searches anew.",
            "",
        )
    )


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve-raw", action="store_true")
    options = parser.parse_args()
    if options.serve_raw:
        asyncio.run(serve_raw())
        return
    times = measure(options.rounds)
    write("stream", report(times), times)


if __name__ == "__main__":
    main()
