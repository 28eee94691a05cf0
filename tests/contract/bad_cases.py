"""Ways to spoil a valid message, and what the answer has to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from recollect.v1 import memory_pb2 as pb
from tests.contract import messages
from tests.contract.messages import floats, tensor

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Spoilt:
    """A way to spoil a valid message, and what the answer has to say.

    Attributes:
        spoil: Changes the message.
        argument: Whom to blame.
        says: Parts of the message: what came, and what was expected.
        code: The status.
    """

    spoil: Callable[[Any], object]  # any message: its fields are named by the case
    argument: str
    says: tuple[str, ...]
    code: str = "INVALID_ARGUMENT"


def tensor_cases(argument: str, shape: tuple[int, ...]) -> dict[str, Spoilt]:
    """What may be wrong with a float32 tensor of this shape."""

    def put(made: pb.Tensor) -> Callable[[Any], object]:
        return lambda m: getattr(m, argument).CopyFrom(made)

    def shaped(*new: int) -> pb.Tensor:
        return pb.Tensor(data=floats(*shape).data, dtype=pb.DTYPE_FLOAT32, shape=new)

    def holding(value: float) -> pb.Tensor:
        array = np.full(shape, 0.5, dtype=np.float32)
        array[-1, ..., -1] = value
        return tensor(array)

    halves = tensor(np.zeros(shape, np.float16), pb.DTYPE_FLOAT16)
    integers = tensor(np.zeros(shape, np.int32), pb.DTYPE_INT32)
    untyped = pb.Tensor(data=floats(*shape).data, shape=shape)
    unknown = pb.Tensor(data=floats(*shape).data, shape=shape)
    unknown.dtype = cast("pb.DType.ValueType", 77)
    short = pb.Tensor(data=floats(*shape).data[:-1], dtype=pb.DTYPE_FLOAT32, shape=shape)
    long = pb.Tensor(data=floats(*shape).data + b"1", dtype=pb.DTYPE_FLOAT32, shape=shape)
    nothing_of_much = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1))
    size = int(np.prod(shape))
    says_shape = (str(list(shape)),)
    return {
        "absent": Spoilt(lambda m: m.ClearField(argument), argument, ("unspecified", "float32")),
        "no bytes of a huge shape": Spoilt(
            put(nothing_of_much), argument, ("2147483647, 2147483647", "sizes")
        ),
        "another rank": Spoilt(put(shaped(size)), argument, (str([size]), "expected")),
        "too high a rank": Spoilt(put(shaped(size, *[1] * 40)), argument, ("41",)),
        "another size": Spoilt(put(floats(*shape[:-1], shape[-1] + 1)), argument, ("expected",)),
        "another number of rows": Spoilt(put(floats(shape[0] + 1, *shape[1:])), argument, ("expected",)),
        "no tokens": Spoilt(put(floats(*shape[:2], 0, *shape[3:])), argument, ("0",)),
        "a negative size": Spoilt(put(shaped(-1, *shape[1:])), argument, ("-1",)),
        "two negative sizes": Spoilt(put(shaped(-shape[0], -shape[1], *shape[2:])), argument, ("-",)),
        "a huge size": Spoilt(put(shaped(2**62, *shape[1:])), argument, (str(2**62),)),
        "sizes whose product overflows": Spoilt(
            put(shaped(2**31 - 1, 2**31 - 1, 2**31 - 1, 4)), argument, ()
        ),
        "too few bytes": Spoilt(put(short), argument, (str(4 * size - 1), str(4 * size), *says_shape)),
        "too many bytes": Spoilt(put(long), argument, (str(4 * size + 1), str(4 * size))),
        "another float dtype": Spoilt(put(halves), argument, ("float16", "float32")),
        "integers": Spoilt(put(integers), argument, ("int32", "float32")),
        "no dtype": Spoilt(put(untyped), argument, ("unspecified", "float32")),
        "an unknown dtype": Spoilt(put(unknown), argument, ("77", "float32")),
        "NaN": Spoilt(put(holding(NAN)), argument, ("NaN",)),
        "infinity": Spoilt(put(holding(INF)), argument, ("infinite",)),
        "minus infinity": Spoilt(put(holding(-INF)), argument, ("infinite",)),
    }


def stream_cases() -> dict[str, Spoilt]:
    """What may be wrong with streams, layer and namespace, in any call that names them."""

    def named(*names: str) -> Callable[[Any], object]:
        return lambda m: (m.ClearField("streams"), m.streams.extend(names))

    def change(field: str, value: object) -> Callable[[Any], object]:
        return lambda m: setattr(m, field, value)

    return {
        "no streams": Spoilt(named(), "streams", ("0",)),
        "an empty stream name": Spoilt(named("a", ""), "streams", ("empty",)),
        "a stream name too long": Spoilt(named("a", "x" * 1000), "streams", ("1000", "128")),
        "a stream name with a line break": Spoilt(named("a", "b\nc"), "streams", ("'b\\nc'",)),
        "too many streams": Spoilt(named(*(f"s{i}" for i in range(2000))), "streams", ("2000", "1024")),
        "an unknown namespace": Spoilt(
            change("namespace", "nowhere"), "namespace", ("'nowhere'",), "NOT_FOUND"
        ),
        "no namespace": Spoilt(change("namespace", ""), "namespace", ("''",), "NOT_FOUND"),
    }


def layer_cases() -> dict[str, Spoilt]:
    """Layers that the namespace does not have."""

    def layer(number: int) -> Callable[[Any], object]:
        return lambda m: setattr(m, "layer", number)

    return {
        f"layer {number}": Spoilt(layer(number), "layer", (str(number), f"[{messages.LAYER}]"), "NOT_FOUND")
        for number in (0, -1, 2**31 - 1)
    }


def top_k_cases() -> dict[str, Spoilt]:
    """Numbers of neighbours that must not reach FAISS."""

    def top_k(number: int) -> Callable[[Any], object]:
        return lambda m: setattr(m, "top_k", number)

    return {
        f"top_k {number}": Spoilt(top_k(number), "top_k", (str(number), "1024"))
        for number in (0, -1, 1025, 2049, 2**31 - 1)
    }


def read_cases() -> dict[str, Spoilt]:
    """What may be wrong with any read."""
    queries = (messages.ROWS, messages.QUERY_HEADS, messages.TOKENS, messages.KEY_DIM)

    def put(made: pb.Tensor) -> Callable[[Any], object]:
        return lambda m: m.queries.CopyFrom(made)

    def unknown(m: Any) -> None:
        m.streams[1] = "nobody"

    return {
        **tensor_cases("queries", queries),
        **stream_cases(),
        **layer_cases(),
        "heads that are no multiple": Spoilt(put(floats(2, 3, 3, 4)), "queries", ("3 heads", "2")),
        "no heads": Spoilt(put(floats(2, 0, 3, 4)), "queries", ("0 heads",)),
        "fewer streams than rows": Spoilt(lambda m: m.streams.pop(), "queries", ("expected [1,",)),
        "an unknown stream": Spoilt(unknown, "streams", ("'nobody'",), "NOT_FOUND"),
        "a query so large that scores overflow": Spoilt(
            put(floats(2, 4, 3, 4, fill=1e30)), "queries", ("1e+30",)
        ),
    }


def scale_cases() -> dict[str, Spoilt]:
    """Scales that attention is not defined for, or not in float32."""

    def scale(value: float) -> Callable[[Any], object]:
        return lambda m: setattr(m, "scale", value)

    return {f"scale {v}": Spoilt(scale(v), "scale", (str(v),)) for v in (0.0, -1.0, NAN, INF, 1e300, 1e-300)}


def search_cases() -> dict[str, Spoilt]:
    """What may be wrong with a search or an attend."""

    def sequences(m: Any) -> None:
        m.min_sequences.extend([1, 2, 3])

    own = {"min_sequences": Spoilt(sequences, "min_sequences", ("3", "2"))}
    return {**read_cases(), **integer_cases(), **top_k_cases(), **own}


def integer_cases() -> dict[str, Spoilt]:
    """What may be wrong with queries that are rows of integers."""
    shape = (messages.ROWS, messages.QUERY_HEADS, messages.TOKENS, messages.KEY_DIM)
    row_bytes, rows = messages.KEY_DIM + 4, int(np.prod(shape[:-1]))

    def put(step: float, *new: int, less: int = 0) -> Callable[[Any], object]:
        good = bytes(range(1, messages.KEY_DIM + 1)) + np.float32(1.0).tobytes()
        bad = bytes(messages.KEY_DIM) + np.float32(step).tobytes()
        data = (good * (rows - 1) + bad)[: rows * row_bytes - less]
        made = pb.Tensor(data=data, dtype=pb.DTYPE_INT8, shape=new or shape)
        return lambda m: m.queries.CopyFrom(made)

    size = str(rows * row_bytes)
    return {
        "integers times NaN": Spoilt(put(NAN), "queries", ("int8", "NaN")),
        "integers times infinity": Spoilt(put(INF), "queries", ("int8", "infinite")),
        "integers times a negative number": Spoilt(put(-1.0), "queries", ("int8", "negative")),
        "integers so large that scores overflow": Spoilt(put(1e30), "queries", ("1.28e+32", "1.1259e+15")),
        "too few bytes of integers": Spoilt(put(1.0, less=1), "queries", (size, str(list(shape)))),
        "integers that are times nothing": Spoilt(put(1.0, less=4 * rows), "queries", (size,)),
        "integers of no dimension": Spoilt(
            lambda m: m.queries.CopyFrom(pb.Tensor(dtype=pb.DTYPE_INT8)), "queries", ("no dimensions",)
        ),
        "integers of another rank": Spoilt(put(1.0, rows, messages.KEY_DIM), "queries", ("4 dimensions",)),
        "integers of a negative size": Spoilt(put(1.0, -1, *shape[1:]), "queries", ("-1",)),
        "integers of no size": Spoilt(put(1.0, 2, 4, 3, 0), "queries", ("[2, 4, 3, 0]",)),
        "integers of a size near the end": Spoilt(put(1.0, 2**31 - 1), "queries", ("2147483647",)),
    }


def pairs_cases() -> dict[str, Spoilt]:
    """Dtypes that keys and values are not given in."""

    def pairs(number: int) -> Callable[[Any], object]:
        return lambda m: setattr(m, "pairs_dtype", number)

    return {
        f"pairs in {name}": Spoilt(pairs(number), "pairs_dtype", (name, "float32"))
        for name, number in (("float16", pb.DTYPE_FLOAT16), ("int64", pb.DTYPE_INT64), ("number 99", 99))
    }


def backward_cases() -> dict[str, Spoilt]:
    """What may be wrong with a backward call."""
    rows, heads, tokens = messages.ROWS, messages.QUERY_HEADS, messages.TOKENS
    gradient = tensor_cases("grad_output", (rows, heads, tokens, messages.VALUE_DIM))
    lse = tensor_cases("grad_lse", (rows, heads, tokens))
    for case in ("absent", "no tokens", "another rank"):  # absent is zero; of an LSE these say the shape
        lse.pop(case)

    def offsets(array: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Callable[[Any], object]:
        return lambda m: m.ids.offsets.CopyFrom(tensor(array, pb.DTYPE_INT32))

    def first_ids(*ids: int) -> Callable[[Any], object]:
        return lambda m: (m.ids.ClearField("first_ids"), m.ids.first_ids.extend(ids))

    shape = (rows, heads, tokens, messages.TOP_K)
    cases: dict[str, Spoilt] = {
        "no ids": Spoilt(lambda m: m.ClearField("ids"), "ids", ("unspecified", "int32")),
        "ids of another rank": Spoilt(offsets(np.zeros((2, 4), np.int32)), "ids", ("[2, 4]",)),
        "ids of other queries": Spoilt(offsets(np.zeros((2, 4, 9, 5), np.int32)), "ids", ("9", "3")),
        "no ids for a query": Spoilt(offsets(np.zeros((2, 4, 3, 0), np.int32)), "top_k", ("0",)),
        "too many ids": Spoilt(offsets(np.zeros((2, 4, 3, 1025), np.int32)), "top_k", ("1025", "1024")),
        "one first id too few": Spoilt(first_ids(1), "ids", ("1 first_ids",)),
        "a negative first id": Spoilt(first_ids(-5, 1), "ids", ("-5",)),
        "a first id beyond all": Spoilt(first_ids(2**63 - 1, 1), "ids", (str(2**63 - 1),)),
        "ids never given out": Spoilt(
            first_ids(10**17, 10**17), "ids", (str(10**17),), "FAILED_PRECONDITION"
        ),
        "ids of too few bytes": Spoilt(
            lambda m: setattr(m.ids.offsets, "data", b"123"),
            "ids",
            ("3 bytes", str(4 * int(np.prod(shape)))),
        ),
    }
    reads = read_cases()
    # A stream that was forgotten is, to a backward call, one whose entries are stale.
    reads["an unknown stream"] = Spoilt(reads["an unknown stream"].spoil, "ids", (), "FAILED_PRECONDITION")
    return {
        **reads,
        **scale_cases(),
        **cases,
        **{f"grad_output: {name}": case for name, case in gradient.items()},
        **{f"grad_lse: {name}": case for name, case in lse.items()},
    }


def add_cases() -> dict[str, Spoilt]:
    """What may be wrong with an add."""
    keys = tensor_cases("keys", (messages.ROWS, messages.HEADS, messages.TOKENS, messages.KEY_DIM))
    values = tensor_cases("values", (messages.ROWS, messages.HEADS, messages.TOKENS, messages.VALUE_DIM))
    values["no tokens"] = Spoilt(values["no tokens"].spoil, "values", ("expected",))

    def twice(m: Any) -> None:
        m.streams[1] = "a"

    def lengths(*numbers: int) -> Callable[[Any], object]:
        return lambda m: m.lengths.extend(numbers)

    def put(made: pb.Tensor) -> Callable[[Any], object]:
        return lambda m: m.keys.CopyFrom(made)

    return {
        **stream_cases(),
        **layer_cases(),
        **{f"keys: {name}": case for name, case in keys.items()},
        **{f"values: {name}": case for name, case in values.items()},
        "a stream twice": Spoilt(twice, "streams", ("'a' twice",)),
        "another number of heads": Spoilt(put(floats(2, 4, 3, 4)), "keys", ("[2, 4, 3, 4]", "[2, 2, 3, 4]")),
        "lengths of other rows": Spoilt(lengths(1, 2, 3), "lengths", ("3", "2")),
        "a negative length": Spoilt(lengths(1, -1), "lengths", ("-1", "3")),
        "a length beyond the tokens": Spoilt(lengths(4, 1), "lengths", ("4", "3")),
        "a request id too long": Spoilt(
            lambda m: setattr(m, "request_id", "x" * 65), "request_id", ("65", "64")
        ),
        "a key so large that scores overflow": Spoilt(
            put(floats(2, 2, 3, 4, fill=-1e30)), "keys", ("1e+30",)
        ),
    }


def evict_cases() -> dict[str, Spoilt]:
    """What may be wrong with an evict."""

    def change(field: str, value: object) -> Callable[[Any], object]:
        return lambda m: setattr(m, field, value)

    def no_selector(m: Any) -> None:
        m.ClearField("oldest")

    def unknown(m: Any) -> None:
        m.streams[1] = "nobody"

    def twice(m: Any) -> None:
        m.streams[1] = "a"

    return {
        **stream_cases(),
        "no selector": Spoilt(no_selector, "selector", ("missing", "oldest")),
        "all that is not all": Spoilt(change("all", False), "selector", ("missing", "all=true")),
        "a negative count": Spoilt(change("oldest", -1), "oldest", ("-1",)),
        "a negative age": Spoilt(change("older_than_s", -1.0), "older_than_s", ("-1",)),
        "an age that is no number": Spoilt(change("older_than_s", NAN), "older_than_s", ("nan",)),
        "an unknown layer": Spoilt(lambda m: m.layers.append(9), "layer", ("9", "[3]"), "NOT_FOUND"),
        "an unknown stream": Spoilt(unknown, "streams", ("'nobody'",), "NOT_FOUND"),
        "a stream twice": Spoilt(twice, "streams", ("'a' twice",)),
    }


def create_cases() -> dict[str, Spoilt]:
    """What may be wrong with a new namespace."""

    def changed(**changes: float) -> Callable[[Any], object]:
        return lambda m: m.spec.CopyFrom(messages.spec(**changes))

    def layers(*numbers: int) -> Callable[[Any], object]:
        return lambda m: (m.spec.ClearField("layers"), m.spec.layers.extend(numbers))

    def named(name: str) -> Callable[[Any], object]:
        return lambda m: setattr(m, "name", name)

    bounds = {"heads": 256, "key_dim": 1024, "value_dim": 1024, "capacity": 16_777_216}
    sizes = {
        f"{field} {value}": Spoilt(changed(**{field: value}), f"spec.{field}", (str(value), str(most)))
        for field, most in bounds.items()
        for value in (0, -1, most + 1, 2**31 - 1)
    }
    recalls = {
        f"recall {value}": Spoilt(changed(recall=value), "spec.recall", (str(value), "0.5", "1.0"))
        for value in (0.4999, 1.0001, -1.0, 1e-300, 1e300, NAN, INF, -INF)
    }
    return {
        **sizes,
        **recalls,
        "an unknown index": Spoilt(changed(index=77), "spec.index", ("77", "exact, ivf or auto")),
        "a negative index": Spoilt(changed(index=-1), "spec.index", ("-1", "exact, ivf or auto")),
        "no spec": Spoilt(lambda m: m.ClearField("spec"), "spec.dtype", ("unspecified", "float32")),
        "integers": Spoilt(changed(dtype=int(pb.DTYPE_INT64)), "spec.dtype", ("int64", "float32")),
        "an unknown dtype": Spoilt(changed(dtype=77), "spec.dtype", ("77", "float32")),
        "values of another float": Spoilt(
            changed(value_dtype=int(pb.DTYPE_BFLOAT16)), "spec.value_dtype", ("bfloat16", "int8", "float32")
        ),
        "values of an unknown dtype": Spoilt(changed(value_dtype=77), "spec.value_dtype", ("77", "int8")),
        "no layers": Spoilt(layers(), "spec.layers", ("empty",)),
        "a layer twice": Spoilt(layers(1, 2, 1), "spec.layers", ("twice", "[1, 1, 2]")),
        "a negative layer": Spoilt(layers(-1), "spec.layers", ("-1",)),
        "too many layers": Spoilt(layers(*range(257)), "spec.layers", ("257", "256")),
        "no name": Spoilt(named(""), "name", ("empty",)),
        "a name too long": Spoilt(named("x" * 129), "name", ("129", "128")),
        "a name with a space": Spoilt(named("a b"), "name", ("'a b'",)),
        "a name that is a path": Spoilt(named("../up"), "name", ("'../up'",)),
    }
