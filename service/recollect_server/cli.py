"""`recollect serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from recollect_server import pollers


def serve(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="unix:///path/to.sock or host:port; may be given more than once.",
            show_default="127.0.0.1:50051",
        ),
    ] = None,
    *,
    admin_listen: Annotated[
        list[str] | None,
        typer.Option(
            help="host:port of the admin API; may be given more than once.",
            show_default="127.0.0.1:8080, none with --dev",
        ),
    ] = None,
    data_dir: Annotated[
        str | None,  # no Path: "" would be the current directory
        typer.Option(help="Where tenants, keys and namespaces are kept.", show_default=False, metavar="PATH"),
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="One tenant, no token; loopback and unix sockets only.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of one search.", show_default="as many as FAISS takes")
    ] = None,
) -> None:
    """Run a memory server until SIGTERM or Ctrl-C. Prints one line when it is ready.

    Everything else is set by RECOLLECT_... variables; docs/operations.md lists them.
    """
    # Read by the OpenMP runtimes and by NumPy's OpenBLAS when they are loaded: waiting threads that spin, for
    # a tenth of a second with the latter, would take the cores from a trainer on the same machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the least
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    from recollect_server.heap import use_one_arena

    use_one_arena()  # before libraries start their threads
    # Both are read by gRPC when it is imported.
    os.environ.setdefault(pollers.VARIABLE, pollers.experiments())
    # It writes lines of its own, no JSON, as many as strangers cause by handshakes that fail. What goes wrong
    # with a call reaches the log through Python.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from recollect_server import serving

    given: dict[str, object] = {
        "listen": listen,
        "admin": None if admin_listen is None else {"listen": admin_listen},
        "data_dir": data_dir,
        "dev": dev or None,
        "device": device,
        "threads": threads,
    }
    raise typer.Exit(serving.run({name: value for name, value in given.items() if value is not None}))
