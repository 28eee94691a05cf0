"""The image's health check: exits 0 if /readyz of the server in this container says so. Argument: its port.

The slim image has no curl, and needs none.
"""

import http.client
import ssl
import sys

TIMEOUT_S = 4


def readiness(port: int) -> int:
    """The status that /readyz answers with, over TLS if the port speaks it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        return _status(connection)
    except (http.client.HTTPException, ConnectionResetError):
        # It is this container's own loopback: whose certificate it is does not matter.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return _status(http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context))


def _status(connection: http.client.HTTPConnection) -> int:
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        status = readiness(int(sys.argv[1]))
    except OSError as away:
        sys.exit(f"no answer: {away}")
    sys.exit(None if status == 200 else f"/readyz answered {status}")
