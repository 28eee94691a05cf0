"""Settings, and what looks like one."""

from __future__ import annotations

import pytest

from recollect_server.settings import Settings, unknown_variables, variables


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
