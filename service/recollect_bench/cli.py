"""`recollect bench`."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale

WORKLOADS = {
    "streaming": "add 512, search 512, evict 512 over gRPC, against usearch and others in process",
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
}
EXIT_BAD_ARGUMENT = 2


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Workloads; none: all.", show_default=False)
    ] = None,
    *,
    list_: Annotated[bool, typer.Option("--list", help="List the workloads and end.")] = False,
    data: Annotated[list[str] | None, typer.Option(help="Data set; may be given more than once.")] = None,
    peers: Annotated[
        str, typer.Option(help="Names with commas between, all, or none.")
    ] = "usearch,lucidrains",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: to see that it works.")] = False,
    seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write report.json there.")] = None,
) -> None:
    """Measure workloads against their limits and peers."""
    if list_:
        for name, about in WORKLOADS.items():
            typer.echo(f"{name:14} {about}")
        return
    from recollect_bench.peers.installed import PEERS

    chosen = {"all": tuple(PEERS), "none": ()}.get(peers)
    if chosen is None:
        chosen = tuple(p for p in peers.split(",") if p in PEERS)
    scale = Scale(
        data=tuple(data or ()),
        peers=chosen,
        seed=seed,
        rounds=5 if quick else 15,
        seconds_max=8 if quick else 30,
    )
    outcomes: dict[str, Outcome] = {}
    for name in names or WORKLOADS:
        if name not in WORKLOADS:
            typer.echo(f"recollect bench: there is no workload {name!r}; see --list", err=True)
            raise typer.Exit(EXIT_BAD_ARGUMENT)
        begun = time.monotonic()
        module = importlib.import_module(f"recollect_bench.workloads.{name}")
        outcomes[name] = module.run(scale)
        for figure in outcomes[name].figures:
            typer.echo(_line(figure))
        for peer, reason in outcomes[name].absent.items():
            typer.echo(f"  absent: {peer}: {reason}")
        typer.echo(f"  {name}: {time.monotonic() - begun:.0f} s")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(
            json.dumps({name: outcome.as_dict() for name, outcome in outcomes.items()}, indent=1)
        )


def _line(f: Figure) -> str:
    parts = [f"{f.workload} | {f.case} | {f.ours}"]
    parts += [f"recall {f.recall:.3f}"] if f.recall is not None else []
    parts += [f.theirs] if f.theirs else []
    parts += [f"recall {f.their_recall:.3f}"] if f.their_recall is not None else []
    if f.ratio is not None:
        verdict = {True: "met", False: "MISSED", None: ""}[f.met]
        parts.append(f"ratio {f.ratio:.2f} {f'(goal {f.goal}: {verdict})' if f.goal else ''}")
    parts += [f.limit] if f.limit else []
    parts += [f.note] if f.note else []
    return " | ".join(parts)


if __name__ == "__main__":
    typer.run(bench)
