"""The command `recollect`: its subcommands come from the parts that are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from recollect._version import __version__

if TYPE_CHECKING:
    import typer

_GROUP = "recollect.commands"
# Which extra brings what a command needs, where it is not the server.
_EXTRAS = {"demo": "torch", "bench": "server,torch"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `recollect` with these arguments (those of the process if None), and exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"recollect {__version__}")
        sys.exit(0)
    try:
        import typer
    except ImportError:
        print(
            "recollect: commands need an extra. Install pip install 'recollect[server]' to serve memory, "
            "or pip install 'recollect[torch]' for the demo.",
            file=sys.stderr,
        )
        sys.exit(2)
    app = typer.Typer(
        name="recollect",
        help="A memory server for memorizing attention.",
        no_args_is_help=True,
        # Older ones show the local variables of a traceback, which may be keys.
        pretty_exceptions_enable=False,
    )
    app.callback()(_no_options)
    entries = sorted(entry_points(group=_GROUP), key=lambda entry: entry.name)
    if not entries:
        print("recollect: no command is installed. Try: pip install 'recollect[server]'", file=sys.stderr)
        sys.exit(2)
    # `recollect serve` must not wait for what the demo imports.
    asked = [entry for entry in entries if words and entry.name == words[0]]
    for entry in asked or entries:
        _register(app, entry)
    app(words, prog_name="recollect")


def _no_options() -> None:
    """A memory server for memorizing attention. `recollect --version` prints the version."""


def _register(app: typer.Typer, entry: EntryPoint) -> None:
    import typer

    try:
        loaded: object = entry.load()
    except ImportError as error:
        # Its options are not known here, so all are let through to the message.
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(entry.name, context_settings=settings)(_refuse(entry.name, error))
        return
    if isinstance(loaded, typer.Typer):
        app.add_typer(loaded, name=entry.name)
    else:
        app.command(entry.name)(cast("Callable[..., None]", loaded))


def _refuse(name: str, error: ImportError) -> Callable[[], None]:
    extra = _EXTRAS.get(name, "server")

    def refuse() -> None:
        print(
            f"recollect {name} cannot start: {error}. Install it with: pip install 'recollect[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(2)

    refuse.__doc__ = f"Not installed: needs the extra '{extra}'."
    return refuse
