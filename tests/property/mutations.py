"""Malformed messages without end, from a seed: valid ones cut, joined, flipped, padded and nested."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

VARINT, FIXED64, DELIMITED, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5
NUMBERS = (0, 1, 127, 128, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**70 - 1)
"""Where lengths, sizes, ids and enums go wrong; the last takes more than 64 bits."""

FLOATS = [
    struct.pack("<f", value)
    for value in (float("nan"), float("inf"), float("-inf"), 3.4e38, 1e15, -1.2e15, 1e-45, 0.0)
]
"""Where sums, products and exponentials go wrong."""


class Field(NamedTuple):
    """One field as it lies in a message.

    Attributes:
        number: In the schema.
        wire: Its wire type.
        content: Without its tag and, where it has one, its length.
    """

    number: int
    wire: int
    content: bytes


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encoded(fields: Sequence[Field]) -> bytes:
    """A message of these fields, in this order."""
    return b"".join(
        varint(field.number << 3 | field.wire)
        + (varint(len(field.content)) if field.wire == DELIMITED else b"")
        + field.content
        for field in fields
    )


def fields_in(raw: bytes) -> list[Field] | None:
    """The fields of a message; None if these bytes are none."""
    found: list[Field] = []
    at = 0
    while at < len(raw):
        tag, at = _number(raw, at)
        number, wire = tag >> 3, tag & 7
        start = at
        match wire:
            case 0:
                _, at = _number(raw, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, start = _number(raw, at)
                at = start + size
            case _:
                return None
        if number == 0 or at > len(raw):
            return None
        found.append(Field(number, wire, raw[start:at]))
    return found


def _number(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(raw) + 1


class Mutator:
    """Spoils messages.

    Args:
        valid: Messages to begin with; parts of each turn up in others.
        seed: The same one makes the same messages.
    """

    def __init__(self, valid: Sequence[bytes], *, seed: int) -> None:
        self._valid = valid
        self._random = random.Random(seed)
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self._flip,
            self._cut,
            self._insert,
            self._splice,
            self._of_fields(self._repeat),
            self._of_fields(self._drop),
            self._of_fields(self._rewire),
            self._of_fields(self._renumber),
            self._of_fields(self._overflow),
            self._of_fields(self._poison),
            self._of_fields(self._borrow),
            self._of_fields(self._nest),
            self._lie_about_a_length,
            self._add_unknown,
            self._noise,
        )

    def of(self, raw: bytes) -> bytes:
        """Another message than this, spoilt in one to three ways."""
        spoilt = raw
        while spoilt == raw:
            for _ in range(self._random.choice((1, 1, 1, 2, 3))):
                spoilt = self._random.choice(self._ways)(spoilt)
        return spoilt

    # ---- of bytes ----

    def _flip(self, raw: bytes) -> bytes:
        spoilt = bytearray(raw or b"\0")
        for _ in range(self._random.randint(1, 8)):
            spoilt[self._random.randrange(len(spoilt))] ^= 1 << self._random.randrange(8)
        return bytes(spoilt)

    def _cut(self, raw: bytes) -> bytes:
        return raw[: self._random.randint(0, len(raw))]

    def _insert(self, raw: bytes) -> bytes:
        at = self._random.randint(0, len(raw))
        return raw[:at] + self._random.randbytes(self._random.randint(1, 12)) + raw[at:]

    def _splice(self, raw: bytes) -> bytes:
        other = self._random.choice(self._valid)
        return raw[: self._random.randint(0, len(raw))] + other[self._random.randint(0, len(other)) :]

    def _noise(self, raw: bytes) -> bytes:
        del raw
        return self._random.randbytes(self._random.choice((0, 1, 2, 10, 100, 3000)))

    def _lie_about_a_length(self, raw: bytes) -> bytes:
        """A field whose length is beyond the message, beyond 32 bits, or negative."""
        content = self._random.randbytes(self._random.randint(0, 8))
        tag = varint(self._random.randint(1, 9) << 3 | DELIMITED)
        return raw + tag + varint(self._random.choice(NUMBERS)) + content

    def _add_unknown(self, raw: bytes) -> bytes:
        """Fields of other versions, groups among them, that end or do not."""
        number = self._random.choice((10, 15, 19, 100, 2**29 - 1, 19_000, 0))
        wire = self._random.choice((VARINT, FIXED64, DELIMITED, FIXED32))
        size = {VARINT: 1, FIXED64: 8, FIXED32: 4}.get(wire, self._random.randint(0, 40))
        unknown = encoded([Field(number, wire, bytes(size))])
        if self._random.random() < 0.3:
            depth = self._random.choice((1, 99, 101, 5000))
            unknown = varint(number << 3 | GROUP) * depth
            unknown += varint(number << 3 | END_GROUP) * self._random.choice((0, depth))
        at = self._random.choice((0, len(raw)))
        return raw[:at] + unknown + raw[at:]

    # ---- of fields ----

    def _of_fields(self, way: Callable[[list[Field], int], list[Field]]) -> Callable[[bytes], bytes]:
        """Spoils a field of the message, or of a message in it."""

        def spoil(raw: bytes) -> bytes:
            fields = fields_in(raw)
            if not fields:
                return self._flip(raw)
            at = self._random.randrange(len(fields))
            field = fields[at]
            if field.wire == DELIMITED and fields_in(field.content) and self._random.random() < 0.5:
                fields[at] = field._replace(content=spoil(field.content))
                return encoded(fields)
            return encoded(way(fields, at))

        return spoil

    def _repeat(self, fields: list[Field], at: int) -> list[Field]:
        where = self._random.randint(0, len(fields))
        return [*fields[:where], *[fields[at]] * self._random.choice((1, 2, 40)), *fields[where:]]

    def _drop(self, fields: list[Field], at: int) -> list[Field]:
        return [*fields[:at], *fields[at + 1 :]]

    def _rewire(self, fields: list[Field], at: int) -> list[Field]:
        fields[at] = fields[at]._replace(wire=self._random.randrange(8))
        return fields

    def _renumber(self, fields: list[Field], at: int) -> list[Field]:
        fields[at] = fields[at]._replace(number=self._random.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 24)))
        return fields

    def _overflow(self, fields: list[Field], at: int) -> list[Field]:
        """A number where a number is, or a list of them; of another kind, other bytes."""
        field, numbers = fields[at], [self._random.choice(NUMBERS) for _ in range(self._random.randint(1, 5))]
        if field.wire == VARINT:
            content = varint(numbers[0])
        elif field.wire == DELIMITED:
            content = b"".join(map(varint, numbers))
        else:
            content = self._random.randbytes(len(field.content))
        fields[at] = field._replace(content=content)
        return fields

    def _poison(self, fields: list[Field], at: int) -> list[Field]:
        """Elements of a tensor, whose size stays right."""
        field, floats = fields[at], len(fields[at].content) // 4
        if floats:
            first = 4 * self._random.randrange(floats)
            count = self._random.choice((1, floats - first // 4))
            part = self._random.choice(FLOATS) * count
            content = field.content[:first] + part + field.content[first + 4 * count :]
            fields[at] = field._replace(content=content)
        return fields

    def _borrow(self, fields: list[Field], at: int) -> list[Field]:
        """The content of another field, of this message or another."""
        others = fields_in(self._random.choice(self._valid)) or fields
        fields[at] = fields[at]._replace(content=self._random.choice(others).content)
        return fields

    def _nest(self, fields: list[Field], at: int) -> list[Field]:
        """A message in itself, deeper than a parser may follow."""
        field = fields[at]
        content = field.content[:200]
        for _ in range(self._random.choice((1, 10, 99, 101, 300))):
            content = encoded([Field(field.number, DELIMITED, content)])
        fields[at] = Field(field.number, DELIMITED, content)
        return fields
