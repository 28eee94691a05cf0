"""Compiles the CPU engine's kernels, and the client's conversions, when the package is built or installed.

The engine's library holds the same code for several instruction sets, and takes the best when it is loaded.
Where there is no C++ compiler the package is built without: the engine then searches with FAISS and NumPy,
and says so, and NumPy converts. `python hatch_build.py` compiles in place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run as a script, outside of a build
    BuildHookInterface = object

ENGINE = Path("service/recollect_server/engine")
CLIENT = Path("client/recollect")
SOURCES, LIBRARY = "native", "_native.so"
"""In both of them."""

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off", "-Wall"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # GCC's own headers of vector types set these off

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mpopcnt"]
X86 = {
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
    "avx512": AVX512,
    "vnni": [*AVX512, "-mavx512vnni"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
"""Instruction sets beyond the processor's least, and what the compiler calls them."""

NO_COMPILER = (
    "recollect: no C++ compiler was found (c++, g++, clang++, or what CXX names): installed without compiled "
    "kernels, so a server on a CPU searches with FAISS, which is slower"
)


def compiler() -> list[str] | None:
    """The C++ compiler: what CXX says, or one that is found."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        return command if shutil.which(command[0]) else None
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def compile_libraries(root: Path) -> list[Path]:
    """Makes those below `root` that are not there as they should be; none where there is no compiler.

    Raises:
        CalledProcessError: The compiler failed.
    """
    command = compiler()
    if command is None or not sys.platform.startswith("linux"):
        for package in (ENGINE, CLIENT):
            # One of other sources would be worse than none.
            (root / package / LIBRARY).unlink(missing_ok=True)
        return []
    variants = {"generic": [], **_of_x86(command)}
    return [
        _compiled(command, root / ENGINE, parts_of(variants)),
        _compiled(command, root / CLIENT, {"rounding": ["rounding.cpp"]}),
    ]


def parts_of(variants: dict[str, list[str]]) -> dict[str, list[str]]:
    """What the engine's library is made of, in the order in which it is linked: flags, and then a source.

    Of a function that several parts have a copy of, as of std::vector, the linker takes the first, for all of
    them. So what any processor runs comes first, and each instruction set after those that it includes.
    """
    parts = {"library": [*(f"-DRC_HAS_{name.upper()}" for name in variants), "library.cpp"]}
    for name, flags in variants.items():
        for source in ("isa", "codes"):
            parts[f"{source}-{name}"] = [*flags, f"-DRC_ISA={name}", f"{source}.cpp"]
    return parts


def _compiled(command: list[str], package: Path, parts: dict[str, list[str]]) -> Path:
    """A package's library, of parts that are compiled with flags each, the last of which is a source."""
    sources, library = package / SOURCES, package / LIBRARY
    made_from = _made_from(sources, command)
    if library.exists() and bytes.fromhex(made_from) in library.read_bytes():
        return library
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{name}.o" for name in parts]
        running = [
            subprocess.Popen([*command, *FLAGS, *flags, "-c", str(sources / source), "-o", made])
            for (*flags, source), made in zip(parts.values(), objects, strict=True)
        ]
        for process in running:
            process.wait()
        for process in running:
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
        # Whole or not at all: a server may be about to load it.
        made = library.with_suffix(f".{os.getpid()}.so")
        mark = f"-Wl,--build-id=0x{made_from}"
        subprocess.run([*command, "-shared", "-pthread", mark, *objects, "-o", str(made)], check=True)
        made.replace(library)
    return library


def _of_x86(command: list[str]) -> dict[str, list[str]]:
    """The instruction sets that this compiler knows, if this is such a machine."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    test = [*command, "-x", "c++", "-fsyntax-only", os.devnull]
    return {
        name: flags
        for name, flags in X86.items()
        if subprocess.run([*test, *flags], capture_output=True, check=False).returncode == 0
    }


def _made_from(sources: Path, command: list[str]) -> str:
    """What the library is the outcome of, in hexadecimal digits. The library keeps it as its build id."""
    digest = hashlib.sha1(repr((command, platform.machine())).encode(), usedforsecurity=False)
    for file in [Path(__file__), *sorted(sources.iterdir())]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class NativeBuildHook(BuildHookInterface):
    """Adds the libraries to a wheel, which is for one platform then. An editable install needs no more."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Runs before the files of a wheel are collected."""
        del version
        if self.target_name != "wheel":
            return
        libraries = compile_libraries(Path(self.root))
        if not libraries:
            self.app.display_warning(NO_COMPILER)
            return
        build_data["artifacts"] = [f"/{library.relative_to(self.root)}" for library in libraries]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    print(*compile_libraries(Path(__file__).parent) or [NO_COMPILER], sep="\n")
