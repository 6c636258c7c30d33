"""One replication connection: what a WAL receiver asks a server, in its words.

Source: PostgreSQL documentation, section "Streaming Replication Protocol". Every wait here ends when the caller's
`stopping` says so, so a server that hangs never keeps a receiver from stopping.
"""

from __future__ import annotations

import re
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import pq

from seawall.errors import Cancelled, ClusterError, ServerUnreachable, SlotBusy, UsageError, WalGap
from seawall.postgres.connect import Session, error_for
from seawall.wal import Lsn, TimelineHistory

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")
_SIZE = re.compile(r"(\d+)(MB|GB|kB)?")
_UNITS = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_STATUS = struct.Struct("!cqqqqB")
_UNIX_SECONDS_AT_2000 = 946_684_800
_POLL_MILLISECONDS = 200


@dataclass(frozen=True, slots=True)
class Identified:
    """Who answers: IDENTIFY_SYSTEM, and up to where its WAL is flushed."""

    system_identifier: int
    timeline: int
    position: Lsn


@dataclass(frozen=True, slots=True)
class Slot:
    """A physical slot: from where it keeps WAL (None: nothing, it was never used or was invalidated)."""

    restart: Lsn | None
    timeline: int


@dataclass(frozen=True, slots=True)
class Switch:
    """The server has no more WAL on a timeline: the next one begins at `position`."""

    timeline: int
    position: Lsn


class Walsender:
    """A connection in physical replication mode.

    Args:
        session: made with `replication=True`; closed by `close`.
        source_name: for messages.
        stopping: asked while waiting; true ends the wait with `Cancelled`.
    """

    def __init__(self, session: Session, source_name: str, stopping: Callable[[], bool]) -> None:
        self._session = session
        self.pgconn = session.pgconn
        self._source = source_name
        self._stopping = stopping

    @property
    def major_version(self) -> int:
        return self.pgconn.server_version // 10000

    def close(self) -> None:
        self._session.close()

    # ---- questions

    def identify(self) -> Identified:
        system, timeline, position, _database = self._row(b"IDENTIFY_SYSTEM")
        return Identified(int(system), int(timeline), Lsn.parse(position))

    def segment_bytes(self) -> int:
        (text,) = self._row(b"SHOW wal_segment_size")
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ClusterError(f"source {self._source!r}: wal_segment_size is {text!r}", hint="This is a defect.")
        return int(match[1]) * _UNITS.get(match[2] or "", 1)

    def slot(self, name: str) -> Slot | None:
        """The slot of that name, or None if there is none.

        Raises:
            UsageError: a logical slot has that name, or the name cannot be one.
        """
        kind, restart, timeline = self._row(b"READ_REPLICATION_SLOT " + _checked_slot(name))
        if not kind:
            return None
        if kind != "physical":
            raise UsageError(f"slot {name!r} is {kind}, a physical one is needed", hint="Choose another slot name.")
        return Slot(Lsn.parse(restart) if restart else None, int(timeline or 0))

    def create_slot(self, name: str) -> None:
        """Make a slot that keeps WAL from this moment on."""
        self._row(b"CREATE_REPLICATION_SLOT " + _checked_slot(name) + b" PHYSICAL (RESERVE_WAL)")

    def drop_slot(self, name: str) -> None:
        self._command(b"DROP_REPLICATION_SLOT " + _checked_slot(name))

    def history(self, timeline: int) -> tuple[TimelineHistory, bytes]:
        """The ancestry of a timeline, parsed and as the file that PostgreSQL would archive."""
        if timeline == 1:
            return TimelineHistory(1), b""
        result = self._command(f"TIMELINE_HISTORY {timeline}".encode())
        content = result.get_value(0, 1) or b""
        try:
            return TimelineHistory.parse(timeline, content.decode()), content
        except ValueError as error:
            raise ClusterError(f"source {self._source!r}: {error}", hint="Look at the file in pg_wal.") from error

    # ---- streaming

    def start(self, slot: str, position: Lsn, timeline: int) -> Switch | None:
        """Begin to stream; a `Switch` when the server has nothing more on that timeline.

        Raises:
            WalGap: the slot or the server does not have that WAL any more.
            SlotBusy: another connection uses the slot.
        """
        command = f"START_REPLICATION SLOT {_checked_slot(slot).decode()} PHYSICAL {position} TIMELINE {timeline}"
        result = self._first(command.encode(), also=pq.ExecStatus.COPY_BOTH)
        if result.status == pq.ExecStatus.COPY_BOTH:
            return None
        return self._switch(result)

    def finish(self) -> Switch | None:
        """After the server ended the stream: where it goes on, or None if it only shut down.

        Raises:
            WalGap, SlotBusy, ServerUnreachable, ClusterError: why it ended.
        """
        result = self._result()
        if result.status in (pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_IN):
            self.pgconn.put_copy_end()
            self._flush()
            result = self._result()
        return self._switch(result)

    def _switch(self, result: pq.abc.PGresult) -> Switch | None:
        if result.status == pq.ExecStatus.COMMAND_OK:
            return None
        self._refuse(result, also=pq.ExecStatus.TUPLES_OK)
        timeline, position = result.get_value(0, 0) or b"", result.get_value(0, 1) or b""
        while (rest := self._next_result()) is not None:
            self._refuse(rest)
        return Switch(int(timeline), Lsn.parse(position.decode()))

    def report(self, written: Lsn, flushed: Lsn) -> None:
        """Tell the server up to where WAL was written and is durable (message `r`, standby status update)."""
        at = int((time.time() - _UNIX_SECONDS_AT_2000) * 1_000_000)
        self.pgconn.put_copy_data(_STATUS.pack(b"r", written.value, flushed.value, 0, at, 0))
        self._flush()

    def end_copy(self) -> None:
        """Say goodbye in the middle of a stream, so that the server does not log a lost connection."""
        self.pgconn.put_copy_end()
        self.pgconn.flush()

    # ---- the wire

    def _row(self, command: bytes) -> list[str]:
        result = self._command(command)
        return [(result.get_value(0, column) or b"").decode() for column in range(result.nfields)]

    def _command(self, command: bytes) -> pq.abc.PGresult:
        """Run one command to its end and return its first result."""
        result = self._first(command)
        while (rest := self._next_result()) is not None:
            self._refuse(rest)
        return result

    def _first(self, command: bytes, also: pq.ExecStatus = pq.ExecStatus.TUPLES_OK) -> pq.abc.PGresult:
        try:
            self.pgconn.send_query(command)
            self._flush()
            result = self._result()
        except psycopg.Error as error:
            raise self.lost(error) from error
        self._refuse(result, also)
        return result

    def _flush(self) -> None:
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLOUT)
        while self.pgconn.flush() == 1:
            self._checkpoint()
            poll.poll(_POLL_MILLISECONDS)

    def _result(self) -> pq.abc.PGresult:
        result = self._next_result()
        if result is None:
            raise ServerUnreachable(f"source {self._source!r}: the server ended the connection")
        return result

    def _next_result(self) -> pq.abc.PGresult | None:
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        while self.pgconn.is_busy():
            self._checkpoint()
            if poll.poll(_POLL_MILLISECONDS):
                self.pgconn.consume_input()
        return self.pgconn.get_result()

    def _checkpoint(self) -> None:
        if self._stopping():
            raise Cancelled("stopped on request")

    def _refuse(self, result: pq.abc.PGresult, also: pq.ExecStatus = pq.ExecStatus.TUPLES_OK) -> None:
        if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, also):
            return
        text = (result.error_message or b"no reason given").decode(errors="replace")
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
        raise self.error(text, state.decode())

    def error(self, text: str, sqlstate: str) -> Exception:
        """What an error of the server means to a receiver (documentation, appendix A, for the codes)."""
        said = " ".join(text.split())
        if sqlstate == "55006":
            return SlotBusy(f"source {self._source!r}: {said}")
        removed = sqlstate == "58P01" or ("requested WAL segment" in said and "removed" in said)
        if removed or (sqlstate == "55000" and "slot" in said):
            return WalGap(
                f"source {self._source!r}: {said}",
                hint="WAL was lost before it was received. Take a full backup now; see docs/how-to/archive-wal.md.",
            )
        return error_for(self._source, text, sqlstate or None)

    def lost(self, error: psycopg.Error) -> Exception:
        """What an error of the connection means."""
        return error_for(self._source, str(error), error.sqlstate, operational=True)


def _checked_slot(name: str) -> bytes:
    if _SLOT_NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no slot name", hint="Use 1 to 63 characters of a-z, 0-9 and '_'.")
    return name.encode()
