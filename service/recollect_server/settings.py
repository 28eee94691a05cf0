"""Settings: the only reader of the environment. `RECOLLECT_THREADS=2`, `RECOLLECT_LIMITS__TOP_K_MAX=64`."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from recollect_server.domain.limits import Limits

__all__ = ["Settings", "SettingsError", "unknown_variables", "variables"]

PREFIX, DELIMITER = "RECOLLECT_", "__"

SHELLS_VARIABLES = frozenset({"RECOLLECT_ADMIN_URL", "RECOLLECT_OPERATOR_KEY"})
"""Of the commands that speak to a server; not settings of one."""


def _named(path: object) -> object:
    # Path("") is the current directory, which nobody means who sets a variable to nothing.
    if path == "":
        raise ValueError("it is empty; name a path, or leave it unset")
    return path


def _collector(endpoint: str) -> str:
    # Never what was given: it may hold a password. Wherever the @ is, as behind one with an unescaped slash.
    if "@" in endpoint:
        raise ValueError(
            "it must not hold a user or password, which libraries would log; "
            "give them as headers, in OTEL_EXPORTER_OTLP_HEADERS"
        )
    try:
        parts = urlsplit(endpoint)
        is_known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_known = False
    if endpoint and not is_known:
        raise ValueError("it must be http://host:port, or https://host:port for TLS")
    return endpoint


NamedPath = Annotated[Path, BeforeValidator(_named)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TlsSettings(_Section):
    """Certificates, for gRPC and for the admin API. Files that change are read again without a restart."""

    cert_file: NamedPath | None = Field(default=None, description="PEM, with the chain")
    key_file: NamedPath | None = Field(default=None, description="PEM")
    client_ca_file: NamedPath | None = Field(
        default=None, description="PEM; clients must then show a certificate that it signed (mutual TLS)"
    )
    reload_s: float = Field(default=5.0, gt=0, le=3600, description="how often the files are looked at")


class RegistrySettings(_Section):
    """Where tenants, keys and namespaces are kept."""

    url: SecretStr | None = Field(
        default=None,
        description="redis://user:password@host:6379/0 or rediss://...; none: a file in the data directory",
    )
    ca_file: NamedPath | None = Field(default=None, description="PEM, for rediss:// with a private authority")
    timeout_s: float = Field(default=2.0, gt=0, le=60, description="for one command")
    poll_s: float = Field(
        default=0.25, gt=0, le=0.5, description="how often changes of others are looked for"
    )
    stale_max_s: float = Field(
        default=60.0, ge=0, le=3600, description="how long known callers go on while it cannot be reached"
    )
    cached_max: int = Field(default=65_536, ge=1, description="records that a server remembers")


class AdminSettings(_Section):
    """The HTTP side: health, metrics, administration."""

    listen: list[str] | None = Field(
        default=None, description="host:port, repeatable; 127.0.0.1:8080 if not said, and none with --dev"
    )
    operator_key: SecretStr | None = Field(
        default=None, description="an operator's API key (rk_...) that is to exist from the start"
    )
    operator_key_file: NamedPath | None = Field(default=None, description="the same, from a file")
    metrics_key: SecretStr | None = Field(
        default=None, description="what a scraper may show in place of an operator's key, for /metrics alone"
    )


class TelemetrySettings(_Section):
    """Logs, metrics, traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    tenant_labels_max: int = Field(
        default=100, ge=0, description="tenants with metrics of their own; the others share the label 'other'"
    )
    traces_endpoint: Annotated[str, AfterValidator(_collector)] | None = Field(
        default=None, description="OTLP over gRPC, as http://collector:4317; none: no traces"
    )


class Settings(BaseSettings):
    """Everything that an operator can set. Options of the command line go before the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid")

    listen: list[str] = Field(
        default=["127.0.0.1:50051"], description="unix:///path or host:port, repeatable"
    )
    dev: bool = Field(default=False, description="one tenant, no token; loopback and unix sockets only")
    data_dir: NamedPath | None = Field(default=None, description="what must outlast the process")
    allow_plaintext_tokens: bool = Field(
        default=False, description="listen beyond this machine without TLS: keys cross the network readable"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where memories live")
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of one search; 0: as many as FAISS takes"
    )
    fair: bool = Field(
        default=True, description="share the device among tenants; false: first come, first served"
    )
    drain_grace_s: float = Field(default=10.0, ge=0, le=600, description="for calls in flight on SIGTERM")
    tls: TlsSettings = Field(default_factory=TlsSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    limits: Limits = Field(default_factory=Limits)


def unknown_variables() -> list[str]:
    """What in the environment looks like a setting and is none: each with the setting that may be meant."""
    known = set(variables())
    strange = sorted(
        name for name in os.environ if name.startswith(PREFIX) and name not in known | SHELLS_VARIABLES
    )
    said = []
    for name in strange:
        meant = difflib.get_close_matches(name, known, n=1)
        said.append(f"{name} is no setting" + (f"; did you mean {meant[0]}?" if meant else ""))
    return said


def variables() -> Iterator[str]:
    """Every variable that is a setting, as RECOLLECT_LIMITS__TOP_K_MAX; sections may be given whole too."""
    for name, field in Settings.model_fields.items():
        variable = PREFIX + name.upper()
        yield variable
        kind = field.annotation
        inner: list[str] = []
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = list(kind.model_fields)
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            inner = [each.name for each in dataclasses.fields(kind)]
        for each in inner:
            yield variable + DELIMITER + each.upper()
