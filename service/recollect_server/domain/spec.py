"""What a namespace is. Fixed when it is made, because what is stored depends on it."""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass

from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.limits import Limits

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


class Dtype(enum.Enum):
    """How keys and values are stored."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    # There is one of each, and tables are looked up by it at every call: Enum's own hash runs in Python.
    __hash__ = object.__hash__

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is Dtype.FLOAT32 else 2


class ValueDtype(enum.Enum):
    """How values are stored where they are not as keys are."""

    INT8 = "int8"


STEP_BYTES = 4
"""Behind the integers of a value: the float32 that they are times."""


class IndexChoice(enum.Enum):
    """What answers reads."""

    EXACT = "exact"
    IVF = "ivf"
    AUTO = "auto"


RECALL_MIN, RECALL_MAX = 0.5, 1.0
"""Below half of the true neighbours a memory is noise, and nobody can find more than all of them."""

INDEX_DEFAULT, RECALL_DEFAULT = IndexChoice.AUTO, 0.95
"""Where a caller, or a record of an earlier version, says nothing."""


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """The shape of a namespace's memories.

    Attributes:
        layers: Transformer layers that have a memory, ascending.
        heads: Hkv.
        key_dim: Dk.
        value_dim: Dv.
        capacity: Entries per stream and layer; beyond it the oldest make room.
        dtype: Of keys and values in store, and of both as they travel.
        value_dtype: Of values in store, where it is another one.
        index: What answers reads: exact search, an inverted file, or what suits each bank as it grows.
        recall: Share of the true top_k, those of exact search, that reads find on average.
    """

    layers: tuple[int, ...]
    heads: int
    key_dim: int
    value_dim: int
    capacity: int
    dtype: Dtype
    index: IndexChoice = INDEX_DEFAULT
    recall: float = RECALL_DEFAULT
    value_dtype: ValueDtype | None = None

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry's keys and values, all heads."""
        return self.heads * (self.key_bytes + self.value_bytes)

    @property
    def key_bytes(self) -> int:
        """Bytes of one key in store."""
        return self.key_dim * self.dtype.itemsize_bytes

    @property
    def stored_values(self) -> Dtype | ValueDtype:
        """What the bits of values in store mean."""
        return self.value_dtype or self.dtype

    @property
    def value_bytes(self) -> int:
        """Bytes of one value in store."""
        if self.value_dtype is ValueDtype.INT8:
            return self.value_dim + STEP_BYTES
        return self.value_dim * self.dtype.itemsize_bytes

    def head_of(self, asking: int, query_heads: int) -> int:
        """The stored head that a query head reads; as many read each."""
        return asking * self.heads // query_heads

    def validate(self, limits: Limits) -> None:
        """Checks the spec against the server's bounds.

        Raises:
            InvalidArgumentError: Names the field, what came and what is allowed.
        """
        if not self.layers:
            raise InvalidArgumentError("spec.layers", "is empty; name at least one layer")
        if len(self.layers) > limits.layers_max:
            raise InvalidArgumentError(
                "spec.layers", f"has {len(self.layers)} layers; at most {limits.layers_max} are allowed"
            )
        if len(set(self.layers)) != len(self.layers):
            raise InvalidArgumentError("spec.layers", f"names a layer twice: {list(self.layers)}")
        if min(self.layers) < 0:
            raise InvalidArgumentError("spec.layers", f"has {min(self.layers)}; layers count from 0")
        _in_range("spec.heads", self.heads, limits.heads_max)
        _in_range("spec.key_dim", self.key_dim, limits.dim_max)
        _in_range("spec.value_dim", self.value_dim, limits.dim_max)
        _in_range("spec.capacity", self.capacity, limits.capacity_max)
        if not RECALL_MIN <= self.recall <= RECALL_MAX:  # so is NaN refused
            raise InvalidArgumentError(
                "spec.recall", f"is {self.recall}; it must be from {RECALL_MIN} to {RECALL_MAX}"
            )

    def difference(self, other: NamespaceSpec) -> str:
        """Names the first field in which two specs differ, as "heads is 8 there and 4 here"; "" if none."""
        for field in dataclasses.fields(self):
            there, here = getattr(self, field.name), getattr(other, field.name)
            if there != here:
                return f"{field.name} is {_plain(there)} there and {_plain(here)} here"
        return ""


def validate_name(argument: str, name: str, limits: Limits) -> None:
    """Checks the name of a namespace or stream.

    Raises:
        InvalidArgumentError: Empty, too long, or with characters that logs and paths would suffer from.
    """
    if not name:
        raise InvalidArgumentError(argument, "is empty")
    if len(name) > limits.name_length_max:
        raise InvalidArgumentError(
            argument, f"has {len(name)} characters; at most {limits.name_length_max} are allowed"
        )
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidArgumentError(
            argument, f"is {name!r}; use letters, digits and . _ : / @ + -, beginning with a letter or digit"
        )


def is_name(name: str, limits: Limits) -> bool:
    """Whether a namespace or stream could have this name."""
    return len(name) <= limits.name_length_max and NAME_PATTERN.fullmatch(name) is not None


def _in_range(argument: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidArgumentError(argument, f"is {value}; it must be from 1 to {most}")


def _plain(value: object) -> object:
    if isinstance(value, Dtype | ValueDtype | IndexChoice):
        return value.value
    return list(value) if isinstance(value, tuple) else value
