"""Counts the bytes between a real client and a real server: attend against fetching keys and values.

    python -m tests.benchmarks.wire_bytes [--out docs/benchmarks/wire-bytes.md]

A proxy between the two counts all that passes, both ways: gRPC, HTTP/2 and messages.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

import recollect
from tests.server_process import ServerProcess

HEADS, DIM, TOP_K, TOKENS, ENTRIES = 8, 64, 32, 512, 2048


class CountingProxy:
    """A TCP proxy in front of a port of loopback that counts what passes.

    Attributes:
        up: Bytes from clients to the server.
        down: Bytes from the server to clients.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.up = 0
        self.down = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """For a client."""
        return f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            # A thread that waits in recv wakes up by a shutdown, not by a close.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server, self._count_up), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, self._count_down), daemon=True).start()

    def _count_up(self, size: int) -> None:
        self.up += size

    def _count_down(self, size: int) -> None:
        self.down += size

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
        try:
            while data := source.recv(1 << 16):
                count(len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return  # closed by the other side, or by us


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call."""

    up: int
    down: int

    @property
    def total(self) -> int:
        """Both ways."""
        return self.up + self.down

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)


@dataclass(frozen=True)
class Report:
    """What each way to memory costs, for TOKENS query tokens of HEADS heads."""

    fetch: Traffic
    attend: Traffic
    attend_backward: Traffic

    @property
    def forward_ratio(self) -> float:
        """Attend against fetch. A fetch needs no call for its backward pass."""
        return self.attend.total / self.fetch.total

    @property
    def training_ratio(self) -> float:
        """Attend and its gradient against fetch."""
        return (self.attend + self.attend_backward).total / self.fetch.total

    def markdown(self) -> str:
        """A table."""
        rows = [
            ("search with keys and values (fetch)", self.fetch, "1"),
            ("attend", self.attend, _fraction(self.forward_ratio)),
            (
                "attend and attend_backward",
                self.attend + self.attend_backward,
                _fraction(self.training_ratio),
            ),
        ]
        lines = [
            f"{HEADS} heads, d={DIM}, k={TOP_K}, float16, {TOKENS} query tokens; gradient of output and LSE.",
            "Counted by a proxy between client and server; all of gRPC and HTTP/2 included.",
            "",
            "| call | bytes up | bytes down | bytes per query token | of fetch |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, traffic, ratio in rows:
            per_token = traffic.total / TOKENS
            lines.append(f"| {name} | {traffic.up:,} | {traffic.down:,} | {per_token:,.0f} | {ratio} |")
        return "\n".join(lines) + "\n"


def _fraction(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}"


def measure() -> Report:
    """Makes each call once, with everything that a client sends only once out of the way."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        return rng.standard_normal(shape).astype(np.float16)

    with (
        ServerProcess() as server,
        CountingProxy(server.port) as proxy,
        recollect.connect(proxy.url) as client,
    ):
        ns = client.create_namespace(
            "wire", layers=[0], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=ENTRIES, dtype="float16"
        )
        ns.add(0, draw(1, HEADS, ENTRIES, DIM), draw(1, HEADS, ENTRIES, DIM), streams=["a"])
        q = draw(1, HEADS, TOKENS, DIM)
        out = ns.attend(0, q, top_k=TOP_K, streams=["a"])
        ids = out.ids
        assert ids is not None
        grad_output, grad_lse = draw(1, HEADS, TOKENS, DIM), draw(1, HEADS, TOKENS)

        def count(call: Callable[[], object]) -> Traffic:
            before = Traffic(proxy.up, proxy.down)
            call()
            return Traffic(proxy.up - before.up, proxy.down - before.down)

        return Report(
            fetch=count(lambda: ns.search(0, q, top_k=TOP_K, streams=["a"], include=("keys", "values"))),
            attend=count(lambda: ns.attend(0, q, top_k=TOP_K, streams=["a"])),
            attend_backward=count(
                lambda: ns.attend_backward(
                    0, q, ids=ids, streams=["a"], grad_output=grad_output, grad_lse=grad_lse
                )
            ),
        )


def main() -> None:
    """Prints the table; writes it where asked to."""
    parser = argparse.ArgumentParser(description="Count bytes on the wire: attend against fetch.")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    out: Path | None = parser.parse_args().out
    table = measure().markdown()
    print(table, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        command = f"python -m tests.benchmarks.wire_bytes --out {out}"
        out.write_text(f"# Bytes on the wire\n\n{table}\nMade with `{command}`.\n")


if __name__ == "__main__":
    main()
