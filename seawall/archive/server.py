"""A Unix socket on which the agent answers the clients that PostgreSQL starts.

Only the server's account, this process's own account and root are answered (SO_PEERCRED). Files travel as
descriptors: the client opens what it may read, the agent what it may read, and neither ever opens a path that
the other one names.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from seawall.archive import client
from seawall.errors import LeaseHeld, ObjectMissing, SeawallError, StorageDenied

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("iII")
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks: the verb, its fields, and the descriptor that it passed."""

    verb: str
    fields: tuple[str, ...]
    descriptor: int | None


Answer = Callable[[Request], int | None]
"""Answers a request: returns a descriptor to pass (which the server closes) or None, or raises."""


class Server:
    """Listens on a socket while it is started.

    Args:
        path: the socket; its directory must exist.
        answer: called in a thread of its own for each request.
        accounts: user ids that are answered besides this process's own and root.
    """

    def __init__(self, path: Path, answer: Answer, *, accounts: frozenset[int] = frozenset()) -> None:
        self.path = path
        self._answer = answer
        self._accounts = accounts | {0, os.getuid()}
        self._lock_descriptor = -1
        self._listener: socket.socket | None = None
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="archive-answer")
        self._thread = threading.Thread(target=self._accept, name="archive-listen", daemon=True)

    def start(self) -> None:
        """Begin to listen.

        Raises:
            LeaseHeld: another agent listens there.
            StorageDenied: the socket cannot be made.
        """
        try:
            self._take_place()
            self._listener = self._bound()
        except OSError as error:
            raise StorageDenied(f"no socket can be made at {self.path}: {error.strerror or error}") from error
        self._thread.start()

    def _take_place(self) -> None:
        """A lock that dies with its process tells a socket left behind by a killed agent from one in use."""
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise LeaseHeld(f"another agent listens at {self.path}", hint="Stop it, or choose another path.") from error
        self._lock_descriptor = lock
        self.path.unlink(missing_ok=True)

    def _bound(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address, directory = client.through_directory(str(self.path))
        try:
            listener.bind(address)
            # Anybody may knock; who is answered is decided by the peer's user id, which cannot be forged.
            self.path.chmod(0o666)
            listener.listen(64)
        except OSError:
            listener.close()
            raise
        finally:
            if directory is not None:
                os.close(directory)
        return listener

    def stop(self) -> None:
        """Stop listening; answers under way are finished."""
        if self._listener is None:
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._listener = None
        self._pool.shutdown(wait=True)
        self.path.unlink(missing_ok=True)
        os.close(self._lock_descriptor)

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            self._pool.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_PATIENCE_SECONDS)
            try:
                self._converse(connection)
            except OSError as error:
                _log.info("a client went away: %s", error)

    def _converse(self, connection: socket.socket) -> None:
        # The whole question first, also of a stranger: a client that is cut off would not hear the refusal.
        message, descriptor = client.receive(connection)
        passed: int | None = None
        try:
            answer = self._refusal_of_stranger(connection)
            if answer is None:
                answer, passed = self._answered(message, descriptor)
            client.send(connection, answer, passed)
        finally:
            for held in (descriptor, passed):
                if held is not None:
                    os.close(held)

    def _refusal_of_stranger(self, connection: socket.socket) -> bytes | None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, account, _group = _CREDENTIALS.unpack(credentials)
        if account in self._accounts:
            return None
        return _refusal(24, f"user id {account} is not served here", "Run it under the server's account.")

    def _answered(self, message: bytes, descriptor: int | None) -> tuple[bytes, int | None]:
        """The answer and the descriptor to pass along with it."""
        verb, *fields = client.decode(message) or [""]
        try:
            return client.encode("ok"), self._answer(Request(verb, tuple(fields), descriptor))
        except ObjectMissing as error:
            return client.encode("absent", _clean(error.message)), None
        except SeawallError as error:
            return _refusal(error.exit_code, error.message, error.hint), None
        except Exception as error:  # noqa: BLE001 - a defect must reach PostgreSQL as a failure, never as silence
            _log.exception("%s failed", verb)
            return _refusal(10, f"the agent failed: {type(error).__name__}: {error}", ""), None


def _refusal(code: int, message: str, hint: str) -> bytes:
    return client.encode("error", str(code), _clean(message), _clean(hint))


def _clean(text: str) -> str:
    return text.replace("\0", "")[:4000]
