"""A server process: from its options to its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import typer
from pydantic import ValidationError

from recollect_server.bootstrap import RefusedToStartError, build_server
from recollect_server.rpc.server import RpcServer
from recollect_server.settings import Settings

EXIT_REFUSED = 2


def run(options: dict[str, object]) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        options: Settings given on the command line; they go before the environment.

    Returns:
        The exit status: 0 after a drain, 2 if the server refused to start.
    """
    try:
        settings = Settings.model_validate({**Settings().model_dump(), **options})
        logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr, format=LOG_FORMAT)
        return asyncio.run(_serve(settings))
    except ValidationError as invalid:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in invalid.errors())
        typer.echo(f"recollect: bad settings: {problems}", err=True)
    except (RefusedToStartError, OSError) as refused:
        typer.echo(f"recollect: {refused}", err=True)
    return EXIT_REFUSED


LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


async def _serve(settings: Settings) -> int:
    server: RpcServer = build_server(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    addresses = await server.start()
    typer.echo(f"recollect ready on {' '.join(addresses)}")
    await stop.wait()
    await server.stop(grace_s=settings.drain_grace_s)
    return 0
