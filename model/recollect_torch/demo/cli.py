"""`recollect demo`."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from recollect_torch.demo.corpus import Corpus

if find_spec("torch") is None:  # `recollect` says then what to install
    raise ModuleNotFoundError("No module named 'torch'", name="torch")

EXIT_BAD_ARGUMENT = 2


def demo(
    *,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long it may take.")] = 4.0,
    corpus: Annotated[
        Path | None, typer.Option(help="A folder of text files, plain or .gz, in place of Python's library.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="A folder to judge by; without it a tenth of the corpus is held out.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the starting point too; take no checkpoint.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each continuation, whatever the minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, JSON and picture.")] = Path("runs/demo"),
) -> None:
    """Train a small transformer with a memory and without, and compare them on text neither has seen."""
    # Read when PyTorch is loaded: while the trainer waits for the memory, its threads must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import recollect
    from recollect_torch.demo import report
    from recollect_torch.demo.run import Plan, run
    from recollect_torch.demo.server_process import memory_server

    started = time.monotonic()
    try:
        plan = Plan(
            corpus=_corpus(corpus, validation),
            minutes=minutes,
            seed=seed,
            steps=steps,
            from_scratch=from_scratch,
        )
    except ValueError as wrong:
        typer.echo(f"recollect demo: {wrong}", err=True)
        raise typer.Exit(EXIT_BAD_ARGUMENT) from None
    out.mkdir(parents=True, exist_ok=True)
    with memory_server() as url, recollect.connect(url) as client:
        typer.echo(f"memory server at {url}; corpus: {_describe(plan.corpus)}")
        outcome = run(plan, client, typer.echo)
    (out / "demo.json").write_text(report.as_json(plan, outcome))
    (out / "demo.md").write_text(report.table(outcome) + "\n")
    report.picture(plan, outcome, out / "demo.png")
    typer.echo(f"\n{report.table(outcome)}\n")
    typer.echo(
        f"{len(outcome.memory_curve.factors)} steps each; with the largest memory {outcome.gain:.1%} "
        "fewer bits per byte than the control.\n"
        f"{(time.monotonic() - started) / 60:.1f} minutes; picture, table and JSON in {out}/"
    )


def _corpus(corpus: Path | None, validation: Path | None) -> Corpus:
    from recollect_torch.demo.corpus import folder, standard_library

    if corpus is not None:
        return folder(corpus, validation=validation)
    if validation is not None:
        raise ValueError("--validation goes with --corpus")
    return standard_library()


def _describe(corpus: Corpus) -> str:
    megabytes = sum(d.tokens.size for d in corpus.train) / 1e6
    return (
        f"{corpus.name}, {len(corpus.train)} documents of {megabytes:.1f} MB to train on, "
        f"{len(corpus.held_out)} held out"
    )
