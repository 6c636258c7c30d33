"""Waiting for WAL to be stored, and saying why when it is not.

A backup is worth nothing without the WAL written while it was taken. Who waits asks only the repository: what
the server believes of its archiver is a diagnosis, never a proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seawall.archive.store import Area
from seawall.errors import ArchiveTimeout
from seawall.events import Began, Observer
from seawall.postgres.connect import connect
from seawall.settings import SourceSettings
from seawall.wal import Segment

# A receiver at work stores a segment within milliseconds; for one that is away, asking rarely is enough.
_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Carrier:
    """What could bring a cluster's WAL into the repository, as the server sees it."""

    slot: str
    slot_exists: bool
    slot_active: bool
    slot_status: str
    archive_mode: str
    archive_command: str
    last_archived: str
    last_failed: str

    @property
    def works(self) -> bool:
        return self.slot_active or self.archive_mode in ("on", "always")

    def sentence(self) -> str:
        """The diagnosis in one sentence or two."""
        slot = f"slot {self.slot} " + (
            "does not exist" if not self.slot_exists else "has no receiver" if not self.slot_active else "is in use"
        )
        if self.slot_status in ("lost", "unreserved"):
            slot += f" and its WAL is {self.slot_status}"
        if self.archive_mode == "off":
            return f"{slot}; archive_mode is off"
        failed = f"; the last failure was {self.last_failed}" if self.last_failed else ""
        archived = self.last_archived or "nothing yet"
        return f"{slot}; archive_mode is {self.archive_mode}, last archived: {archived}{failed}"


def carrier(source: SourceSettings) -> Carrier:
    """Ask the server who carries its WAL away.

    Raises:
        ServerUnreachable, PrivilegeMissing: it could not be asked.
    """
    with connect(source) as session:
        slot = session.execute(
            "SELECT active, coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = %s",
            (source.slot_name,),
        ).fetchone()
        row = session.execute(
            "SELECT current_setting('archive_mode'), coalesce(last_archived_wal, ''),"
            " coalesce(CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity')"
            " THEN last_failed_wal END, '') FROM pg_stat_archiver"
        ).fetchone()
    mode, archived, failed = row if row is not None else ("off", "", "")
    return Carrier(
        slot=source.slot_name,
        slot_exists=slot is not None,
        slot_active=bool(slot and slot[0]),
        slot_status=str(slot[1]) if slot else "",
        archive_mode=str(mode),
        archive_command="",
        last_archived=str(archived),
        last_failed=str(failed),
    )


def refuse_without_carrier(source: SourceSettings) -> None:
    """Fail before anything is copied when nothing could bring the WAL.

    Raises:
        ArchiveTimeout: no receiver is on the slot and the server does not archive.
    """
    found = carrier(source)
    if not found.works:
        raise ArchiveTimeout(
            f"nothing carries the WAL of {source.name} into the repository: {found.sentence()}",
            hint=f"Start `seawall wal receive {source.name}` (or `seawall up`), or set archive_command "
            "(docs/how-to/archive-wal.md).",
        )


def wait_for(
    source: SourceSettings,
    area: Area,
    segments: Sequence[Segment],
    *,
    observe: Observer,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until every segment is stored.

    Args:
        segments: the complete segments that must be there; at most the source's `wal_timeout` is waited for each.

    Raises:
        ArchiveTimeout: one did not come, with what the server says of it.
        Cancelled: on request.
    """
    observe.hear(Began("wal", 0))
    for segment in segments:
        until = clock() + source.wal_timeout.total_seconds()
        pause = _FIRST_POLL_SECONDS
        while not area.wal.stored(segment.name):
            observe.checkpoint()
            if clock() > until:
                raise ArchiveTimeout(
                    f"{segment.name} did not arrive within {source.wal_timeout.total_seconds():.0f} s: "
                    f"{carrier(source).sentence()}"
                )
            sleep(pause)
            pause = min(pause * 1.5, _POLL_SECONDS)
