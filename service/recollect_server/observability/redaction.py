"""What never reaches a log: keys, passwords, and whatever looks like data of a tenant."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

TEXT_LENGTH_MAX = 8192
"""Of one message or exception. What is longer loses its middle: both ends of a traceback tell most."""

SCANNED_LENGTH_MAX = 4 * TEXT_LENGTH_MAX
"""The middle of a longer one is not even looked at: looking takes time."""

ITEMS_MAX = 16
"""A longer list in a log is data, not a message."""

DEPTH_MAX = 4

_API_KEY = re.compile(r"rk_([0-9A-Za-z]{1,64})_[0-9A-Za-z+/=_.~-]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)(?!rk_[0-9A-Za-z]{1,64}_\*\*\*)[^\s\"',;]+")
# The last @ before white space ends a password, so that one with an unescaped @ or / goes whole.
_URL_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,31}://[^\s/:@]{0,255}):\S{1,1023}@")
# The same without a scheme, as libraries name whom they speak to: it begins where a word does.
_USER_PASSWORD = re.compile(r"(?<![^\s\"'(<\[{=,/])([^\s\"'/:@]{0,255}):(?!//)[^\s\"']{1,1023}@(?=[\w\[])")
# A secret, or the digest of one, without the rest of its key. Ids are shorter.
_HEX_SECRET = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64,}(?![0-9A-Fa-f])")

# An array in the text of an exception: four or more broken numbers in a row.
_NUMBER = r"(?:np\.float\d+\()?[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|nan|inf)"
_NUMBERS = re.compile(rf"(?:{_NUMBER}(?:[\s,\[\]()]|\\n)+){{3,}}{_NUMBER}")


def redacted(text: str) -> str:
    """The text without secrets and vectors. Key ids stay: they are public and name the key."""
    if len(text) > SCANNED_LENGTH_MAX:
        text = _shortened(text, SCANNED_LENGTH_MAX)
    text = _API_KEY.sub(r"rk_\1_***", text)
    text = _BEARER.sub(r"\1\2***", text)
    text = _URL_PASSWORD.sub(r"\1:***@", text)
    text = _USER_PASSWORD.sub(r"\1:***@", text)
    text = _HEX_SECRET.sub("***", text)
    text = _NUMBERS.sub("<numbers>", text)
    return text if len(text) <= TEXT_LENGTH_MAX else _shortened(text, TEXT_LENGTH_MAX)


def _shortened(text: str, length: int) -> str:
    """Both ends, cut at white space: half a secret would not be recognized as one, and secrets have none."""
    head, tail = text[: length // 2], text[-(length // 2) :]
    head = head[: max(head.rfind(" "), head.rfind("\n"), 0)]
    tail = tail.partition(" ")[2]
    return f"{head} ... {len(text) - len(head) - len(tail)} characters left out ... {tail}"


def without_data(value: object, *, depth: int = 0) -> object:
    """The value itself if it is small and plain; for arrays, bytes and long lists only what they are."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:  # NumPy and torch alike
        return f"<{type(value).__name__} {dtype} {tuple(shape)}>"
    if hasattr(value, "SerializeToString"):  # a message of the wire, with its tensors
        return f"<{type(value).__name__}>"
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        return _items_without_data(value, depth=depth + 1)
    return value


def _items_without_data(value: Collection[object], *, depth: int) -> object:
    if len(value) > ITEMS_MAX or depth > DEPTH_MAX:
        return f"<{type(value).__name__} of {len(value)}>"
    if isinstance(value, Mapping):
        return {name: without_data(item, depth=depth) for name, item in value.items()}
    return [without_data(item, depth=depth) for item in value]
