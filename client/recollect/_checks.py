"""Checks of arguments that need no server. Each error names the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, get_args

from recollect._results import Dtype, Index, NamespaceSpec, ValueDtype
from recollect.errors import InvalidArgumentError, NotFoundError

Include = Literal["keys", "values"]
Item = TypeVar("Item")

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
"""Of the wire's fields: what is larger cannot be sent, whatever the server allows."""


def check_layer(argument: str, layer: int, spec: NamespaceSpec) -> int:
    """The layer, if the namespace has it.

    Raises:
        NotFoundError: It does not, as the server would say.
    """
    number = check_int(argument, layer)
    if number not in spec.layers:
        raise NotFoundError(
            f"{argument} must be of the namespace's layers {list(spec.layers)}; got {number}",
            argument=argument,
            reason="LAYER_NOT_FOUND",
        )
    return number


def check_int(argument: str, value: int, *, minimum: int | None = None, maximum: int = INT64_MAX) -> int:
    """An int within bounds."""
    if isinstance(value, bool):
        raise refusal(argument, "an integer", value)
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal(argument, "an integer", value) from None
    if minimum is not None and number < minimum:
        raise refusal(argument, f"at least {minimum}", number)
    if number > maximum:
        raise refusal(argument, f"at most {maximum}", number)
    return number


def check_limit(argument: str, number: int, limit: int) -> None:
    """Within what the server says that it takes; 0: it has no bound."""
    if limit and number > limit:
        raise refusal(argument, f"at most {limit} (the server's limit)", number)


def check_top_k(top_k: int) -> int:
    """A number of entries; the server has a bound of its own."""
    return check_int("top_k", top_k, minimum=1, maximum=INT32_MAX)


def check_list(argument: str, values: Iterable[Item], expected: str) -> list[Item]:
    """A list of what is in something that can be gone through, as lists, tuples and arrays can."""
    try:
        return list(values)
    except TypeError:
        raise refusal(argument, expected, repr(values)) from None


def check_positive(argument: str, value: float, *, zero_ok: bool = False) -> float:
    """A finite float above zero, or from zero."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # the last one of an integer too large for a float
        raise refusal(argument, "a number", value) from None
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_ok):
        raise refusal(argument, "finite and not negative" if zero_ok else "finite and above 0", number)
    return number


def check_names(
    argument: str, names: Sequence[str], *, count: int | None = None, distinct: bool = False
) -> list[str]:
    """Stream names: strings, one for each batch row where there are rows."""
    if isinstance(names, str):
        raise refusal(argument, "a list of names", f"one string, {names!r}")
    given = check_list(argument, names, "a list of names")
    listed = [check_text(f"{argument}[{row}]", name) for row, name in enumerate(given)]
    if count is not None and len(listed) != count:
        raise refusal(argument, f"{count} names, one for each batch row", f"{len(listed)}")
    if distinct and len(set(listed)) != len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise refusal(argument, "names that are all different", f"{twice!r} twice")
    return listed


def check_text(argument: str, value: object) -> str:
    """A string that is not empty, and that UTF-8 has bytes for."""
    if not isinstance(value, str) or not value:
        raise refusal(argument, "a string that is not empty", repr(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refusal(argument, "a string without lone surrogates", repr(value)) from None
    return value


def check_ints(
    argument: str, values: Sequence[int] | None, count: int, *, minimum: int, maximum: int = INT64_MAX
) -> list[int]:
    """One int for each batch row, or [] for None."""
    if values is None:
        return []
    expected = f"{count} integers, one for each batch row"
    given = check_list(argument, values, expected)
    if len(given) != count:
        raise refusal(argument, expected, f"{len(given)}")
    return [
        check_int(f"{argument}[{row}]", value, minimum=minimum, maximum=maximum)
        for row, value in enumerate(given)
    ]


def check_queries(shape: tuple[int, ...], spec: NamespaceSpec) -> None:
    """[B, Hq, T, Dk] with Hq a multiple of the namespace's heads."""
    check_rank("queries", shape, f"[B, Hq, T, {spec.key_dim}] with Hq a multiple of {spec.heads}")
    if shape[1] % spec.heads or shape[3] != spec.key_dim:
        raise refusal(
            "queries", f"shape [B, Hq, T, {spec.key_dim}] with Hq a multiple of {spec.heads}", list(shape)
        )


def check_rank(argument: str, shape: tuple[int, ...], expected: str) -> None:
    """Four axes, none of size 0."""
    if len(shape) != 4 or 0 in shape:
        raise refusal(argument, f"shape {expected}, no size 0", list(shape))


def check_shape(argument: str, shape: tuple[int, ...], expected: Sequence[int], because: str = "") -> None:
    """Exactly this shape."""
    if list(shape) != list(expected):
        raise refusal(argument, f"shape {list(expected)}{because}", list(shape))


def check_include(include: Sequence[str]) -> frozenset[Include]:
    """A tuple of "keys" and "values"."""
    if isinstance(include, str):
        raise refusal("include", 'a tuple such as ("keys", "values")', f"the string {include!r}")
    given = check_list("include", include, 'a tuple such as ("keys", "values")')
    for what in given:
        if what not in get_args(Include):
            raise refusal("include", 'only "keys" and "values"', repr(what))
    chosen: set[Include] = set()
    if "keys" in given:
        chosen.add("keys")
    if "values" in given:
        chosen.add("values")
    return frozenset(chosen)


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """One of a few strings."""
    if value not in choices:
        raise refusal(argument, " or ".join(repr(choice) for choice in choices), repr(value))


def check_spec(
    *,
    layers: Sequence[int],
    heads: int,
    key_dim: int,
    value_dim: int,
    capacity: int,
    dtype: Dtype,
    value_dtype: ValueDtype | None,
    index: Index,
    recall: float,
) -> NamespaceSpec:
    """A namespace spec that can be sent; the server checks its limits."""
    check_choice("dtype", dtype, get_args(Dtype))
    if value_dtype not in (None, dtype, "int8"):
        raise refusal("value_dtype", f"'int8' or, as dtype, {dtype!r}", repr(value_dtype))
    check_choice("index", index, get_args(Index))
    numbers = tuple(
        check_int("layers", layer, minimum=0, maximum=INT32_MAX)
        for layer in check_list("layers", layers, "a list of layer numbers")
    )
    if not numbers or len(set(numbers)) != len(numbers):
        raise refusal("layers", "at least one layer, and none twice", list(numbers))
    return NamespaceSpec(
        layers=numbers,
        heads=check_int("heads", heads, minimum=1, maximum=INT32_MAX),
        key_dim=check_int("key_dim", key_dim, minimum=1, maximum=INT32_MAX),
        value_dim=check_int("value_dim", value_dim, minimum=1, maximum=INT32_MAX),
        capacity=check_int("capacity", capacity, minimum=1),
        dtype=dtype,
        index=index,
        recall=check_positive("recall", recall),  # on the wire 0 is the server's default
        value_dtype=None if value_dtype == dtype else value_dtype,
    )


def refusal(argument: str, expected: str, came: object) -> InvalidArgumentError:
    """The error for an argument that is not as it must be."""
    return InvalidArgumentError(
        f"{argument} must be {expected}; got {came}", argument=argument.partition("[")[0]
    )
