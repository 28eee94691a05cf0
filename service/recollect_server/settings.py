"""Settings: the only reader of the environment. `RECOLLECT_THREADS=2`, `RECOLLECT_LIMITS__TOP_K_MAX=64`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from recollect_server.domain.limits import Limits


class Settings(BaseSettings):
    """Everything that an operator can set. Options of the command line go before the environment."""

    model_config = SettingsConfigDict(env_prefix="RECOLLECT_", env_nested_delimiter="__", extra="forbid")

    listen: list[str] = Field(
        default=["127.0.0.1:50051"], description="unix:///path or host:port, repeatable"
    )
    dev: bool = Field(default=False, description="one tenant, no token; loopback and unix sockets only")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where memories live")
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of one search; 0: as many as FAISS takes"
    )
    drain_grace_s: float = Field(default=10.0, ge=0, le=600, description="for calls in flight on SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: Limits = Field(default_factory=Limits)
