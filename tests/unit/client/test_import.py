"""What comes along with `import recollect`, and the command of that name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import typer

import recollect
from recollect import _cli


def test_import_brings_neither_torch_nor_the_server() -> None:
    """A base install would not import, or each import would take the seconds that torch takes."""
    code = (
        "import sys, numpy, recollect\n"
        "client = recollect.connect('grpc://127.0.0.1:1')\n"
        "spec = recollect.NamespaceSpec((0,), 1, 2, 2, 9, 'float16')\n"
        "ns = recollect.Namespace('n', spec, client._runner)\n"
        "try:\n"
        "    ns.add(0, numpy.ones((1, 1, 1, 2)), numpy.ones((1, 1, 1, 2)), streams=['s'], timeout_s=0.001)\n"
        "except recollect.RecollectError:\n"
        "    pass\n"
        "heavy = {'torch', 'recollect_server', 'recollect_torch', 'faiss', 'typer', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_grpc_is_not_there_before_the_server_begins() -> None:
    """`recollect serve` sets too late how gRPC polls, and every call wakes more threads."""
    code = (
        "import sys, recollect, recollect._cli, recollect_server.cli\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'grpc'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_public_exists() -> None:
    """`from recollect import *` would fail, or a documented name would be missing."""
    assert all(hasattr(recollect, name) for name in recollect.__all__)
    assert sorted(recollect.__all__) == sorted(set(recollect.__all__))
    assert recollect.__version__[0].isdigit()


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        _cli.main(arguments)
    return caught.value.code if isinstance(caught.value.code, int) else 0


def hello(name: str) -> None:
    """Says hello."""
    typer.echo(f"hello {name}")


hello_app = typer.Typer()
hello_app.command("there")(hello)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that work, and one whose extra is not installed."""
    here = __name__
    entries = EntryPoints(
        [
            EntryPoint("hello", f"{here}:hello", _cli._GROUP),
            EntryPoint("group", f"{here}:hello_app", _cli._GROUP),
            EntryPoint("demo", "recollect_not_installed.cli:demo", _cli._GROUP),
        ]
    )
    monkeypatch.setattr(_cli, "entry_points", lambda group: entries)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could say which version they report a defect of."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"recollect {recollect.__version__}\n"


def test_commands_run(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    """An installed command would not be reachable."""
    assert run(["hello", "you"]) == 0
    assert run(["group", "there", "me"]) == 0
    assert capsys.readouterr().out == "hello you\nhello me\n"


def test_a_broken_command_breaks_no_other(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    """`recollect serve` would fail on a machine without torch, because of the demo."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "hello" in shown
    assert "extra 'torch'" in shown
    assert run(["demo", "--minutes", "3"]) == 2
    assert "pip install 'recollect[torch]'" in capsys.readouterr().err


def test_the_demo_without_torch() -> None:
    """Who has not installed PyTorch is shown the traceback of an import in place of what to install."""
    script = "import sys; sys.modules['torch'] = None; from recollect import _cli; _cli.main(['demo'])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "recollect demo cannot start: No module named 'torch'. "
        "Install it with: pip install 'recollect[torch]'\n"
    )


def test_without_typer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of a base install would end in a traceback."""
    monkeypatch.setitem(sys.modules, "typer", None)
    assert run(["serve"]) == 2
    assert "recollect[server]" in capsys.readouterr().err
    assert run(["--version"]) == 0


def test_a_traceback_shows_no_values() -> None:
    """A command that fails prints its local variables, which may be keys, with an older typer."""
    code = (
        "import sys, types\n"
        "from importlib.metadata import EntryPoint, EntryPoints\n"
        "from recollect import _cli\n"
        "def fails():\n"
        "    token = 'hunter2'\n"
        "    raise OverflowError('too large')\n"
        "sys.modules['failing'] = types.ModuleType('failing')\n"
        "sys.modules['failing'].fails = fails\n"
        "_cli.entry_points = lambda group: EntryPoints([EntryPoint('fails', 'failing:fails', group)])\n"
        "_cli.main(['fails'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n"), "that of Python, without values"
    assert done.stderr.endswith("OverflowError: too large\n")
    assert "hunter2" not in done.stderr
