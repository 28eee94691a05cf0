"""What a client trusts, and shows, over grpcs://."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recollect.errors import InvalidArgumentError

if TYPE_CHECKING:
    import grpc

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TLS:
    """Files for a grpcs:// connection, PEM each. They are read when `connect` is called.

    Attributes:
        ca_file: Authorities that may have signed the server's certificate; None: those that gRPC trusts.
        cert_file: The client's certificate with its chain, for servers that ask for one (mutual TLS).
        key_file: Its key, without a password.
    """

    ca_file: StrPath | None = None
    cert_file: StrPath | None = None
    key_file: StrPath | None = None


def channel_credentials(tls: TLS) -> grpc.ChannelCredentials:
    """Reads the files.

    Raises:
        InvalidArgumentError: One cannot be read, is no PEM, or is there without the one that it needs.
    """
    if (tls.cert_file is None) != (tls.key_file is None):
        given, missing = ("key_file", "cert_file") if tls.cert_file is None else ("cert_file", "key_file")
        raise _refusal(f"tls has {given} without {missing}; a client's certificate needs both")
    _check(tls)
    import grpc

    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca_file", tls.ca_file),
        private_key=_read("key_file", tls.key_file),
        certificate_chain=_read("cert_file", tls.cert_file),
    )


def _read(name: str, path: StrPath | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _refusal(f"tls.{name} {path} cannot be read: {error.strerror}") from None


def _check(tls: TLS) -> None:
    """Has OpenSSL read the files: gRPC would take anything, and fail at every call."""
    import ssl

    for name, path in (("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        _read(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is not None:
        try:
            context.load_verify_locations(tls.ca_file)
        except ssl.SSLError as error:
            raise _refusal(
                f"tls.ca_file {os.fspath(tls.ca_file)!r} holds no PEM certificate: {error}"
            ) from None
    if tls.cert_file is not None:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file, password=_refuse_password)
        except ssl.SSLError as error:
            raise _refusal(
                f"tls.cert_file {tls.cert_file} and tls.key_file {tls.key_file} are not a PEM certificate "
                f"and its key: {error}"
            ) from None


def _refuse_password() -> str:
    raise _refusal("tls.key_file is encrypted; a key without password is needed")


def _refusal(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, argument="tls")
