"""What the demo reads."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from recollect_torch.demo.corpus import HELD_OUT, folder, standard_library


def test_held_out_modules_are_not_trained_on() -> None:
    """The demo is judged by text that it was trained on."""
    corpus = standard_library()
    trained, held_out = ({d.name for d in part} for part in (corpus.train, corpus.held_out))
    assert held_out == set(HELD_OUT)
    assert not trained & held_out
    for document in corpus.held_out:
        middle = document.tokens.size // 2
        sample = document.tokens[middle : middle + 400].tobytes()
        assert not any(sample in other.tokens.tobytes() for other in corpus.train)


def test_long_documents_come_first() -> None:
    """Rows begin with documents too short to need a memory."""
    sizes = [d.tokens.size for d in standard_library().train]
    assert sizes == sorted(sizes, reverse=True)


def test_a_package_is_one_document_in_order(tmp_path: Path) -> None:
    """The files of a package are read apart, or a test folder is taken for library text."""
    package = tmp_path / "lib" / "parcel"
    (package / "test").mkdir(parents=True)
    for name, text in {"__init__.py": "a", "b.py": "b", "test/t.py": "t"}.items():
        (package / name).write_text(text * 3000)
    (document,) = standard_library(tmp_path / "lib").train
    text = document.tokens.tobytes().decode()
    assert text == f"# parcel/__init__.py\n{'a' * 3000}\n\n# parcel/b.py\n{'b' * 3000}"


def test_a_folder_of_text_plain_or_compressed(tmp_path: Path) -> None:
    """A user's .gz files are read as compressed bytes, or short ones are not dropped."""
    (tmp_path / "plain.txt").write_bytes(b"x" * 6000)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"y" * 5000))
    (tmp_path / "short.txt").write_bytes(b"z")
    corpus = folder(tmp_path)
    assert [(d.name, d.tokens.tobytes()) for d in (*corpus.train, *corpus.held_out)] == [
        ("plain.txt", b"x" * 6000),
        ("packed.txt.gz", b"y" * 5000),
    ]


@pytest.mark.parametrize("missing", ["nowhere", "empty", "single"])
def test_a_folder_without_text_is_refused(tmp_path: Path, missing: str) -> None:
    """A wrong --corpus ends in a traceback, or in a run on nothing."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "one.txt").write_bytes(b"x" * 6000)
    with pytest.raises(ValueError, match=missing):
        folder(tmp_path / missing)
