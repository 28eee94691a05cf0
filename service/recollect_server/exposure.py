"""What a server may be open to. It refuses to start rather than to be open by mistake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recollect_server.domain.listen import ListenAddress, parse_listen
from recollect_server.settings import Settings


class RefusedToStartError(Exception):
    """The settings would make a server that must not run."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """Where a server listens.

    Attributes:
        rpc: gRPC; at least one.
        admin: HTTP; none: no admin API.
    """

    rpc: list[ListenAddress]
    admin: list[ListenAddress]


def checked(settings: Settings) -> Exposure:
    """The addresses of the settings, if it is safe to listen on them.

    Raises:
        RefusedToStartError: Says what would be open to whom, and what to do.
    """
    rpc = _parsed(settings.listen)
    if not rpc:
        raise RefusedToStartError("there is no address to listen on; give --listen")
    default_admin = [] if settings.dev else ["127.0.0.1:8080"]
    admin = _parsed(default_admin if settings.admin.listen is None else settings.admin.listen)
    if any(address.path is not None for address in admin):
        raise RefusedToStartError("the admin API listens on host:port, not on a unix socket")
    if settings.dev:
        _check_dev(settings, [*rpc, *admin])
    else:
        _check_closed(settings, [*rpc, *admin])
    return Exposure(rpc, admin)


def operator_token(settings: Settings) -> str:
    """The operator's key of the settings, or "".

    Raises:
        RefusedToStartError: Its file cannot be read, or holds nothing.
    """
    given = settings.admin.operator_key
    if given is not None and given.get_secret_value().strip():
        return given.get_secret_value().strip()
    path = settings.admin.operator_key_file
    if path is None:
        return ""
    try:
        token = path.read_text("utf-8").strip()
    except OSError as unreadable:
        raise RefusedToStartError(f"admin.operator_key_file: {unreadable}") from None
    except UnicodeDecodeError:
        raise RefusedToStartError(f"admin.operator_key_file: {path} holds no key: it is no text") from None
    if not token:
        raise RefusedToStartError(f"admin.operator_key_file: {path} is empty; put a key there, or unset it")
    return token


def prepared_data_dir(settings: Settings) -> Path | None:
    """The data directory, made if it is not there, for its owner alone.

    Raises:
        RefusedToStartError: It cannot be made or written.
    """
    if settings.data_dir is None:
        return None
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as unusable:
        raise RefusedToStartError(f"data_dir: {unusable}") from None
    return settings.data_dir


def _check_dev(settings: Settings, listen: list[ListenAddress]) -> None:
    reachable = [str(address) for address in listen if not address.is_local]
    if reachable:
        raise RefusedToStartError(
            f"--dev takes calls without a token, so it listens on loopback and unix sockets only, "
            f"not on {reachable}"
        )
    if settings.tls.cert_file is not None:
        raise RefusedToStartError("--dev serves without TLS; take tls.cert_file away, or start without --dev")
    if settings.registry.url is not None:
        raise RefusedToStartError(
            "--dev keeps nothing and has no keys, so it takes no registry.url; start without --dev to use one"
        )


def _check_closed(settings: Settings, listen: list[ListenAddress]) -> None:
    if settings.registry.url is None and settings.data_dir is None:
        raise RefusedToStartError(
            "no credentials exist, and a server without them would be open to all. Say where keys are kept: "
            "--data-dir DIR for one server, RECOLLECT_REGISTRY__URL=redis://... for several; or, for one "
            "user on this machine, start it with --dev"
        )
    reachable = [str(address) for address in listen if not address.is_local]
    if reachable and settings.tls.cert_file is None and not settings.allow_plaintext_tokens:
        raise RefusedToStartError(
            f"{reachable} can be reached from other machines, and without TLS every key would cross the "
            "network readable. Give RECOLLECT_TLS__CERT_FILE and RECOLLECT_TLS__KEY_FILE; or, if you trust "
            "the network, say so: RECOLLECT_ALLOW_PLAINTEXT_TOKENS=true"
        )


def _parsed(texts: list[str]) -> list[ListenAddress]:
    try:
        return [parse_listen(text) for text in texts]
    except ValueError as malformed:
        raise RefusedToStartError(str(malformed)) from None
