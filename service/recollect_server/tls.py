"""Certificates for gRPC and for the admin API. Files that change are taken up without a restart."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc

from recollect_server.settings import TlsSettings

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class Files(NamedTuple):
    """Paths that the settings name, PEM each."""

    cert: Path
    key: Path
    client_ca: Path | None


class Loaded(NamedTuple):
    """What the files held when they were last found good.

    Attributes:
        context: For a server's side of TLS.
        grpc_configuration: The same for gRPC.
    """

    context: ssl.SSLContext
    grpc_configuration: grpc.ServerCertificateConfiguration


class Certificates:
    """A server's certificate, from files. Threads may share it.

    The files are looked at when a connection begins, at most every `reload_s`. What cannot be used, as a
    certificate that is half written or does not belong to the key, is logged once, and what was there before
    stays in use.

    Args:
        files: Where they are; public.
        reload_s: Between two looks.
        monotonic: Seconds.

    Raises:
        ValueError: A file is missing or of no use; the message names the setting and the path.
    """

    def __init__(
        self, files: Files, *, reload_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.files = files
        self._reload_s = reload_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at_s = monotonic()
        self._stamp = _stamp(files)
        self._loaded = _load(files)

    @property
    def asks_clients(self) -> bool:
        """Whether clients must show a certificate (mutual TLS)."""
        return self.files.client_ca is not None

    def current(self) -> Loaded:
        """What new connections are to use."""
        with self._lock:
            now_s = self._monotonic()
            if now_s - self._looked_at_s >= self._reload_s:
                self._looked_at_s = now_s
                self._look()
            return self._loaded

    def _look(self) -> None:
        stamp = _stamp(self.files)
        if stamp == self._stamp:
            return
        try:
            loaded = _load(self.files)
        except ValueError as error:
            log.error("the new certificate is of no use, the one before stays in use: %s", error)
            self._stamp = stamp
            return
        if _stamp(self.files) == stamp:  # or somebody is writing still
            self._loaded, self._stamp = loaded, stamp
            log.info("took up the certificate of %s", self.files.cert)


def certificates_of(settings: TlsSettings) -> Certificates | None:
    """The certificates that the settings name; None where they name none.

    Raises:
        ValueError: They name half of what is needed, or files that are missing or of no use.
    """
    named = {
        name: path
        for name in ("cert_file", "key_file", "client_ca_file")
        if (path := getattr(settings, name)) is not None
    }
    if not named:
        return None
    if settings.cert_file is None or settings.key_file is None:
        missing = "tls.cert_file" if settings.cert_file is None else "tls.key_file"
        given = " and ".join(f"tls.{name}" for name in named)
        raise ValueError(f"{given} needs {missing} beside it, which is not set")
    files = Files(settings.cert_file, settings.key_file, settings.client_ca_file)
    return Certificates(files, reload_s=settings.reload_s)


def grpc_server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """For `add_secure_port`. Each new connection gets the certificate of that moment."""
    return grpc.dynamic_ssl_server_credentials(
        certificates.current().grpc_configuration,
        lambda: certificates.current().grpc_configuration,
        require_client_authentication=certificates.asks_clients,
    )


def uvicorn_ssl_context(certificates: Certificates) -> ssl.SSLContext:
    """For uvicorn: `Config(app, ssl_context_factory=lambda config, default: context)`.

    Each new connection gets the certificate, and the client authority, of that moment.
    """
    context = _context(certificates.files)

    def take_current(
        connection: ssl.SSLSocket | ssl.SSLObject, server_name: str | None, context: ssl.SSLContext
    ) -> None:
        # Comes with every handshake, also where the client names no server. Unlike loading new files into one
        # context, it also ends the trust in an authority that was taken out.
        connection.context = certificates.current().context

    context.sni_callback = take_current
    return context


def _load(files: Files) -> Loaded:
    cert, key = _read("cert_file", files.cert), _read("key_file", files.key)
    client_ca = None if files.client_ca is None else _read("client_ca_file", files.client_ca)
    return Loaded(
        _context(files), grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
    )


def _context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key, password=_refuse_password)
    except OSError as error:  # SSLError is one
        raise ValueError(
            f"tls.cert_file {files.cert} and tls.key_file {files.key} are not a PEM certificate and its key: "
            f"{error}"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except OSError as error:
            raise ValueError(
                f"tls.client_ca_file {files.client_ca} holds no PEM certificate: {error}"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        # No session is to be resumed: it would let in clients of an authority that was taken out. TLS 1.2
        # keeps sessions in a way that Python cannot switch off.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _refuse_password() -> str:
    raise ValueError("tls.key_file is encrypted; a server that starts by itself needs a key without password")


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"tls.{setting} {path} cannot be read: {error.strerror}") from None


def _stamp(files: Files) -> Stamp:
    """Inode, size and time of the last change of each file; zeros for what is not there."""
    return tuple(_stamp_of(path) for path in files if path is not None)


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
