"""The effective configuration for people, with secrets hidden."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel

_HIDDEN = "**********"  # as pydantic prints a SecretStr
_USER_INFO = re.compile(r"(?<=://)[^/?#@\s]*(?:@[^/?#@\s]*)*@")
_QUERY = re.compile(r"(://[^?#\s]*)[?#]\S*")


def hidden(settings: BaseModel) -> dict[str, object]:
    """Every setting as it is in force.

    Not shown are secrets, and what stands in a URL before the @ or behind the ?.
    """
    # mode="json" prints each SecretStr as asterisks.
    dumped: Mapping[str, object] = settings.model_dump(mode="json")
    return {name: _without_credentials(value) for name, value in dumped.items()}


def _without_credentials(value: object) -> object:
    if isinstance(value, str):
        return _QUERY.sub(rf"\1?{_HIDDEN}", _USER_INFO.sub(f"{_HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {str(name): _without_credentials(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(inner) for inner in value]
    return value
