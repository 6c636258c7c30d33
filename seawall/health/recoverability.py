"""Checks of what protects the data: WAL on its way, backups young enough, proved, and without gaps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from seawall.archive.arrival import refuse_without_carrier, wait_for
from seawall.archive.continuity import Window, switch_wal
from seawall.capacity import Room, capacity_of, expected_bytes, warned
from seawall.catalog import Catalog
from seawall.errors import ArchiveTimeout, ClusterError, StorageFull, WalGap
from seawall.events import Observer
from seawall.health.cluster import Facts
from seawall.health.result import Finding, good, skipped, warning
from seawall.model import BackupKind, Head, WalMode
from seawall.postgres.connect import connect, translated
from seawall.repository import SourceArea
from seawall.settings import SourceSettings
from seawall.wal import Lsn

_NO_WORD = "the storage does not say how much room it has"
# A full backup is due every day; it may begin at 02:00 and take until 04:00.
BACKUP_DUE = timedelta(hours=26)
VERIFY_DUE = timedelta(days=7)
_SLOT: LiteralString = """
    SELECT s.slot_type, s.active, coalesce(s.wal_status, ''),
           coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                                         ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)::bigint
    FROM pg_replication_slots s WHERE s.slot_name = %s
"""
_ARCHIVER: LiteralString = """
    SELECT failed_count, coalesce(last_failed_wal, ''),
           last_failed_time > coalesce(last_archived_time, '-infinity'), coalesce(last_archived_wal, '')
    FROM pg_stat_archiver
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """The receiver's replication slot; `retained_bytes` of WAL are kept on the server for it."""

    name: str
    kind: str
    active: bool
    status: str
    retained_bytes: int


def slot_of(source: SourceSettings) -> Slot | None:
    """The source's slot as the server sees it, or None if there is none."""
    with connect(source) as session, translated(source.name):
        row = session.execute(_SLOT, (source.slot_name,)).fetchone()
    return None if row is None else Slot(source.slot_name, str(row[0]), bool(row[1]), str(row[2]), int(row[3]))


def judge_slot(slot: Slot | None, facts: Facts, source: SourceSettings) -> Finding:
    """The slot is there, in use, keeps WAL, and cannot fill the server's disk; pure.

    Raises:
        ArchiveTimeout: nobody receives.
        WalGap: WAL that the receiver still needs is gone.
        ClusterError: another kind of slot has this name.
    """
    if source.wal is not WalMode.RECEIVE:
        return skipped(f"WAL of this source comes by {source.wal.value}")
    start = f"Start `seawall wal receive {source.name}` (or `seawall up`)."
    if slot is None:
        raise ArchiveTimeout(f"slot {source.slot_name} does not exist", hint=start)
    if slot.kind != "physical":
        raise ClusterError(f"slot {slot.name} is a {slot.kind} slot", hint="Name another one with `slot`.")
    if slot.status == "lost":
        raise WalGap(
            f"slot {slot.name} is lost: the server removed WAL that was not yet received",
            hint=f"Drop the slot, run `seawall wal receive {source.name} --accept-gap`, and take a full backup.",
        )
    held = f"{slot.retained_bytes:,} bytes of WAL are kept for it"
    if not slot.active:
        raise ArchiveTimeout(f"slot {slot.name} has no receiver; {held}", hint=start)
    if slot.status == "unreserved":
        return warning(f"slot {slot.name} is about to be lost; {held}", "Raise max_slot_wal_keep_size now.")
    if facts.max_slot_keep_mb < 0:
        return warning(
            f"slot {slot.name} is in use; {held}, and max_slot_wal_keep_size sets no limit",
            "Set one: without it a receiver that stays away lets WAL fill the server's disk.",
        )
    return good(f"slot {slot.name} is in use; {held}")


@dataclass(frozen=True, slots=True)
class Archiver:
    """What pg_stat_archiver tells; `failing` if the last attempt failed."""

    failures: int
    last_failed: str
    failing: bool
    last_archived: str


def archiver_of(source: SourceSettings) -> Archiver:
    """What the server says of its archive_command."""
    with connect(source) as session, translated(source.name):
        row = session.execute(_ARCHIVER).fetchone()
    if row is None:
        raise ClusterError(f"source {source.name!r}: pg_stat_archiver is empty")
    return Archiver(int(row[0]), str(row[1]), bool(row[2]), str(row[3]))


def judge_archiver(found: Archiver, facts: Facts, source: SourceSettings) -> Finding:
    """archive_mode is on where it must be, and archive_command succeeds; pure.

    Raises:
        ArchiveTimeout: it is off, or its last attempt failed.
    """
    if facts.archive_mode == "off":
        if source.wal is WalMode.ARCHIVE_COMMAND:
            raise ArchiveTimeout(
                "archive_mode is off",
                hint="Set it to on, archive_command to what "
                f"`seawall wal command {source.name}` prints, and restart the server.",
            )
        return skipped(f"archive_mode is off; WAL of this source comes by {source.wal.value}")
    if found.failing:
        raise ArchiveTimeout(
            f"archive_command failed with {found.last_failed}, {found.failures} failures in all",
            hint="The server's log says what it answered. WAL stays in pg_wal until it succeeds.",
        )
    before = f"; {found.failures} failures before that" if found.failures else ""
    return good(f"archive_mode is {facts.archive_mode}, last archived: {found.last_archived or 'nothing yet'}{before}")


def archiving_works(
    source: SourceSettings,
    area: SourceArea,
    facts: Facts,
    observe: Observer,
    clock: Callable[[], float] = time.monotonic,
) -> Finding:
    """Close the open segment and see it stored.

    Raises:
        ArchiveTimeout: nothing carries WAL, or it did not come within the source's `wal_timeout`.
        PrivilegeMissing: the role may not switch WAL.
    """
    if facts.in_recovery:
        return skipped("a standby writes no WAL that could be switched")
    if source.wal is not WalMode.EXTERNAL:
        refuse_without_carrier(source)
    with connect(source) as session, translated(source.name):
        # Something must be in the open segment, else the switch does nothing and only old WAL would be proved.
        session.execute("SELECT pg_logical_emit_message(false, 'seawall', 'check')")
        segment = switch_wal(session)
    begin = clock()
    wait_for(source, area, [segment], observe=observe)
    return good(f"{segment.name} was closed and {clock() - begin:.1f} s later it was stored")


def space_suffices(room: Room, facts: Facts, newest: Head | None) -> Finding:
    """The storage, and its quota, have room for the next full backup.

    Raises:
        StorageFull: it does not.
    """
    return judge_space(room, facts.total_bytes, newest)


def judge_space(room: Room, total_bytes: int, newest: Head | None) -> Finding:
    """Judge free space against the cluster's size, less what the newest backup saved by compression; pure."""
    free = room.left_bytes
    if free is None:
        return skipped(_NO_WORD)
    needed = expected_bytes(BackupKind.FULL, total_bytes, [] if newest is None else [newest])
    sentence = f"{room.sentence}, the next full backup takes about {needed:,}"
    if free < needed:
        raise StorageFull(sentence)
    if free < 2 * needed:
        return warning(sentence, "Enlarge the storage or shorten retention_days: WAL needs room too.")
    return good(sentence)


def storage_lasts(free: int | None, heads: Sequence[Head], now: datetime) -> Finding:
    """Judge how long the room lasts, by what the backups of this source took; pure."""
    if free is None:
        return skipped(_NO_WORD)
    stored = sum(head.stored_bytes for head in heads)
    found = capacity_of(heads, used_bytes=stored, free_bytes=free, now=now)
    said = warned(found, now=now)
    if said is not None:
        return warning(said.message, "Enlarge the storage, or shorten the retention: docs/how-to/retention.md.")
    return good(f"{free:,} bytes are free" + (f", until about {found.full_at:%Y-%m-%d}" if found.full_at else ""))


def backup_is_young(heads: Sequence[Head], now: datetime) -> Finding:
    """The newest backup is not older than the schedule makes it; pure."""
    if not heads:
        return warning("there is no backup yet", "`seawall backup` takes one.")
    newest = heads[-1]
    age = now - newest.stopped_at
    sentence = f"the newest backup is {newest.label}, {_hours(age)} old"
    if age > BACKUP_DUE:
        return warning(
            f"{sentence}; one is due every day", "See why the schedule did not run, or run `seawall backup`."
        )
    return good(sentence)


def backup_was_verified(url: str, repository_id: str, heads: Sequence[Head], now: datetime) -> Finding:
    """The catalog knows of a verification that is not too long ago.

    Raises:
        CatalogError: the catalog does not answer.
    """
    with Catalog.open(url) as catalog:
        files = [catalog.find_backup_file(repository_id, head.source, head.label) for head in heads]
    labels = [str(head.label) for head in heads]
    proved = {n: file.verified_at for n, file in zip(labels, files, strict=True) if file and file.verified_at}
    return judge_verified(labels, proved, now)


def judge_verified(labels: Sequence[str], verified: Mapping[str, datetime], now: datetime) -> Finding:
    """Judge when backups were read back, by label; pure."""
    if not labels:
        return skipped("there is no backup yet")
    if not verified:
        return warning("the catalog knows of no backup that was read back", "Let the scheduled verification run.")
    label, at = max(verified.items(), key=lambda item: item[1])
    if now - at > VERIFY_DUE:
        return warning(f"{label} was read back last, {_hours(now - at)} ago", "Let the scheduled verification run.")
    return good(f"{label} was read back and proved {_hours(now - at)} ago")


def wal_is_continuous(found: Sequence[Window], labels: Sequence[str]) -> Finding:
    """Every backup has the WAL that makes it consistent, and no WAL behind it is cut off by a gap; pure.

    Raises:
        WalGap: there is a gap.
    """
    if not labels:
        return skipped("there is no backup yet")
    gaps = [f"{window.gap.name} after {window.label}" for window in found if window.gap is not None]
    reached = {window.label for window in found}
    gaps += [f"WAL of {label} itself" for label in labels if label not in reached]
    if gaps:
        raise WalGap(f"missing: {', '.join(gaps)}")
    last = max(found, key=lambda window: (window.timeline, window.until))
    return good(f"no gap; recovery reaches {last.until} on timeline {last.timeline}")


def rpo_is_met(
    source: SourceSettings, area: SourceArea, found: Sequence[Window], facts: Facts, rpo: timedelta
) -> Finding:
    """What the server wrote more than the RPO ago is stored.

    Raises:
        ArchiveTimeout: it is not.
    """
    if facts.in_recovery or not found:
        return skipped("a standby writes no WAL" if facts.in_recovery else "there is no backup yet")
    with connect(source) as session, translated(source.name):
        row = session.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    written = Lsn.parse(str(row[0])) if row is not None else Lsn(0)
    last = max(found, key=lambda window: (window.timeline, window.until))
    stored = max(stat.modified_at for stat in area.storage.list(f"{area.layout.wal}{last.timeline:08X}/"))
    return judge_rpo(written.value - last.until.value, area.storage.now() - stored, rpo)


def judge_rpo(outstanding_bytes: int, age: timedelta, rpo: timedelta) -> Finding:
    """Judge how much WAL is not stored and how long ago some was, by the storage's clock; pure."""
    if outstanding_bytes <= 0:
        return good("all WAL is stored")
    sentence = f"{outstanding_bytes:,} bytes of WAL are not stored; the newest came {age.total_seconds():.0f} s ago"
    if age > rpo:
        raise ArchiveTimeout(
            f"{sentence}, the RPO is {rpo.total_seconds():.0f} s",
            hint="Is the receiver or agent running? `seawall wal switch` closes the open segment.",
        )
    return good(sentence)


def _hours(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
