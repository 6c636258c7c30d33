"""Take a backup of a cluster: identify → lease → plan → copy → wait for WAL → commit.

Order protects data here. The lease comes before anything is written. Replay needs WAL from the start position, so
proof that WAL arrives comes before the copy, and every segment up to the stop position must be stored before the
manifest commits. Until then nothing is listed, whatever fails.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from seawall.archive.arrival import refuse_without_carrier, wait_for
from seawall.backup.copy import Copied, copy_direct, copy_stream
from seawall.errors import SeawallError
from seawall.events import Ended, Noticed, Observer
from seawall.model import BackupKind, BackupLabel, Cluster, CopyMode, Head, Health
from seawall.postgres.inspect import configuration, globals_of, inspect
from seawall.repository import BackupSetWriter, Lease, Repository, Sealing, SourceArea
from seawall.settings import SourceSettings
from seawall.wal import Segment

Clock = Callable[[], datetime]
# A backup must not fail because old ones are being removed: that ends by itself.
_CLEANUP_PATIENCE = timedelta(minutes=15)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What a backup will be, before anything was written.

    Args:
        asked: the kind that was asked for; `kind` is what will be taken, and `reason` says why if they differ.
    """

    source: str
    label: BackupLabel
    asked: BackupKind
    kind: BackupKind
    reason: str
    mode: CopyMode
    cluster: Cluster
    workers: int


def plan(source: SourceSettings, area: SourceArea, cluster: Cluster, kind: BackupKind, *, now: datetime) -> BackupPlan:
    """Decide label and kind.

    Raises:
        ClockWentBackwards: a newer label exists already.
    """
    label = _free_label(area, now)
    reason = "" if kind is BackupKind.FULL else f"a full backup stands in: {kind.value} backups are not taken yet"
    return BackupPlan(source.name, label, kind, BackupKind.FULL, reason, source.mode, cluster, max(source.workers, 1))


def _free_label(area: SourceArea, now: datetime) -> BackupLabel:
    newest = max(area.begun(), key=lambda known: known.begun_at, default=None)
    label = BackupLabel.after(newest, now)
    # An attempt that failed within this second may have come no further than its key, which no listing of sets shows.
    while area.keychain.generations(str(label)):
        label = BackupLabel.after(label, label.begun_at + timedelta(seconds=1))
    return label


def take(
    source: SourceSettings,
    repository: Repository,
    sealing: Sealing,
    *,
    kind: BackupKind = BackupKind.FULL,
    now: datetime,
    observe: Observer,
    clock: Clock = utc_now,
) -> Head:
    """Take a backup and return the head of the set that now exists.

    Args:
        source: which cluster, and how it is read.
        sealing: how it is compressed and sealed, and for whom.
        kind: what is asked for.
        now: when it begins; becomes its label.
        observe: hears progress in steps `copy` and `wal`, and can stop it; then nothing is listed.

    Raises:
        ClusterMismatch: the source belongs to another cluster.
        LeaseHeld, LeaseLost: another writer is, or was, at work.
        ArchiveTimeout: WAL does not arrive.
        Cancelled: on request.
        SeawallError: whatever else went wrong; nothing was listed.
    """
    cluster = inspect(source)
    area = repository.source(source.name)
    if area.identity() is not None:
        # Another cluster is refused as such before anything else is found wrong with it.
        area.claim(cluster.identity, now)
    # Only then is a new source claimed: a mistaken address must not make it another cluster's for ever.
    refuse_without_carrier(source)
    area.claim(cluster.identity, now)
    holder = f"{socket.gethostname()}:{os.getpid()}"
    with area.lease(holder, "backup", patience=_CLEANUP_PATIENCE, wait=observe.wait) as held:
        chosen = plan(source, area, cluster, kind, now=now)
        if chosen.reason:
            observe.hear(Noticed("low", "kind-changed", chosen.reason))
        writer = area.begin(chosen.label, sealing, now)
        return _Taking(source, area, chosen, writer, held, observe, clock).run(began_at=now)


@dataclass
class _Taking:
    """One backup under way."""

    source: SourceSettings
    area: SourceArea
    chosen: BackupPlan
    writer: BackupSetWriter
    held: Lease
    observe: Observer
    clock: Clock

    def run(self, *, began_at: datetime) -> Head:
        with self._step("copy"):
            copied = self._copy()
        with self._step("wal"):
            self._wait_for_wal(copied)
        self._notice_bad_pages(copied)
        return self.writer.commit(
            self._head(copied, began_at),
            objects=copied.objects,
            specials={**copied.specials, **self._surroundings()},
            files=copied.files,
            held=self.held,
        )

    def _copy(self) -> Copied:
        copy = copy_direct if self.chosen.mode is CopyMode.DIRECT else copy_stream
        return copy(
            self.source,
            self.chosen.cluster,
            self.writer,
            workers=self.chosen.workers,
            first_wal=self._first_wal,
            observe=self.observe,
        )

    def _first_wal(self, first: Segment, in_recovery: bool) -> None:
        """Starting a backup closes the segment before it: if that does not arrive, nothing later will."""
        if not in_recovery and first.number > 0:
            wait_for(self.source, self.area, [first.previous()], observe=self.observe)

    def _wait_for_wal(self, copied: Copied) -> None:
        size = self.chosen.cluster.segment_bytes
        first = Segment.containing(copied.start_lsn, copied.timeline, size)
        last = Segment.ending_at(copied.stop_lsn, copied.timeline, size)
        needed = [Segment(copied.timeline, number, size) for number in range(first.number, last.number + 1)]
        wait_for(self.source, self.area, needed, observe=self.observe)

    def _surroundings(self) -> dict[str, str]:
        """Configuration outside the data directory, and what belongs to no database; a loss that is said aloud."""
        found = self._readable("configuration", self._configuration)
        return found | self._readable("globals", lambda: {"globals.sql": globals_of(self.source)})

    def _configuration(self) -> dict[str, str]:
        texts = configuration(self.source, self.chosen.cluster)
        return {f"configuration:{path}": text for path, text in texts.items()}

    def _readable(self, what: str, read: Callable[[], dict[str, str]]) -> dict[str, str]:
        try:
            return read()
        except SeawallError as error:
            self.observe.hear(Noticed("medium", f"no-{what}", f"{what} is not in this backup: {error.message}"))
            return {}

    def _notice_bad_pages(self, copied: Copied) -> None:
        bad = {entry.path: entry.bad_pages for entry in copied.files if entry.bad_pages}
        if bad:
            named = "; ".join(f"{path} pages {', '.join(map(str, pages[:8]))}" for path, pages in list(bad.items())[:8])
            self.observe.hear(
                Noticed("critical", "bad-pages", f"{sum(map(len, bad.values()))} corrupt pages were backed up: {named}")
            )

    def _head(self, copied: Copied, began_at: datetime) -> Head:
        cluster = self.chosen.cluster
        degraded = any(entry.bad_pages for entry in copied.files)
        return Head(
            label=self.chosen.label,
            source=self.source.name,
            kind=self.chosen.kind,
            mode=self.chosen.mode,
            cluster=replace(cluster.identity, timelines=(copied.timeline,)),
            server_version=cluster.server_version,
            timeline=copied.timeline,
            start_lsn=copied.start_lsn,
            stop_lsn=copied.stop_lsn,
            segment_bytes=cluster.segment_bytes,
            began_at=began_at,
            ended_at=self.clock(),
            stopped_at=copied.stopped_at,
            plain_bytes=sum(entry.size_bytes for entry in copied.files),
            stored_bytes=sum(stored.stored_bytes for stored in copied.objects),
            file_count=len(copied.files),
            object_count=len(copied.objects),
            compression=self.writer.sealing.compression,
            sealing=self.writer.sealing.mode,
            key_id=self.writer.key_id,
            manifest_sha256="",
            manifest_bytes=0,
            health=Health.DEGRADED if degraded else Health.GOOD,
            reason=self.chosen.reason,
            checksums=cluster.checksums,
            tablespaces=cluster.tablespaces,
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.observe.hear(Ended(name, time.monotonic() - begin))
