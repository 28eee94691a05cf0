"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("recollect")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0+source"


__version__ = _installed_version()
