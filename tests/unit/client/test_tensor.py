"""Arrays to the wire and back, against NumPy and torch."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect._bits import to_bits
from recollect._results import Array, Dtype
from recollect._tensor import (
    floats_message,
    gradient_exponents,
    ids_message,
    read_floats,
    read_ids,
    user_array,
)
from recollect.errors import InternalError, InvalidArgumentError
from recollect.v1 import memory_pb2 as pb

DTYPES: list[Dtype] = ["float32", "float16", "bfloat16"]
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def round_trip(array: Array, dtype: Dtype) -> Array:
    user = user_array("keys", array)
    message = pb.Tensor.FromString(floats_message(user.to_wire(dtype), dtype).SerializeToString())
    return user.give_floats(read_floats("keys", message, dtype, user.shape), dtype)


@given(bits=hnp.arrays(np.uint32, 64))
def test_bfloat16_rounds_as_torch_does(bits: npt.NDArray[np.uint32]) -> None:
    """NumPy users would store other bfloat16 values than torch users, for any float32 there is."""
    values = bits.view(np.float32)
    ours = torch.from_numpy(to_bits(values, "bfloat16").view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@given(upper=st.integers(0, 2**15 - 1), lower=st.integers(-3, 3), sign=st.sampled_from([-1.0, 1.0]))
def test_bfloat16_of_float64_rounds_once(upper: int, lower: int, sign: float) -> None:
    """A float64 just beside a tie would be rounded to the tie first, and then the wrong way."""
    neighbours = (np.array([upper, upper + 1], dtype=np.uint32) << 16).view(np.float32)
    if not np.isfinite(neighbours).all():
        return
    pair = neighbours.astype(np.float64)
    value = (pair[0] + pair[1]) / 2
    for _ in range(abs(lower)):
        value = np.nextafter(value, pair[1] if lower > 0 else pair[0])
    expected = upper + (upper % 2 if lower == 0 else int(lower > 0))
    rounded = to_bits(np.array([sign * value]), "bfloat16")[0]
    assert rounded & 0x7FFF == expected
    assert bool(rounded >> 15) == (sign < 0)


@pytest.mark.parametrize("wire", DTYPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_round_trip(wire: Dtype, dtype: type[np.floating]) -> None:
    """A NumPy user would get other values, another dtype or another shape than one rounding explains."""
    values = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(dtype)
    back = round_trip(values, wire)
    assert isinstance(back, np.ndarray)
    assert back.dtype == dtype
    expected = torch.from_numpy(values).to(TORCH[wire]).to(torch.from_numpy(values).dtype).numpy()
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("wire", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_round_trip(wire: Dtype, dtype: torch.dtype) -> None:
    """A torch user would get other values, another dtype or another shape than one rounding explains."""
    values = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    back = round_trip(values, wire)
    assert isinstance(back, torch.Tensor)
    assert back.dtype == dtype
    assert not back.requires_grad
    torch.testing.assert_close(back, values.detach().to(TORCH[wire]).to(dtype), rtol=0, atol=0)
    back.mul_(2)  # a tensor that cannot be written to would be undefined behaviour


def test_layouts_do_not_matter() -> None:
    """A transposed or sliced array would be sent in the order of its memory."""
    values = (
        np.arange(2 * 3 * 4 * 8, dtype=np.float32).reshape(2, 4, 3, 8).transpose(0, 2, 1, 3)[:, ::-1, :, ::2]
    )
    np.testing.assert_array_equal(np.asarray(round_trip(values, "float32")), values)
    tensor = torch.arange(2 * 3 * 4 * 8).reshape(2, 4, 3, 8).float().transpose(1, 2)[..., ::2]
    for wire in DTYPES:
        back = round_trip(tensor, wire)
        assert isinstance(back, torch.Tensor)
        assert torch.equal(back, tensor)


@pytest.mark.parametrize("wire", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_that_negates_is_sent_as_it_reads(wire: Dtype, dtype: torch.dtype) -> None:
    """The imaginary part of a conjugate, which torch negates only where it is read, is refused by NumPy."""
    values = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    view = torch.complex(torch.zeros_like(values), values).conj().imag
    assert view.is_neg()
    back = round_trip(view, wire)
    assert isinstance(back, torch.Tensor)
    torch.testing.assert_close(back, -values.to(TORCH[wire]).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    "array",
    [
        np.ma.masked_array(np.ones((2, 2), np.float32)),
        np.ma.masked_array(np.ones((2, 2), np.float16), mask=[[True, False], [False, False]]),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, device="meta"),
    ],
    ids=["masked", "masked half", "sparse", "without values"],
)
@pytest.mark.parametrize("wire", DTYPES)
def test_what_has_not_all_values_is_refused(array: Array, wire: Dtype) -> None:
    """A mask is lost without a word; or what cannot be sent ends in an error of NumPy or torch."""
    with pytest.raises(InvalidArgumentError, match="keys must be") as caught:
        user_array("keys", array).to_wire(wire)
    assert caught.value.argument == "keys"


def test_wire_is_little_endian_rows() -> None:
    """A server in another language would read other numbers."""
    message = floats_message(
        user_array("keys", np.array([[1.0, -2.0]], dtype=">f4")).to_wire("float16"), "float16"
    )
    assert message.data == b"\x00\x3c\x00\xc0"
    assert list(message.shape) == [1, 2]
    assert message.dtype == pb.DTYPE_FLOAT16


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize(
    ("value", "wire"), [(70_000.0, "float16"), (-1e300, "float32"), (3.4e38, "bfloat16"), (1e300, "bfloat16")]
)
def test_out_of_range_is_refused(make: type, value: float, wire: Dtype) -> None:
    """A finite value would be stored as infinite, and poison every search of its stream."""
    array = make([value, 1.0], dtype=np.float64 if make is np.array else torch.float64)
    with pytest.raises(InvalidArgumentError, match=f"keys holds .*{wire}") as caught:
        user_array("keys", array).to_wire(wire)
    assert (caught.value.argument, caught.value.reason) == ("keys", "OUT_OF_RANGE")


@pytest.mark.parametrize(
    "array", [[1.0], "x", None, np.array([1]), np.array([True]), torch.tensor([1]), torch.tensor([1j])]
)
def test_other_kinds_are_refused(array: Array) -> None:
    """Lists, integers or complex numbers would be converted to something that nobody meant."""
    with pytest.raises(InvalidArgumentError, match="keys must") as caught:
        user_array("keys", array).to_wire("float32")
    assert caught.value.argument == "keys"


def test_numpy_results_are_read_only() -> None:
    """Whether a result can be written to would depend on its dtype and on how the call was split."""
    for wire in DTYPES:
        back = round_trip(np.ones(3, np.float32), wire)
        assert isinstance(back, np.ndarray)
        assert not back.flags.writeable


def test_same_dtype_is_a_view() -> None:
    """Results that need no conversion would be copied for nothing."""
    user = user_array("queries", np.ones((2, 2), np.float16))
    received = read_floats("output", floats_message(user.to_wire("float16"), "float16"), "float16", (2, 2))
    assert np.shares_memory(np.asarray(user.give_floats(received, "float16")), received)


@given(
    offsets=hnp.arrays(np.int64, (3, 2, 2, 3), elements=st.integers(-1, 2**31 - 1)),
    first=st.integers(0, 2**62),
)
def test_ids_round_trip(offsets: npt.NDArray[np.int64], first: int) -> None:
    """An id would come back as another entry's."""
    ids = np.where(offsets < 0, -1, first + offsets)
    message = pb.EntryIds.FromString(ids_message(ids).SerializeToString())
    assert len(message.offsets.data) == 4 * ids.size
    np.testing.assert_array_equal(read_ids(message, ids.shape), ids)


def test_ids_too_far_apart_are_refused() -> None:
    """An offset beyond int32 would wrap around to another entry."""
    with pytest.raises(InvalidArgumentError, match="ids"):
        ids_message(np.array([0, 2**31], dtype=np.int64).reshape(1, 1, 1, 2))


@pytest.mark.parametrize(
    "message",
    [
        pb.Tensor(data=b"\0" * 8, dtype=pb.DTYPE_FLOAT16, shape=[2]),
        pb.Tensor(data=b"\0" * 8, dtype=pb.DTYPE_FLOAT32, shape=[1, 2]),
        pb.Tensor(data=b"\0" * 7, dtype=pb.DTYPE_FLOAT32, shape=[2]),
        pb.Tensor(),
    ],
)
def test_malformed_replies_are_reported(message: pb.Tensor) -> None:
    """A reply of the wrong dtype, shape or length would be read as numbers all the same."""
    with pytest.raises(InternalError, match="scores came with"):
        read_floats("scores", message, "float32", (2,))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1.0, 1e6, 0.0])
def test_small_gradients_survive_float16(kind: str, magnitude: float) -> None:
    """Gradients below 6e-8 would become zero on their way to a float16 namespace."""
    values = np.random.default_rng(1).standard_normal((1, 2, 3, 8)).astype(np.float32)
    values *= np.float32(magnitude)
    array: Array = torch.from_numpy(values) if kind == "torch" else values
    user = user_array("grad_output", array)
    exponents = gradient_exponents(user, None)
    wire = user.to_wire("float16", exponents)
    back = np.asarray(user.give_floats(wire, "float16", exponents))
    assert np.isfinite(wire.astype(np.float32)).all()
    largest = np.abs(values).max(axis=-1, keepdims=True)
    assert (np.abs(back - values) <= largest * 2.0**-11).all()
