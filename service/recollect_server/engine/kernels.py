"""The compiled kernels (`native/`), with arrays in place of pointers. Calls release the interpreter lock."""

from __future__ import annotations

import ctypes
import logging
import math
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Float32, Int64, Raw, RowBytes
from recollect_server.domain.spec import STEP_BYTES, Dtype, NamespaceSpec, ValueDtype

log = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("_native.so")

Int32 = NDArray[np.int32]

FLOAT32 = Dtype.FLOAT32

DTYPES: dict[Dtype | ValueDtype, int] = {
    Dtype.FLOAT32: 0,
    Dtype.FLOAT16: 1,
    Dtype.BFLOAT16: 2,
    ValueDtype.INT8: 3,
}

ROOM_FACTOR, ROOM_MORE, ROOM_MULTIPLE = 2, 32, 16
"""Candidates of a query before all but the best are let go: twice top_k and some, to whole vectors."""


class _Best(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("scores", "slots", "counts", "thresholds")),
        ("queries", c_int64),
        ("room", c_int32),
        ("top_k", c_int32),
    )


class _Scan(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "bias")),
        *((name, c_int64) for name in ("query_stride", "key_stride", "begin", "end")),
        *((name, c_int32) for name in ("heads", "dim", "query_dtype", "key_dtype")),
    )


class _Attend(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("scores", "slots", "values")),
        ("value_stride", c_int64),
        *((name, c_void_p) for name in ("output", "lse")),
        *((name, c_int64) for name in ("output_stride", "lse_stride", "hits_stride", "queries")),
        *((name, c_int32) for name in ("heads", "top_k", "dim", "dtype")),
        ("scale", c_float),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("queries", "grad_output", "grad_lse", "slots", "keys", "values")),
        *((name, c_int64) for name in ("key_stride", "value_stride")),
        ("gradient", c_void_p),
        ("queries_per_head", c_int64),
        *((name, c_int32) for name in ("heads", "top_k", "key_dim", "value_dim", "key_dtype", "value_dtype")),
        ("scale", c_float),
    )


@cache
def library() -> ctypes.CDLL:
    """The functions of `native/kernels.h`; loaded once."""
    library = ctypes.CDLL(str(LIBRARY))
    pointers, counts = (c_void_p,), (c_int64,)
    for name, arguments in {
        "rc_scan": 2 * pointers,
        "rc_finish": 3 * pointers,
        "rc_attend": pointers,
        "rc_attend_rows": 2 * pointers,
        "rc_attend_backward": pointers,
        "rc_gather": (*2 * pointers, *2 * counts, *pointers),
        "rc_gather_as": (c_void_p, c_int32, c_void_p, c_int64, c_int32, c_int32, c_void_p),
        "rc_to_int8": (c_void_p, c_int32, c_int64, c_int32, c_void_p),
        "rc_accumulate": (*2 * pointers, c_int64, c_int32, *2 * pointers),
        "rc_multiply_centroids": (*pointers, c_int64, *pointers, c_int32, c_int32, *pointers),
        "rc_lists_free": pointers,
        "rc_lists_extend": (*pointers, *counts),
        "rc_lists_put": (*pointers, *2 * counts, *pointers),
        "rc_lists_sizes": 2 * pointers,
        "rc_lists_of": 2 * pointers,
        "rc_probe": (*2 * pointers, *2 * (c_int32,)),
        "rc_probe_nearest": (*2 * pointers, *2 * counts),
        "rc_askers": (c_void_p, c_int64, c_int32, *2 * pointers),
        "rc_codes_put": (*pointers, *2 * counts, *pointers),
        "rc_codes_sums": (*2 * pointers, c_int64, c_void_p, c_int32, *2 * pointers),
        "rc_codes_probe": 2 * pointers,
        "rc_set_threads": (c_int32,),
        "rc_give_back": (),
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.rc_lists_new.argtypes, library.rc_lists_new.restype = (c_int32, c_int64), c_void_p
    library.rc_lists_bytes.argtypes, library.rc_lists_bytes.restype = pointers, c_int64
    library.rc_isa.argtypes, library.rc_isa.restype = (), c_char_p
    return library


@cache
def available() -> bool:
    """Whether the package was built with its kernels, and they load here."""
    try:
        library()
    except (AttributeError, OSError) as error:  # not there, of another platform, or of older sources
        log.warning("the compiled kernels cannot be used (%s): searching with FAISS, which is slower", error)
        return False
    return True


def instruction_set() -> str:
    """Which of the compiled variants runs here: "amx", "vnni", "avx512", "avx2" or "generic"."""
    name: bytes = library().rc_isa()
    return name.decode()


def rounds_first() -> bool:
    """Whether the variant that runs here leaves keys out by rounded products (`native/rounded.h`)."""
    return instruction_set() in ("vnni", "amx")


def use_threads(threads: int) -> None:
    """How many threads one call may use."""
    library().rc_set_threads(threads)


def give_back() -> None:
    """Frees what threads keep to calculate in; their next calls get it anew. Nothing while one is running."""
    if library.cache_info().currsize:
        library().rc_give_back()


class Best:
    """The best slots so far of `queries` queries.

    Attributes:
        thresholds: float32 [N], what a further score must exceed.
    """

    __slots__ = ("_counts", "_scores", "_slots", "_struct", "queries", "thresholds", "top_k")

    def __init__(self, queries: int, top_k: int) -> None:
        room = room_of(top_k)
        self.queries, self.top_k = queries, top_k
        self._scores = np.empty((queries, room), dtype=np.float32)
        self._slots = np.empty((queries, room), dtype=np.int32)
        self._counts = np.zeros(queries, dtype=np.int32)
        self.thresholds = np.full(queries, -np.inf, dtype=np.float32)
        arrays = (self._scores, self._slots, self._counts, self.thresholds)
        self._struct = _Best(*map(address, arrays), queries, room, top_k)

    @property
    def reference(self) -> object:
        """For a call of the library."""
        return ctypes.byref(self._struct)

    def ordered(self) -> tuple[Float32, Int64]:
        """Scores float32 [N, K], descending, -inf where there are fewer; slots int64 [N, K], -1 there."""
        scores = np.empty((self.queries, self.top_k), dtype=np.float32)
        slots = np.empty((self.queries, self.top_k), dtype=np.int64)
        library().rc_finish(self.reference, address(scores), address(slots))
        return scores, slots


def scan(
    best: Best,
    queries: Raw,
    keys: Raw,
    *,
    query_dtype: Dtype,
    key_dtype: Dtype,
    rows: slice,
    bias: Float32 | None = None,
) -> None:
    """Takes the best of some rows into `best`.

    Args:
        best: Of heads x n queries.
        queries: [heads, n, D].
        keys: [heads, slots, D].
        query_dtype: What the bits of queries mean.
        key_dtype: What the bits of keys mean.
        rows: Which slots, of all heads.
        bias: [slots], added to each product.
    """
    heads, _, dim = queries.shape
    bound = _Scan(
        address(queries),
        address(keys),
        None if bias is None else address(bias),
        stride_of(queries),
        stride_of(keys),
        rows.start,
        rows.stop,
        heads,
        dim,
        DTYPES[query_dtype],
        DTYPES[key_dtype],
    )
    library().rc_scan(ctypes.byref(bound), best.reference)


def attend(
    scores: Float32,
    slots: Int64,
    values: Raw | RowBytes,
    *,
    dtype: Dtype | ValueDtype,
    scale: float,
    output: Float32,
    lse: Float32,
) -> None:
    """softmax(scale * scores) v.

    Args:
        scores: [heads, n, K], contiguous.
        slots: [heads, n, K], contiguous; -1 for none.
        values: [heads, slots, Dv], or rows of INT8.
        dtype: What the bits of values mean.
        scale: Of the scores.
        output: [heads, n, Dv], to be filled: 0 where there is no entry.
        lse: [heads, n], to be filled: -inf where there is no entry.
    """
    heads, queries, top_k = scores.shape
    bound = _Attend(
        address(scores),
        address(slots),
        address(values),
        stride_of(values),
        address(output),
        address(lse),
        stride_of(output),
        stride_of(lse),
        stride_of(scores),
        queries,
        heads,
        top_k,
        output.shape[2],
        DTYPES[dtype],
        scale,
    )
    library().rc_attend(ctypes.byref(bound))


def attend_backward(
    queries: Float32,
    slots: Int64,
    keys: Raw,
    values: Raw | RowBytes,
    *,
    spec: NamespaceSpec,
    scale: float,
    grad_output: Float32,
    grad_lse: Float32 | None,
) -> Float32:
    """ds_i = p_i (go.v_i - go.o + glse); dq = scale sum_i ds_i k_i. All arguments are contiguous.

    Args:
        queries: [heads, n, Dk].
        slots: [heads, n, K]; -1 for none.
        keys: [heads, slots, Dk], contiguous within a head.
        values: [heads, slots, Dv], or rows of INT8; contiguous within a head.
        spec: Says what the bits of keys and values mean.
        scale: Of the forward call.
        grad_output: [heads, n, Dv].
        grad_lse: [heads, n], or None for zero.

    Returns:
        [heads, n, Dk].
    """
    heads, count, key_dim = queries.shape
    gradient = np.empty(queries.shape, dtype=np.float32)
    bound = _Backward(
        address(queries),
        address(grad_output),
        None if grad_lse is None else address(grad_lse),
        address(slots),
        address(keys),
        address(values),
        stride_of(keys),
        stride_of(values),
        address(gradient),
        count,
        heads,
        slots.shape[2],
        key_dim,
        grad_output.shape[2],
        DTYPES[spec.dtype],
        DTYPES[spec.stored_values],
        scale,
    )
    library().rc_attend_backward(ctypes.byref(bound))
    return gradient


def gather(
    rows: Raw | RowBytes, slots: Int64, into: Raw, *, dtype: Dtype | ValueDtype, to_dtype: Dtype
) -> None:
    """Copies rows [slots, D] at `slots` [...], contiguous, to `into` [..., D], contiguous; 0 for -1.

    Args:
        rows: Of `dtype`.
        slots: int64.
        into: Of `to_dtype`.
        dtype: What the bits of rows mean.
        to_dtype: What they are to mean in `into`.
    """
    places, dim = address(slots), into.shape[-1]
    if dtype is to_dtype:
        library().rc_gather(address(rows), places, slots.size, dim * rows.itemsize, address(into))
        return
    library().rc_gather_as(
        address(rows), DTYPES[dtype], places, slots.size, dim, DTYPES[to_dtype], address(into)
    )


def converted(rows: Raw, *, dtype: Dtype, to_dtype: Dtype) -> Raw:
    """Rows [..., D], contiguous, in another dtype; float32 is rounded to the nearest, ties to even."""
    into: Raw = np.empty(rows.shape, RAW_TYPES[to_dtype])
    dim = rows.shape[-1]
    slots = np.arange(math.prod(rows.shape[:-1]))
    gather(rows.reshape(-1, dim), slots, into.reshape(-1, dim), dtype=dtype, to_dtype=to_dtype)
    return into


def to_int8(values: DenseArray) -> RowBytes:
    """Values [..., D] as rows of INT8: see `int8_rows.pack`."""
    *shape, dim = values.shape
    rows = np.empty((*shape, dim + STEP_BYTES), dtype=np.uint8)
    raw = np.ascontiguousarray(values.raw)
    library().rc_to_int8(address(raw), DTYPES[values.dtype], math.prod(shape), dim, address(rows))
    return rows


def accumulate(rows: Float32, assigned: Int64, sums: NDArray[np.float64], counts: Int64) -> None:
    """Adds rows [n, D] to sums [L, D] of the lists that they are assigned to; counts them in counts [L]."""
    library().rc_accumulate(
        address(rows), address(assigned), len(rows), rows.shape[1], address(sums), address(counts)
    )


def room_of(top_k: int) -> int:
    """For candidates of a query."""
    return -(-(ROOM_FACTOR * top_k + ROOM_MORE) // ROOM_MULTIPLE) * ROOM_MULTIPLE


def address(array: NDArray[np.generic]) -> int:
    """Of the first element."""
    return array.ctypes.data


def stride_of(array: NDArray[np.generic]) -> int:
    """Elements from a head to the next one."""
    return array.strides[0] // array.itemsize
