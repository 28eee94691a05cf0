"""Compiles the CPU engine's kernels when the package is built or installed. `python hatch_build.py` does it in place.

One shared library holds the same code for several instruction sets, and takes the best when it is loaded. Where
there is no C++ compiler the package is built without: the engine then searches with FAISS and NumPy, and says so.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCES = Path("service/recollect_server/engine/native")
LIBRARY = Path("service/recollect_server/engine/_native.so")

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off", "-Wall"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # GCC's own headers of vector types set these off

X86 = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}
"""Instruction sets beyond the processor's least, and what the compiler calls them."""


def compiler() -> list[str] | None:
    """The C++ compiler: what CXX says, or one that is found."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def compile_library(root: Path) -> Path | None:
    """Makes the library below `root`; None where there is no compiler.

    Raises:
        CalledProcessError: The compiler failed.
    """
    command = compiler()
    if command is None or not sys.platform.startswith("linux"):
        return None
    sources, library = root / SOURCES, root / LIBRARY
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as folder:
        objects: list[str] = []
        running: list[subprocess.Popen[bytes]] = []
        for name, flags in {"generic": [], **(X86 if x86 else {})}.items():
            objects.append(f"{folder}/{name}.o")
            part = [
                *command,
                *FLAGS,
                *flags,
                f"-DRC_ISA={name}",
                "-c",
                f"{sources}/isa.cpp",
                "-o",
                objects[-1],
            ]
            running.append(subprocess.Popen(part))
        objects.append(f"{folder}/library.o")
        part = [*command, *FLAGS, *(["-DRC_X86"] if x86 else []), "-c", f"{sources}/library.cpp"]
        running.append(subprocess.Popen([*part, "-o", objects[-1]]))
        for process in running:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, process.args)
        # Whole or not at all: a server may be about to load it.
        made = library.with_suffix(".new")
        subprocess.run([*command, "-shared", "-pthread", *objects, "-o", str(made)], check=True)
        made.replace(library)
    return library


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run as a script, outside of a build
    if __name__ == "__main__":
        print(compile_library(Path(__file__).parent) or "no C++ compiler was found")
else:

    class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own hooks are as bare
        """Adds the library to the wheel, which then is for one platform."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, object]) -> None:
            """Runs before the files of a wheel are collected."""
            del version
            if self.target_name != "wheel":
                return
            library = compile_library(Path(self.root))
            if library is None:
                print("recollect: no C++ compiler was found; the CPU engine will do without its own kernels")
                return
            build_data["artifacts"] = [f"/{LIBRARY}"]
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    if __name__ == "__main__":
        print(compile_library(Path(__file__).parent) or "no C++ compiler was found")
