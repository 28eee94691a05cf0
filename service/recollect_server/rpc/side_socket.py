"""A unix socket beside gRPC's: in the same folder, for the same callers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat

log = logging.getLogger(__name__)

PATH_BYTES_MAX = 107
"""Of the kernel."""

BACKLOG = 64


class SideSocket:
    """Binds one, and takes its file away again. Who listens there closes it, after that.

    Args:
        path: Of gRPC's socket.
        suffix: After it. Clients know it too.
        mode: Who may connect.
        purpose: What callers do without if it cannot be bound, for the log.
    """

    def __init__(self, path: str, suffix: str, *, mode: int, purpose: str) -> None:
        self._path = path + suffix
        self._mode = mode
        self._purpose = purpose
        self._listener: socket.socket | None = None
        self._inode = 0  # of the socket's file

    def listen(self) -> socket.socket | None:
        """Binds; None where that is not possible: callers do without."""
        if len(self._path.encode()) > PATH_BYTES_MAX:
            log.warning("%s over %s: its path is too long", self._purpose, self._path)
            return None
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(self._path).st_mode):  # its server is gone: gRPC's socket was free
                os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            listener.bind(self._path)
        except OSError as error:  # somebody's file is there
            log.warning("%s over %s: %s", self._purpose, self._path, error)
            listener.close()
            return None
        os.chmod(self._path, self._mode)
        self._inode = os.lstat(self._path).st_ino
        listener.listen(BACKLOG)
        self._listener = listener
        return listener

    def remove(self) -> None:
        """Takes the file away, if it is still this one's: nobody finds the socket any more.

        Before the socket is closed, which keeps its inode from being another file's.
        """
        if self._listener is None:
            return
        self._listener = None
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self._path).st_ino == self._inode:  # not of a server that came after this one
                os.unlink(self._path)
