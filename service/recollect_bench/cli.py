"""`recollect bench`."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from recollect_bench.result import Figure, Outcome
    from recollect_bench.scale import Scale

WORKLOADS = {
    "streaming": "add 512, search 512, evict 512 over gRPC, against usearch and others in process",
    "drift": "the same while the text changes all at once: recall, and the slow steps",
    "banks": "decoding steps while lists of many banks are made at once: the slow steps",
    "auto": "the engine that auto chose, against the best fixed one",
    "exact": "exact search against the bare matrix product",
    "ingest": "vectors a second over gRPC, against LanceDB",
    "scaling": "512 queries over 16,384 to 2,097,152 entries",
    "decode768": "8 queries over 524,288 x 768, against plain exact FAISS",
    "attend_grpc": "attend through a unix socket, against attend in process",
    "echo": "one decoding step, against an echo of the same bytes over gRPC",
    "conversations": "64 decoding at once, against one after another",
    "training": "a training step with memory behind gRPC, against in process",
    "fetch": "attend, against fetching keys and values",
    "memory": "the server's memory for an entry beyond key and value",
    "tradeoff": "recall against latency, ours and the peers'",
    "gpu": "attend on a GPU, against the card's own limits; says so where there is none",
}
EXIT_FAILED, EXIT_BAD_ARGUMENT = 1, 2


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Workloads; none: all.", show_default=False)
    ] = None,
    *,
    list_: Annotated[bool, typer.Option("--list", help="List the workloads, and end.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="keys, mixture, subspace, anisotropic or sphere; may be given more than once."),
    ] = None,
    peers: Annotated[
        str, typer.Option(help="main (usearch, lucidrains), all, or names with commas.")
    ] = "main",
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Recollect alone.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: seconds for each.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the data.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, JSON and pictures; none are made without.")
    ] = None,
) -> None:
    """Measure workloads beside their limits, their recall and their peers."""
    # Read by OpenMP when it is loaded: who waits for the server must not take its cores by spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the least: else it spins on for tens of ms
    from recollect_bench.scale import Scale

    if list_:
        for name, about in WORKLOADS.items():
            typer.echo(f"{name:14} {about}")
        return
    chosen = _known("workload", names or WORKLOADS, WORKLOADS)
    scale = Scale(
        data=_known("data set", data or (), _data_sets()),
        peers=() if no_peers else _peers(peers),
        seed=seed,
        rounds=5 if quick else 15,
        seconds_max=8.0 if quick else 20.0,
    )
    outcomes = {}
    failed = False
    for name in chosen:
        outcome = _run(name, scale)
        failed = failed or outcome is None
        if outcome is not None:
            outcomes[name] = outcome
        if out is not None:
            _write(outcomes, out, seed)
    raise typer.Exit(EXIT_FAILED if failed else 0)


def _run(name: str, scale: Scale) -> Outcome | None:
    """Runs one and shows what it found; None if it failed, which does not stop the others."""
    begun = time.monotonic()
    try:
        outcome: Outcome = importlib.import_module(f"recollect_bench.workloads.{name}").run(scale)
    except Exception as error:  # whatever it is, the other workloads still count
        typer.echo(f"{name}: failed: {type(error).__name__}: {error}", err=True)
        return None
    for figure in outcome.figures:
        typer.echo(_line(figure))
    for peer, reason in outcome.absent.items():
        typer.echo(f"  absent: {peer}: {reason}")
    typer.echo(f"  {name}: {time.monotonic() - begun:.0f} s")
    return outcome


def _write(outcomes: dict[str, Outcome], out: Path, seed: int) -> None:
    """After each workload, so that one who stops the run has what is done."""
    from recollect_bench import pictures, report

    out.mkdir(parents=True, exist_ok=True)
    command = f"recollect bench {' '.join(outcomes)}"
    drawn = pictures.draw(outcomes, out, report.NAME)
    (out / f"{report.NAME}.md").write_text(report.page(outcomes, command=command, seed=seed, pictures=drawn))
    (out / f"{report.NAME}.json").write_text(report.as_json(outcomes, command=command, seed=seed))


def _line(figure: Figure) -> str:
    parts = [figure.workload, figure.case, figure.ours]
    parts += [f"recall {figure.recall:.3f}"] if figure.recall is not None else []
    parts += [figure.theirs] if figure.theirs else []
    parts += [f"recall {figure.their_recall:.3f}"] if figure.their_recall is not None else []
    if figure.ratio is not None:
        verdict = {True: ": met", False: ": MISSED", None: ""}[figure.met]
        parts.append(f"ratio {figure.ratio:.2f}" + (f" (goal {figure.goal}{verdict})" if figure.goal else ""))
    parts += [part for part in (figure.limit, figure.note) if part]
    return " | ".join(parts)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    wanted, there = tuple(names), tuple(known)
    for name in wanted:
        if name not in there:
            typer.echo(
                f"recollect bench: there is no {what} {name!r}; there are {', '.join(there)}", err=True
            )
            raise typer.Exit(EXIT_BAD_ARGUMENT)
    return wanted


def _data_sets() -> tuple[str, ...]:
    from recollect_bench import datasets

    return datasets.names()


def _peers(wanted: str) -> tuple[str, ...]:
    from recollect_bench.peers.installed import MAIN, PEERS

    groups = {"main": MAIN, "all": tuple(PEERS)}
    return groups[wanted] if wanted in groups else _known("peer", wanted.split(","), PEERS)


if __name__ == "__main__":
    typer.run(bench)
