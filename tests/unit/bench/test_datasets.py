"""Data sets are what their names say, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import recollect
from recollect_bench import captured, datasets
from recollect_bench.reading import ROWS, read
from recollect_torch import session
from recollect_torch.demo import checkpoint
from recollect_torch.demo.corpus import standard_library
from recollect_torch.demo.rows import SEGMENT
from recollect_torch.demo.run import CONFIG
from recollect_torch.transformer import MemorizingTransformer

SYNTHETIC = ("mixture", "subspace", "anisotropic", "sphere")
ENTRIES = 4000


def _spectrum(name: str) -> NDArray[np.float64]:
    """Shares of the variance along the principal axes, the largest first."""
    keys = datasets.make(name, entries=ENTRIES, queries=1).keys.astype(np.float64)
    variances = np.linalg.svd(keys - keys.mean(axis=0), compute_uv=False) ** 2
    shares: NDArray[np.float64] = variances / variances.sum()
    return shares


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_same_arguments_give_the_same_numbers(name: str) -> None:
    """Two runs with one seed measure different data, or two seeds the same."""
    one, same = (datasets.make(name, entries=100, queries=10, seed=3) for _ in range(2))
    other = datasets.make(name, entries=100, queries=10, seed=4)
    for part in ("keys", "values", "queries"):
        np.testing.assert_array_equal(getattr(one, part), getattr(same, part))
        assert not np.array_equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_keys_and_queries_have_length_one(name: str) -> None:
    """Inner products of a data set are dominated by lengths, which memorizing attention's are not."""
    data = datasets.make(name, entries=100, queries=10, dim=768, value_dim=5)
    assert data.keys.shape == (100, 768)
    assert data.values.shape == (100, 5)
    assert data.queries.shape == (10, 768)
    np.testing.assert_allclose(np.linalg.norm(data.keys, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(data.queries, axis=1), 1, atol=1e-5)
    assert {array.dtype for array in (data.keys, data.values, data.queries)} == {np.dtype(np.float32)}


def test_the_mixture_is_easy() -> None:
    """A query has no neighbours of its own centre: the easy data set is not easy."""
    data = datasets.make("mixture", entries=20_000, queries=50)
    scores = np.sort(data.queries @ data.keys.T, axis=1)[:, ::-1]
    assert scores[:, 5].min() > 0.8
    assert scores[:, 200].max() < 0.6


def test_the_subspace_has_sixteen_dimensions() -> None:
    """The keys fill all dimensions, or none beyond the subspace has noise."""
    spectrum = _spectrum("subspace")
    assert spectrum[:16].sum() > 0.98
    assert spectrum[16:].min() > 0


def test_the_spectrum_decays() -> None:
    """The anisotropic Gaussian is isotropic, or flat in most directions."""
    spectrum = _spectrum("anisotropic")
    assert spectrum[0] > 5 * spectrum[10] > 5 * spectrum[60] > 0


def test_the_sphere_is_uniform() -> None:
    """The worst case has a structure that an index could use."""
    spectrum = _spectrum("sphere")
    assert spectrum[0] < 2 * spectrum[-1]


def test_an_unknown_name_is_refused() -> None:
    """A misspelt data set is measured as another."""
    with pytest.raises(ValueError, match="there is no data set 'sphre'; there are keys, mixture"):
        datasets.make("sphre", entries=1, queries=1)


def test_captured_keys_are_what_a_memory_receives() -> None:
    """The data set that counts is not what the demo's model sends to its memory."""
    layer, heads = CONFIG.memory_layers[0], CONFIG.heads
    size = CONFIG.dim // heads
    keys, values, queries = read(0, ROWS * 2 * SEGMENT)
    text = np.concatenate([document.tokens for document in standard_library().train])[: 2 * SEGMENT]
    model = MemorizingTransformer(CONFIG).eval()
    checkpoint.load(model)
    with recollect.connect("embedded://") as client:
        memory = client.create_namespace(
            "m", layers=[layer], heads=heads, key_dim=size, value_dim=size, capacity=1024, dtype="float32"
        )
        with session(memory, streams=["s"]) as reading, torch.no_grad():
            for start in (0, SEGMENT):
                model(torch.from_numpy(text[start : start + SEGMENT].astype(np.int64))[None])
                reading.commit()
            reading.flush()
        asked = queries[None, :1].transpose(0, 2, 1, 3)
        found = memory.search(layer, asked, top_k=2 * SEGMENT, streams=["s"], include=["keys", "values"])
    assert found.keys is not None
    assert found.values is not None
    in_order = np.argsort(found.ids[0, :, 0], axis=1)[..., None]
    for stored, captured_part in ((found.keys, keys), (found.values, values)):
        sent = np.take_along_axis(stored[0, :, 0], in_order, axis=1)  # [heads, tokens, size]
        # They are kept in half precision between runs.
        np.testing.assert_allclose(sent, captured_part[: 2 * SEGMENT].transpose(1, 0, 2), atol=4e-3)


def test_chapters_are_kept_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer data set does not begin with the shorter one, or the text is read again each time."""
    monkeypatch.setattr(captured, "CACHE", tmp_path)
    monkeypatch.setattr(captured, "CHAPTER", ROWS * SEGMENT)
    monkeypatch.setattr(captured, "LATER", 64)
    short = datasets.make("keys", entries=500, queries=20)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    long = datasets.make("keys", entries=ROWS * SEGMENT + 100, queries=64)
    assert len(files) == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in files.items())
    np.testing.assert_array_equal(long.keys[:500], short.keys)
    np.testing.assert_allclose(np.linalg.norm(long.keys, axis=1), 1, atol=2e-3)
    assert long.queries.shape == (64, short.dim)
