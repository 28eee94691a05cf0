"""`recollect serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def serve(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="unix:///path/to.sock or host:port; may be given more than once.",
            show_default="127.0.0.1:50051",
        ),
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="One tenant, no token; loopback and unix sockets only.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of one search.", show_default="as many as FAISS takes")
    ] = None,
) -> None:
    """Run a memory server until SIGTERM or Ctrl-C. Prints one line when it is ready."""
    # Read by the OpenMP runtimes when they are loaded, so before FAISS and NumPy are: waiting threads
    # that spin would take the cores from a trainer on the same machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    from recollect_server import serving

    given = {"listen": listen, "dev": dev or None, "device": device, "threads": threads}
    raise typer.Exit(serving.run({name: value for name, value in given.items() if value is not None}))
