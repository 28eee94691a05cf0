"""House rules that no linter checks."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "client/recollect",
    ROOT / "service/recollect_server",
    ROOT / "service/recollect_bench",
    ROOT / "model/recollect_torch",
)
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

BLAS = {"dot", "inner", "matmul", "tensordot", "vdot", "vecdot", "matvec", "vecmat"}
"""What NumPy has its BLAS do, beside the operator."""

# A home or a checkout on somebody's machine, and a package index's address.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|farm)/[\w.]")
REGISTRY = re.compile(r"https?://[^\s\"')]*(?:pypi|pythonhosted|/simple\b|/whl\b)")


def _files() -> list[Path]:
    """Files that are, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git
        hidden = (path for path in ROOT.rglob("*") if path.is_file())
        return [path for path in hidden if not any(p.startswith(".") for p in path.relative_to(ROOT).parts)]


def _texts() -> Iterator[tuple[Path, str]]:
    for path in _files():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path.relative_to(ROOT), data.decode()


def _written_modules() -> Iterator[tuple[Path, str]]:
    for path, text in _texts():
        if path.suffix == ".py" and "_pb2" not in path.name:
            yield path, text


def _found(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_kernels_are_alone() -> None:
    """A product of NumPy's beside the kernels waits for threads of its own: milliseconds for microseconds."""
    engine = Path("service/recollect_server/engine")
    found = []
    for path, text in _written_modules():
        # Without kernels it is NumPy that multiplies; on a GPU the operator is PyTorch's.
        if path.parent != engine or path.name.startswith(("attention_cpu", "torch_", "triton_")):
            continue
        for node in ast.walk(ast.parse(text)):
            is_operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            is_function = isinstance(node, ast.Attribute) and node.attr in BLAS
            if isinstance(node, ast.expr) and (is_operator or is_function):
                found.append(f"{path}:{node.lineno}: see multiply_centroids in kernel_lists.py")
    assert not found, "\n".join(found)


def test_modules_and_functions_stay_small() -> None:
    """A module or function has grown beyond what one person reads in one go: split it."""
    large = []
    for path, text in _written_modules():
        if (lines := text.count("\n")) > MODULE_LINES_MAX:
            large.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    large.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not large, "\n".join(large)


def test_no_path_of_anybodys_machine_is_committed() -> None:
    """A file names a folder that exists on one machine only."""
    assert not (found := _found(MACHINE_PATH)), "\n".join(found)


def test_no_package_index_is_named() -> None:
    """A file ties the installation to one package index; that is the user's choice (TORCH_INDEX_URL)."""
    assert not (found := _found(REGISTRY)), "\n".join(found)


def test_every_silenced_check_says_which_and_why() -> None:
    """A `type: ignore` or `noqa` lacks its rule, or a reason on its line or the one above."""
    silenced = re.compile(
        r"#\s*(?:type:\s*ignore|noqa|pyright:\s*ignore)(?P<rule>[:\[]\s*[\w, -]+\]?)?(?P<why>.*)"
    )
    bare = []
    for path, text in _written_modules():
        above = ""
        for number, line in enumerate(text.splitlines(), 1):
            match = silenced.search(line)
            if match and path.name != Path(__file__).name:
                reason = match["why"].strip(" #:-") or above.strip().startswith("#")
                if not (match["rule"] and reason):
                    bare.append(f"{path}:{number}: {line.strip()}")
            above = line
    assert not bare, "\n".join(bare)


def test_every_test_says_what_breaks() -> None:
    """A test has no docstring, so that nobody knows what its failure means."""
    silent = [
        f"{path}:{node.lineno}: {node.name}"
        for path, text in _written_modules()
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)


def test_top_folders_are_not_packages() -> None:
    """An __init__.py directly in client/, service/, model/ or proto/ breaks the installation."""
    stray = [
        folder
        for folder in ("client", "service", "model", "proto")
        if (ROOT / folder / "__init__.py").exists()
    ]
    assert not stray


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages_say_that_they_are_typed(package: Path) -> None:
    """Users' type checkers ignore our annotations without py.typed."""
    assert (package / "py.typed").is_file(), f"{package.relative_to(ROOT)}/py.typed is missing"


@pytest.mark.parametrize("group", ["recollect.transports", "recollect.sessions", "recollect.commands"])
def test_entry_points_lead_somewhere(group: str) -> None:
    """pyproject.toml promises a function that is not where it says."""
    points = [point for point in entry_points(group=group) if point.dist and point.dist.name == "recollect"]
    assert points, f"no entry point in {group}: is the package installed (make setup)?"
    assert all(callable(point.load()) for point in points)


def test_every_dependency_has_an_exact_version() -> None:
    """A dependency is missing in constraints.txt: two installations would differ."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
    ]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins), "constraints.txt pins with == only"
    pinned = {pin.partition("==")[0] for pin in pins}
    missing = [name for name in wanted if re.split(r"[\[<>=!~; ]", name)[0].lower() not in pinned]
    assert not missing


def test_one_faiss_only() -> None:
    """The extras cpu and gpu each install the module `faiss`; both at once overwrite each other."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_faiss = {name for name, needs in extras.items() if any(need.startswith("faiss") for need in needs)}
    assert with_faiss == {"cpu", "gpu"}
