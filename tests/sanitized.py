"""Runs what uses the compiled kernels with libraries that watch memory, or threads: `make test-sanitized`.

The packages are copied below `.sanitized/`, compiled there for each sanitizer, and imported from there: those
that a server or another test run is using stay as they are.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".sanitized"
COPIED = ("client", "service")
BUILD = "hatch_build.py"

BOUNDS = "tests/property/test_kernel_bounds.py"
UNIT = "tests/unit/server"
CONTRACTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/contract").glob("test_*.py"))

ABOUT_THE_ALLOCATOR = f"{UNIT}/test_kernels_at_rest.py::test_what_threads_calculate_in_is_given_back"
"""It asks glibc's allocator, in whose place a sanitizer puts its own."""

ABOUT_FORKS = tuple(
    f"{UNIT}/test_many_threads.py::{test}"
    for test in (
        "test_a_forked_process_searches_and_rests",
        "test_who_is_forked_during_a_search_can_search",
    )
)
"""The thread sanitizer cannot follow a process that begins threads and was forked from one that has some."""

FINDINGS = ("ERROR: ", "WARNING: ThreadSanitizer", "runtime error: ")
"""What a report has that is more than a remark."""

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
NOTHING_TO_DO = 5
"""What pytest ends with where all tests of a file are slow, say."""


class Sanitizer(NamedTuple):
    """What one run is made of.

    Attributes:
        flags: Of the compiler.
        runtimes: Libraries that must be there before Python begins; the compiler knows where they are.
        options: Environment, where `{report}` begins the names of files that reports are written to.
        tests: What is run, but for slow tests: each in a process of its own, since the first error ends one.
        slow: What is run of these.
        left_out: Tests that say nothing with it.
    """

    flags: Sequence[str]
    runtimes: Sequence[str]
    options: dict[str, str]
    tests: Sequence[str]
    slow: Sequence[str]
    left_out: Sequence[str]


SANITIZERS = {
    "address": Sanitizer(
        flags=(
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
            "-fno-omit-frame-pointer",
            "-g",
        ),
        runtimes=("libasan.so", "libubsan.so"),
        options={
            # Python does not free all that it has. A refused allocation is a MemoryError, as tests want it.
            # Names that several of the libraries beside ours have are their affair.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0:redzone=128"
            ":log_path={report}",
            "UBSAN_OPTIONS": "print_stacktrace=1:log_path={report}",
            # From Python's own pools, small blocks would have no bytes around them that are watched.
            "PYTHONMALLOC": "malloc",
        },
        tests=(UNIT, "tests/unit/client", "tests/property", *CONTRACTS),
        slow=(BOUNDS,),
        left_out=(ABOUT_THE_ALLOCATOR,),
    ),
    "thread": Sanitizer(
        flags=("-fsanitize=thread", "-g"),
        runtimes=("libtsan.so",),
        options={
            # Python, NumPy and FAISS are not compiled for it: what they do among themselves cannot be judged.
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0:report_signal_unsafe=0"
            ":log_path={report}",
        },
        tests=(
            *(f"{UNIT}/test_{name}.py" for name in ("kernels", "kernels_at_rest", "kernel_lists", "codes")),
            *(
                f"{UNIT}/test_{name}.py"
                for name in ("rounded", "many_threads", "small_calls", "ivf", "upkeep")
            ),
            BOUNDS,
        ),
        slow=(),
        left_out=(ABOUT_THE_ALLOCATOR, *ABOUT_FORKS),
    ),
}


def main() -> int:
    """Some sanitizers, or all; whether they found nothing and all were there."""
    parser = argparse.ArgumentParser(prog="make test-sanitized ARGS=", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SANITIZERS)}; all, if there is none"
    )
    names = parser.parse_args().names or list(SANITIZERS)
    if unknown := set(names) - set(SANITIZERS):
        parser.error(f"no such sanitizer: {', '.join(sorted(unknown))}")
    return max(run(name, SANITIZERS[name]) for name in names)


def run(name: str, sanitizer: Sanitizer) -> int:
    """Compiles and tests; 0 if nothing was found."""
    compiler = runpy.run_path(str(ROOT / BUILD))["compiler"]()
    if compiler is None:
        return tell("no C++ compiler was found (c++, g++, clang++, or what CXX names)")
    libraries = (*sanitizer.runtimes, "libstdc++.so")  # the last, or it would come too late for exceptions
    runtimes = {library: runtime_of(compiler, library) for library in libraries}
    if missing := [library for library, path in runtimes.items() if path is None]:
        return tell(
            f"the {name} sanitizer was not run: {compiler[0]} has no {', '.join(missing)}, as GCC has"
        )
    folder = FOLDER / name
    tell(f"compiling for the {name} sanitizer (some minutes, if the kernels have changed)")
    build(folder, [*compiler, *sanitizer.flags])
    for old in folder.glob("report.*"):
        old.unlink()
    environment = {
        **os.environ,
        **{option: value.format(report=folder / "report") for option, value in sanitizer.options.items()},
        "LD_PRELOAD": " ".join(filter(None, runtimes.values())),
        "PYTHONPATH": os.pathsep.join(str(folder / copied) for copied in COPIED),
    }
    failed = []
    for tests, marks in ((sanitizer.tests, "not slow and not gpu"), (sanitizer.slow, "slow")):
        command = [
            *fixed_addresses(),
            *PYTEST,
            "-m",
            marks,
            *(f"--deselect={test}" for test in sanitizer.left_out),
        ]
        for each in tests:
            ended = subprocess.run([*command, each], cwd=ROOT, env=environment, check=False).returncode
            if ended not in (0, NOTHING_TO_DO):
                failed.append(each)
    reports = [path.read_text(errors="replace") for path in sorted(folder.glob("report.*"))]
    found = [report for report in reports if any(word in report for word in FINDINGS)]
    sys.stdout.write("\n".join(found))
    tell(f"the {name} sanitizer has {len(found)} reports (in {folder.relative_to(ROOT)})")
    return tell(f"with it failed: {', '.join(failed)}") if failed else int(bool(found))


def tell(text: str) -> int:
    """Says something; 1, for what ends with it."""
    sys.stdout.write(f"test-sanitized: {text}\n")
    sys.stdout.flush()
    return 1


def runtime_of(compiler: Sequence[str], library: str) -> str | None:
    """Where the compiler has a library, None if it has none: then it says the name alone."""
    command = [*compiler, f"-print-file-name={library}"]
    found = Path(subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip())
    return str(found.resolve()) if found.is_absolute() and found.exists() else None


def build(folder: Path, command: Sequence[str]) -> None:
    """Compiles the packages' libraries as `hatch_build.py` does, if they are not there for these sources."""
    for copied in COPIED:
        for old in (folder / copied).rglob("native"):  # or a source that is gone would count
            shutil.rmtree(old)
        ignored = shutil.ignore_patterns("_native*.so", "__pycache__")
        shutil.copytree(ROOT / copied, folder / copied, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(ROOT / BUILD, folder)
    environment = {**os.environ, "CXX": shlex.join(command)}
    subprocess.run([sys.executable, BUILD], cwd=folder, env=environment, check=True)


def fixed_addresses() -> list[str]:
    """Has a program begin where the thread sanitizer expects it: recent kernels choose among more places."""
    command = ["setarch", "--addr-no-randomize"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


if __name__ == "__main__":
    sys.exit(main())
