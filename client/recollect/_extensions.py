"""Optional parts of Recollect, found by entry point: the client imports neither the server nor the model."""

from __future__ import annotations

from importlib.metadata import entry_points

from recollect.errors import MissingExtraError


def load_extension(group: str, name: str, *, extra: str, what: str) -> object:
    """The object of an entry point.

    Args:
        group: For example "recollect.transports".
        name: Within the group.
        extra: What to install to have it.
        what: What the user asked for, for the message.

    Raises:
        MissingExtraError: It is not installed, or something that it needs is not.
    """
    remedy = f"Install it with: pip install 'recollect[{extra}]'"
    found = [entry for entry in entry_points(group=group) if entry.name == name]
    if not found:
        raise MissingExtraError(f"{what} is not installed here. {remedy}")
    try:
        loaded: object = found[0].load()
    except ImportError as error:
        raise MissingExtraError(f"{what} cannot be loaded: {error}. {remedy}") from error
    return loaded
