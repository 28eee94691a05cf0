"""How much there is to parse in a message, counted on its bytes.

A tensor of 64 MiB is one field, and parsed in no time. As many bytes of empty names are thirty million of
them: seconds in which nobody else is answered, and gigabytes. No valid message is like that.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.limits import Limits

ENVELOPE_BYTES = 64 * 1024
"""Room for names and numbers beside a message's tensors."""

FIELDS_OF_A_ROW = 8
"""Generous: its stream, its sequence and its length, also where a list of numbers is not packed."""

FIELDS_BESIDE = 1024
"""Of everything that does not grow with rows."""

VARINT_BYTES_MAX = 10


def read_message(kind: type[Message], raw: bytes, limits: Limits) -> Message:
    """The message that these bytes are.

    Args:
        kind: Of the message.
        raw: As it came.
        limits: The server's bounds.

    Raises:
        InvalidArgumentError: They are none, or one that is not worth parsing.
    """
    if len(raw) > ENVELOPE_BYTES:  # in less there cannot be much to parse
        check_parts(kind, raw, limits)
    try:
        return kind.FromString(raw)
    except DecodeError as malformed:
        raise InvalidArgumentError("request", f"{malformed}") from None


def check_parts(kind: type[Message], raw: bytes, limits: Limits) -> None:
    """Refuses a message of more fields, or longer lists, than a valid one can have.

    Args:
        kind: Of the message.
        raw: Its bytes, which need not be a message at all.
        limits: The server's bounds.

    Raises:
        InvalidArgumentError: It is not worth parsing.
    """
    fields_max = FIELDS_OF_A_ROW * (limits.rows_max + limits.layers_max) + FIELDS_BESIDE
    walk = _Walk(raw, fields_max=fields_max, elements_max=max(limits.ids_max, limits.rows_max))
    walk.over(cast("Descriptor", kind.DESCRIPTOR), 0, len(raw))


class _Walk:
    """From field to field, over their contents where these are no messages."""

    def __init__(self, raw: bytes, *, fields_max: int, elements_max: int) -> None:
        self._raw = raw
        self._fields = 0
        self._fields_max = fields_max
        self._elements_max = elements_max

    def over(self, kind: Descriptor, start: int, stop: int) -> None:
        """The fields of a message that lies from `start` to `stop`."""
        while start < stop:
            self._fields += 1
            if self._fields > self._fields_max:
                raise InvalidArgumentError(
                    "request", f"has more than {self._fields_max} fields; no call needs as many"
                )
            tag, start = self._varint(start, stop)
            match tag & 7:  # the wire type
                case 0:  # a varint
                    _, start = self._varint(start, stop)
                case 1:  # 64 bits
                    start += 8
                case 5:  # 32 bits
                    start += 4
                case 2:  # so many bytes
                    size, start = self._varint(start, stop)
                    if size > stop - start:
                        raise _malformed()
                    self._into(kind.fields_by_number.get(tag >> 3), start, start + size)
                    start += size
                case _:  # groups, which this wire has none of, or nothing at all
                    raise _malformed()
        if start > stop:
            raise _malformed()

    def _into(self, field: FieldDescriptor | None, start: int, stop: int) -> None:
        if field is None:
            return  # of a newer client; kept as bytes, and not looked at
        if field.message_type is not None:
            self.over(field.message_type, start, stop)
        elif field.is_repeated and field.type != FieldDescriptor.TYPE_STRING:
            self._count(field, start, stop)

    def _count(self, field: FieldDescriptor, start: int, stop: int) -> None:
        """Elements of a packed list: each ends with a byte below 128."""
        if stop - start <= self._elements_max:
            return
        elements = int((np.frombuffer(self._raw, np.uint8, stop - start, start) < 0x80).sum())
        if elements > self._elements_max:
            raise InvalidArgumentError(
                field.name, f"has {elements} elements; at most {self._elements_max} are allowed in any list"
            )

    def _varint(self, start: int, stop: int) -> tuple[int, int]:
        """The number at `start`, and where it ends."""
        value, shift = 0, 0
        for place in range(start, min(stop, start + VARINT_BYTES_MAX)):
            byte = self._raw[place]
            if byte < 0x80:
                return value | byte << shift, place + 1
            value |= (byte & 0x7F) << shift
            shift += 7
        raise _malformed()


def _malformed() -> InvalidArgumentError:
    return InvalidArgumentError("request", "is malformed")
