"""The image's health check: exits 0 if /readyz of the server in this container says so. Argument: its port.

The slim image has no curl, and needs none. With mutual TLS only those with a certificate may ask, and this
has none: then a server that speaks TLS counts as healthy.
"""

import http.client
import os
import socket
import ssl
import sys

TIMEOUT_S = 4
HOST = "127.0.0.1"


def readiness(port: int) -> int:
    """The status that /readyz answers with, over TLS if the port speaks it."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        return _status(connection)
    except (http.client.HTTPException, ConnectionResetError):
        return _status(http.client.HTTPSConnection(HOST, port, timeout=TIMEOUT_S, context=_context()))


def speaks_tls(port: int) -> None:
    """Shakes hands, and no more.

    Raises:
        OSError: Nobody answers, or not so.
    """
    with (
        socket.create_connection((HOST, port), TIMEOUT_S) as connection,
        _context().wrap_socket(connection),
    ):
        pass


def _status(connection: http.client.HTTPConnection) -> int:
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def _context() -> ssl.SSLContext:
    # It is this container's own loopback: whose certificate it is does not matter.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


if __name__ == "__main__":
    try:
        # Settings are read in one place, but this runs every ten seconds, and to load them takes a second.
        if os.environ.get("RECOLLECT_TLS__CLIENT_CA_FILE"):  # noqa: TID251  # a script, outside the server
            speaks_tls(int(sys.argv[1]))
            sys.exit()
        status = readiness(int(sys.argv[1]))
    except (OSError, http.client.HTTPException) as away:
        sys.exit(f"no answer: {away!r}")
    sys.exit(None if status == 200 else f"/readyz answered {status}")
