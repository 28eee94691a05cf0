"""A server process: from its options to its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys

import typer
from pydantic import ValidationError

from recollect_server.bootstrap import build_server
from recollect_server.exposure import RefusedToStartError
from recollect_server.heap import trim_at_rest
from recollect_server.observability.line_limit import LineLimit
from recollect_server.observability.logs import configure_logging
from recollect_server.server import Server
from recollect_server.settings import Settings, SettingsError, unknown_variables

log = logging.getLogger(__name__)

EXIT_REFUSED = 2


def run(options: dict[str, object]) -> int:
    """Serves until SIGTERM or SIGINT, or until an operator drains the server.

    Args:
        options: Settings given on the command line; they go before the environment.

    Returns:
        The exit status: 0 after a drain, 2 if the server refused to start.
    """
    try:
        settings = Settings.model_validate(_merged(Settings().model_dump(), options))
        limit = LineLimit()
        configure_logging(settings.telemetry.log_level, settings.telemetry.log_format, limit=limit)
        for unknown in unknown_variables():
            log.warning("%s", unknown)
        return asyncio.run(_serve(settings, limit))
    except ValidationError as invalid:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in invalid.errors())
        typer.echo(f"recollect: bad settings: {problems}", err=True)
    except SettingsError as unreadable:
        typer.echo(
            f"recollect: bad settings: {unreadable}. Lists and sections are written as JSON, as in "
            """RECOLLECT_LISTEN='["127.0.0.1:50051"]'""",
            err=True,
        )
    except (RefusedToStartError, ValueError, OSError) as refused:
        typer.echo(f"recollect: {refused}", err=True)
    return EXIT_REFUSED


async def _serve(settings: Settings, limit: LineLimit) -> int:
    stop = asyncio.Event()
    server: Server = build_server(settings, on_drain=stop.set, limit=limit)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if hasattr(signal, "SIGHUP"):
        # A terminal that is closed sends it, and what renews certificates. Left alone it ends the process,
        # and all memories with it.
        at_terminal = sys.stdin is not None and sys.stdin.isatty()
        loop.add_signal_handler(signal.SIGHUP, stop.set if at_terminal else _say_that_nothing_is_read_again)
    rpc, admin = await server.start()
    typer.echo(f"recollect ready on {' '.join(rpc)}" + (f", admin on {' '.join(admin)}" if admin else ""))
    # What is there now stays: a full collection would look through all of it, for some tens of milliseconds.
    gc.freeze()
    trimming = asyncio.create_task(trim_at_rest())
    await stop.wait()
    trimming.cancel()
    await server.stop()
    return 0


def _say_that_nothing_is_read_again() -> None:
    log.info("SIGHUP changes nothing: new certificates are taken up without it, settings at a restart")


def _merged(settings: dict[str, object], options: dict[str, object]) -> dict[str, object]:
    merged = dict(settings)
    for name, value in options.items():
        inner = merged.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            merged[name] = {**inner, **value}
        else:
            merged[name] = value
    return merged
