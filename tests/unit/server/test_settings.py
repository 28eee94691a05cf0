"""Settings, and what looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from recollect_server import serving
from recollect_server.domain.limits import MESSAGE_BYTES_MOST
from recollect_server.exposure import RefusedToStartError, operator_token
from recollect_server.rpc.parts import ENVELOPE_BYTES
from recollect_server.settings import AdminSettings, Settings, unknown_variables, variables


def test_a_misspelt_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that was meant to hold does not, and nobody says so."""
    monkeypatch.setenv("RECOLLECT_THREDS", "2")
    monkeypatch.setenv("RECOLLECT_LIMITS__TOPK_MAX", "64")
    said = unknown_variables()
    assert "RECOLLECT_THREDS is no setting; did you mean RECOLLECT_THREADS?" in said
    assert "RECOLLECT_LIMITS__TOPK_MAX is no setting; did you mean RECOLLECT_LIMITS__TOP_K_MAX?" in said


def test_what_is_a_setting_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start warns of variables that are right, so that nobody reads the warnings."""
    for name in [*variables(), "RECOLLECT_ADMIN_URL", "RECOLLECT_OPERATOR_KEY"]:
        monkeypatch.setenv(name, "1")
    assert not unknown_variables()


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the server calls settings are not those that it reads."""
    monkeypatch.setenv("RECOLLECT_LIMITS__TOP_K_MAX", "64")
    monkeypatch.setenv("RECOLLECT_ADMIN__LISTEN", '["127.0.0.1:0"]')
    assert {"RECOLLECT_LIMITS__TOP_K_MAX", "RECOLLECT_ADMIN__LISTEN"} <= set(variables())
    settings = Settings()
    assert settings.limits.top_k_max == 64
    assert settings.admin.listen == ["127.0.0.1:0"]


COLLECTOR = "telemetry.traces_endpoint"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LIMITS__MESSAGE_BYTES_MAX", str(2**32), "limits.message_bytes_max"),
        ("DATA_DIR", "", "data_dir: "),
        ("TLS__CERT_FILE", "", "tls.cert_file: "),
        ("ADMIN__OPERATOR_KEY_FILE", "", "admin.operator_key_file: "),
        ("TELEMETRY__TRACES_ENDPOINT", "http://usr:hunter2@127.0.0.1:4", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "http://usr:1/hunter2@127.0.0.1:4", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "http://usr:hunter2", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "http://[::1", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "foo:::bar", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "http://:4317", COLLECTOR),
        ("TELEMETRY__TRACES_ENDPOINT", "collector:4317", COLLECTOR),
    ],
)
def test_what_cannot_be_met_ends_the_start(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server starts with what nobody meant, or ends in a traceback, or tells a password of the settings."""
    monkeypatch.setenv(f"RECOLLECT_{variable}", value)
    monkeypatch.setattr(serving, "build_server", lambda *_, **__: pytest.fail("it starts"))
    assert serving.run({"dev": True}) == serving.EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recollect: bad settings: ")
    assert says in line
    assert "hunter2" not in line


@pytest.mark.parametrize("endpoint", ["http://collector:4317", "https://[::1]:4317/", "http://collector", ""])
def test_collectors_are_taken(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server refuses an address of traces that is right."""
    monkeypatch.setenv("RECOLLECT_TELEMETRY__TRACES_ENDPOINT", endpoint)
    assert Settings().telemetry.traces_endpoint == endpoint


def test_the_largest_message_fits_into_grpc() -> None:
    """A server with the largest messages that it may have ends in a traceback."""
    assert MESSAGE_BYTES_MOST + ENVELOPE_BYTES < 2**31


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_file_without_a_key_is_refused(content: bytes, tmp_path: Path) -> None:
    """The operator's key that a file was to bring is not there, and nobody says so."""
    path = tmp_path / "operator.key"
    path.write_bytes(content)
    with pytest.raises(RefusedToStartError) as refused:
        operator_token(Settings(admin=AdminSettings(operator_key_file=path)))
    assert str(refused.value).startswith(f"admin.operator_key_file: {path} ")
