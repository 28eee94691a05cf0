"""Options that every command has, which say where the server is and who asks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Concatenate, ParamSpec, cast

import typer
from typer.core import TyperOption

from recollect_server.admin.cli.api import EXIT_USAGE, Api, fail

P = ParamSpec("P")

URL_VARIABLE = "RECOLLECT_ADMIN_URL"
KEY_VARIABLE = "RECOLLECT_OPERATOR_KEY"


def require_amount(option: str, value: float | None) -> None:
    """Ends the command if an option has a value that is no finite number from 0 on."""
    # Not left to typer's `min`: what that lets pass, infinity and in some versions NaN, cannot be sent.
    if value is not None and not 0 <= value < math.inf:
        fail(f"{option} is {value:g}; give a finite number from 0 on", status=EXIT_USAGE)


def _from_environment_only(context: typer.Context, option: TyperOption, value: str) -> str:
    source = context.get_parameter_source(str(option.name))
    if value and (source is None or source.name != "ENVIRONMENT"):
        raise typer.BadParameter(
            f"a key among the arguments can be read by every user of the machine; set {KEY_VARIABLE} or use "
            "--key-file"
        )
    return value


def _common(
    *,
    url: Annotated[
        str, typer.Option(envvar=URL_VARIABLE, help="Of the admin API.", rich_help_panel="Server")
    ] = "http://127.0.0.1:8080",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"A file with the API key to show; or set {KEY_VARIABLE} to the key itself.",
            rich_help_panel="Server",
        ),
    ] = None,
    key: Annotated[
        str,
        typer.Option(
            "--key", envvar=KEY_VARIABLE, hidden=True, show_default=False, callback=_from_environment_only
        ),
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option(help="PEM of who signed the server's certificate.", rich_help_panel="Server"),
    ] = None,
    cert_file: Annotated[
        Path | None,
        typer.Option(
            help="PEM of a certificate to show, with its key, for mutual TLS.", rich_help_panel="Server"
        ),
    ] = None,
    allow_plaintext: Annotated[
        bool,
        typer.Option(
            "--allow-plaintext",
            help="Send the key to other hosts without TLS.",
            rich_help_panel="Server",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> Api:
    if key_file is not None:
        try:
            key = key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as unreadable:
            fail(f"--key-file: {unreadable}", status=EXIT_USAGE)
    if not key.isascii() or not key.isprintable():
        fail("the key is not one: it has characters that no key has", status=EXIT_USAGE)
    return Api(
        url,
        key,
        ca_file=ca_file,
        cert_file=cert_file,
        as_json=as_json,
        allow_plaintext=allow_plaintext,
    )


_OPTIONS = inspect.signature(_common, eval_str=True).parameters


def speaks(command: Callable[Concatenate[Api, P], None]) -> Callable[..., None]:
    """A command of a function that takes an `Api`: with the common options in its place."""

    def run(*arguments: P.args, **options: P.kwargs) -> None:
        common = {name: options.pop(name) for name in _OPTIONS}
        with cast("Callable[..., Api]", _common)(**common) as api:
            command(api, *arguments, **options)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *_OPTIONS.values())]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect, and so typer, reads it
    return run
