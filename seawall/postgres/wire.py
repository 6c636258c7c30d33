"""The replication connection of a backup: commands, results, and COPY in both directions.

Protocol: PostgreSQL's documentation, "Streaming Replication Protocol" and libpq's "COPY". Every wait looks at the
observer, so that a caller can always stop it.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable

import psycopg
from psycopg import pq

from seawall.errors import ClusterError
from seawall.events import Noticed, Observer
from seawall.postgres.connect import connect, error_for, translated
from seawall.settings import SourceSettings

_POLL_MILLISECONDS = 200
_CANCEL_SECONDS = 5.0
_ENDS_EARLY = "the server ended the backup's stream too early"


class Wire:
    """One connection; `sqlstate` is that of the last refusal (documentation, appendix A), empty before the first."""

    def __init__(self, source: SourceSettings, observe: Observer) -> None:
        self.source = source
        self.observe = observe
        self.sqlstate = ""
        self._session = connect(source, replication=True, application_name="seawall backup")
        self._session.add_notice_handler(self._notice)
        self._pgconn = self._session.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)

    @property
    def major_version(self) -> int:
        return self._pgconn.server_version // 10000

    def show(self, name: str) -> str:
        """A setting, by the replication protocol's SHOW."""
        self.send(f"SHOW {name}".encode())
        result = self.result(pq.ExecStatus.TUPLES_OK)
        self.finish()
        return (result.get_value(0, 0) or b"").decode()

    def send(self, command: bytes) -> None:
        with translated(self.source.name):
            self._pgconn.send_query(command)
            # The connection is in libpq's blocking mode: a command that was sent is flushed.
            self._pgconn.flush()

    def upload(self, command: bytes, pieces: Iterable[bytes]) -> None:
        """Run a command that takes what it needs by COPY.

        Raises:
            ServerUnreachable, PrivilegeMissing, ClusterError: the server refuses the command or what it got.
        """
        self.send(command)
        self.result(pq.ExecStatus.COPY_IN)
        with translated(self.source.name):
            for piece in pieces:
                self.observe.checkpoint()
                self._pgconn.put_copy_data(piece)
            self._pgconn.put_copy_end()
        self.finish()

    def result(self, expected: pq.ExecStatus) -> pq.abc.PGresult:
        """The next result.

        Raises:
            ServerUnreachable, PrivilegeMissing, ClusterError: it is the server's refusal, or another than expected.
        """
        result = self._next_result()
        if result is None or result.status != expected:
            raise ClusterError(f"source {self.source.name!r}: {_ENDS_EARLY}", hint="Take the backup again.")
        return result

    def finish(self) -> None:
        """Read what is left of a command's results.

        Raises:
            ServerUnreachable, PrivilegeMissing, ClusterError: one is the server's refusal.
        """
        while self._next_result() is not None:
            pass

    def _next_result(self) -> pq.abc.PGresult | None:
        with translated(self.source.name):
            while self._pgconn.is_busy():
                self._wait()
            result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise self._refusal(result)
        return result

    def _refusal(self, result: pq.abc.PGresult) -> ClusterError:
        text = (result.error_message or b"no reason given").decode(errors="replace")
        self.sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        # libpq makes a result without a code when the connection was lost.
        return error_for(self.source.name, text, self.sqlstate or None, operational=not self.sqlstate)

    def copy_data(self) -> memoryview | None:
        """The next message of the COPY stream, None at its end; then `result` says why it ended."""
        with translated(self.source.name):
            while True:
                count, data = self._pgconn.get_copy_data(1)
                if count > 0:
                    return data
                if count < 0:
                    return None
                self._wait()

    def _wait(self) -> None:
        self.observe.checkpoint()
        if self._poll.poll(_POLL_MILLISECONDS):
            self._pgconn.consume_input()

    def _notice(self, said: psycopg.errors.Diagnostic) -> None:
        if (said.severity_nonlocalized or said.severity) == "WARNING":
            message = f"source {self.source.name!r}: {said.message_primary}"
            self.observe.hear(Noticed("medium", "server-warning", message))

    def close(self) -> None:
        """Cancel what runs and hang up; the server then forgets the backup."""
        with contextlib.suppress(psycopg.Error):
            # A server that waits for its checkpoint would not see that the connection is gone.
            if self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self._session.cancel_safe(timeout=_CANCEL_SECONDS)
        self._session.close()
