"""The effective configuration, as operators see it."""

from __future__ import annotations

import json

from pydantic import BaseModel, SecretStr

from recollect_server.admin.configuration import hidden
from recollect_server.settings import Settings

SECRET = "hunter2"


class Nested(BaseModel):
    url: SecretStr | None = None
    endpoint: str = ""
    listen: list[str] = []


class Options(BaseModel):
    threads: int = 2
    key: SecretStr = SecretStr("")
    registry: Nested = Nested()


def test_no_secret_is_shown() -> None:
    """An operator's screen, or its logs, have a password."""
    options = Options(
        key=SecretStr(SECRET),
        registry=Nested(
            url=SecretStr(f"redis://u:{SECRET}@h"),
            endpoint=f"http://user:{SECRET}@collector:4317/v1?token={SECRET}",
            listen=[f"https://{SECRET}@a", f"https://u:{SECRET}@b@c/d#{SECRET}", "127.0.0.1:8080"],
        ),
    )
    shown = hidden(options)
    assert SECRET not in json.dumps(shown)
    nested = shown["registry"]
    assert isinstance(nested, dict)
    assert nested["endpoint"] == "http://**********@collector:4317/v1?**********"
    assert nested["listen"] == ["https://**********@a", "https://**********@c/d?**********", "127.0.0.1:8080"]
    assert shown["threads"] == 2


def test_all_settings_are_shown() -> None:
    """An operator does not see a setting that is in force."""
    shown = hidden(Settings(listen=["127.0.0.1:1"]))
    assert set(shown) == set(Settings.model_fields)
    assert shown["listen"] == ["127.0.0.1:1"]
    json.dumps(shown)
