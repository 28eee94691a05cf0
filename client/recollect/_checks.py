"""Checks of arguments that need no server. Each error names the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal, get_args

from recollect._results import Dtype, Index, NamespaceSpec
from recollect.errors import InvalidArgumentError, NotFoundError

Include = Literal["keys", "values"]


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


def check_int(argument: str, value: int, *, minimum: int | None = None, maximum: int = 0) -> int:
    """An int within bounds. A `maximum` of 0 is no bound: so the server says that it has none."""
    if isinstance(value, bool):
        raise refusal(argument, "an integer", value)
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal(argument, "an integer", value) from None
    if minimum is not None and number < minimum:
        raise refusal(argument, f"at least {minimum}", number)
    if maximum and number > maximum:
        raise refusal(argument, f"at most {maximum} (the server's limit)", number)
    return number


def check_positive(argument: str, value: float, *, zero_ok: bool = False) -> float:
    """A finite float above zero, or from zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
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
    listed = [check_text(f"{argument}[{row}]", name) for row, name in enumerate(names)]
    if count is not None and len(listed) != count:
        raise refusal(argument, f"{count} names, one for each batch row", f"{len(listed)}")
    if distinct and len(set(listed)) != len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise refusal(argument, "names that are all different", f"{twice!r} twice")
    return listed


def check_text(argument: str, value: object) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise refusal(argument, "a string that is not empty", repr(value))
    return value


def check_ints(
    argument: str, values: Sequence[int] | None, count: int, *, minimum: int, maximum: int | None = None
) -> list[int]:
    """One int for each batch row, or [] for None."""
    if values is None:
        return []
    numbers = [check_int(f"{argument}[{row}]", value) for row, value in enumerate(values)]
    if len(numbers) != count:
        raise refusal(argument, f"{count} integers, one for each batch row", f"{len(numbers)}")
    for number in numbers:
        if number < minimum or (maximum is not None and number > maximum):
            bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
            raise refusal(argument, f"integers {bounds}", number)
    return numbers


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
    for what in include:
        if what not in get_args(Include):
            raise refusal("include", 'only "keys" and "values"', repr(what))
    chosen: set[Include] = set()
    if "keys" in include:
        chosen.add("keys")
    if "values" in include:
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
    index: Index,
    recall: float,
) -> NamespaceSpec:
    """A namespace spec that can be sent; the server checks its limits."""
    check_choice("dtype", dtype, get_args(Dtype))
    check_choice("index", index, get_args(Index))
    if isinstance(layers, int):
        raise refusal("layers", "a list of layer numbers", layers)
    numbers = tuple(check_int("layers", layer, minimum=0) for layer in layers)
    if not numbers or len(set(numbers)) != len(numbers):
        raise refusal("layers", "at least one layer, and none twice", list(numbers))
    return NamespaceSpec(
        layers=numbers,
        heads=check_int("heads", heads, minimum=1),
        key_dim=check_int("key_dim", key_dim, minimum=1),
        value_dim=check_int("value_dim", value_dim, minimum=1),
        capacity=check_int("capacity", capacity, minimum=1),
        dtype=dtype,
        index=index,
        recall=check_positive("recall", recall),  # on the wire 0 is the server's default
    )


def refusal(argument: str, expected: str, came: object) -> InvalidArgumentError:
    """The error for an argument that is not as it must be."""
    return InvalidArgumentError(
        f"{argument} must be {expected}; got {came}", argument=argument.partition("[")[0]
    )
