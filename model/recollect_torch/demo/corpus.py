"""Long documents to train on: the Python standard library's own source, or any folder of text files."""

from __future__ import annotations

import gzip
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD_OUT = (
    "_pydecimal.py",
    "argparse.py",
    "asyncio",
    "http",
    "ipaddress.py",
    "mailbox.py",
    "tarfile.py",
    "unittest",
)
"""Never trained on, by the checkpoint either. Modules that every Python from 3.11 on has."""

GENERATED = ("encodings", "pydoc_data", "_sysconfigdata")
"""Tables that a program wrote: not what a person means by source text."""

NOT_LIBRARY = ("__pycache__", "idle_test", "lib-dynload", "site-packages", "test", "tests")

DOCUMENT_BYTES_MIN = 4096
"""Shorter files are dropped: a memory has nothing to hold on to there."""

HELD_OUT_EVERY = 10
"""Of a folder without a validation part each tenth document is held out, from the second by size on."""


@dataclass(frozen=True, slots=True)
class Document:
    """One long text, as bytes."""

    name: str
    tokens: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to train on and documents to judge by; both are sorted, longest first."""

    name: str
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def standard_library(root: Path | None = None) -> Corpus:
    """The source text of the Python standard library; a document is a package or a module.

    Args:
        root: Another library folder than this Python's.

    Raises:
        ValueError: There is no source text there (a Python that ships compiled files only).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    documents = [_package(path) for path in sorted(root.iterdir()) if _is_library(path)]
    documents = _long_ones_first(documents)
    if not documents:
        raise ValueError(f"no Python source under {root}; give a folder of text with --corpus")
    return Corpus(
        name="python standard library",
        train=tuple(d for d in documents if d.name not in HELD_OUT),
        held_out=tuple(d for d in documents if d.name in HELD_OUT),
    )


def folder(path: Path, *, validation: Path | None = None) -> Corpus:
    """A folder of text files, plain or .gz; a document is a file.

    Args:
        path: Folder to train on, read recursively.
        validation: Folder to judge by. Without one, each tenth document of `path` is held out.

    Raises:
        ValueError: Fewer than two documents that are long enough.
    """
    documents = _read_folder(path)
    if validation is not None:
        return Corpus(name=path.name, train=tuple(documents), held_out=tuple(_read_folder(validation)))
    if len(documents) < 2:
        raise ValueError(
            f"{path} has {len(documents)} document; one to train on and one to hold out are needed "
            "(or give --validation)"
        )
    held_out = {i for i in range(len(documents)) if i % HELD_OUT_EVERY == 1}
    return Corpus(
        name=path.name,
        train=tuple(d for i, d in enumerate(documents) if i not in held_out),
        held_out=tuple(d for i, d in enumerate(documents) if i in held_out),
    )


def _read_folder(path: Path) -> list[Document]:
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    documents = [_document(str(p.relative_to(path)), _read(p)) for p in files]
    documents = _long_ones_first(documents)
    if not documents:
        raise ValueError(f"{path} holds no file of at least {DOCUMENT_BYTES_MIN} bytes of text")
    return documents


def _read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _is_library(path: Path) -> bool:
    if path.name in NOT_LIBRARY or path.name.startswith(GENERATED):
        return False
    return path.suffix == ".py" if path.is_file() else (path / "__init__.py").is_file()


def _package(path: Path) -> Document:
    if path.is_file():
        return _document(path.name, path.read_bytes())
    files = [
        p for p in sorted(path.rglob("*.py")) if not set(p.relative_to(path).parts).intersection(NOT_LIBRARY)
    ]
    # The file's name stands where a reader of the package would see it.
    parts = [f"# {p.relative_to(path.parent)}\n".encode() + p.read_bytes() for p in files]
    return _document(path.name, b"\n\n".join(parts))


def _document(name: str, text: bytes) -> Document:
    return Document(name=name, tokens=np.frombuffer(text, dtype=np.uint8))


def _long_ones_first(documents: list[Document]) -> list[Document]:
    enough = [d for d in documents if d.tokens.size >= DOCUMENT_BYTES_MIN]
    return sorted(enough, key=lambda d: (-d.tokens.size, d.name))
