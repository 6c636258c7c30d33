"""Take a backup of a cluster: identify → lease → plan → prior → resume → copy → wait for WAL → commit.

Order protects data here. The lease comes before anything is written. Replay needs WAL from the start position, so
proof that WAL arrives comes before the copy, and every segment up to the stop position must be stored before the
manifest commits. Until then nothing is listed, whatever fails.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.archive.arrival import refuse_without_carrier, wait_for
from seawall.backup.attempts import AttemptLog, Attempts, Terms
from seawall.backup.plan import BackupPlan, plan
from seawall.backup.prior import Maps, Prior
from seawall.backup.resume import ResumePlan, Unfinished, prove, terms_of
from seawall.backup.resume import plan as plan_resume
from seawall.capacity import refuse_without_room
from seawall.errors import (
    BackupMissing,
    Cancelled,
    Damaged,
    FormatTooNew,
    KeyError_,
    ObjectMissing,
    SeawallError,
    StorageError,
)
from seawall.events import Ended, Noticed, Observer
from seawall.model import BackupKind, BackupLabel, Cluster, CopyMode, Head, Health, SealingMode
from seawall.postgres import extensions
from seawall.postgres.inspect import configuration, globals_of, inspect
from seawall.postgres.session import switch_wal_at_primary
from seawall.repository import BackupSetWriter, Lease, Repository, Sealing, SourceArea, blocks
from seawall.settings import Settings, SourceSettings
from seawall.storage.wrappers import TokenBucket, cancellable_sleep
from seawall.throttle import source_bucket
from seawall.wal import Segment

if TYPE_CHECKING:
    from seawall.backup.output import Copied

__all__ = ["BackupPlan", "ResumePlan", "plan", "resumable", "take"]

Clock = Callable[[], datetime]
# A backup must not fail because old ones are being removed: that ends by itself.
_CLEANUP_PATIENCE = timedelta(minutes=15)
# What says that nothing can build on a prior. Whatever else goes wrong (an outage) is no reason for a full backup.
_UNUSABLE = (BackupMissing, Damaged, FormatTooNew, KeyError_, ObjectMissing)


def utc_now() -> datetime:
    return datetime.now(UTC)


def take(
    source: SourceSettings,
    repository: Repository,
    sealing: Sealing,
    *,
    kind: BackupKind = BackupKind.FULL,
    block_maps: Path | None = None,
    reread: bool = False,
    resume: bool = True,
    pace: TokenBucket | None = None,
    quota_bytes: int = 0,
    now: datetime,
    observe: Observer,
    clock: Clock = utc_now,
) -> Head:
    """Take a backup and return the head of the set that now exists.

    Args:
        source: which cluster, and how it is read.
        sealing: how it is compressed and sealed, and for whom.
        kind: what is asked for; where nothing can be built on, a full one is taken, and the head says why.
        block_maps: where this host keeps what the next incremental needs, and notes of backups that were stopped;
            without it, the former is read from the repository, which takes a private key, and nothing is resumed.
        pace: how fast the cluster is read (`throttle.source_bucket`); by the source's own limits when omitted.
        quota_bytes: how much may lie in the repository's storage, of all sources; 0 is no limit.
        reread: let an incremental compare all files, also those whose times say that nothing was written to them.
        resume: take over what attempts that were stopped had stored; otherwise they are forgotten.
        now: when it begins; becomes its label.
        observe: hears progress in steps `copy` and `wal`, and can stop it; then nothing is listed.

    Raises:
        ClusterMismatch: the source belongs to another cluster.
        LeaseHeld, LeaseLost: another writer is, or was, at work.
        ArchiveTimeout: WAL does not arrive.
        StorageFull: the backup cannot fit, by what those before it took; or it did not.
        Cancelled: on request.
        SeawallError: whatever else went wrong; nothing was listed.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as beside, ExitStack() as stack:
        if sealing.mode is not SealingMode.NONE:
            # While the server is asked; what is wrong with a key is said when the data key is sealed.
            beside.submit(sealing.ring.prove, sealing.recipients)
        cluster, area = inspect(source), repository.source(source.name)
        _claim(source, area, cluster, now)
        holder = f"{socket.gethostname()}:{os.getpid()}"
        held = stack.enter_context(area.lease(holder, "backup", patience=_CLEANUP_PATIENCE, wait=observe.wait))
        maps, attempts = Maps(block_maps), _attempts(block_maps)
        chosen = plan(source, area, cluster, kind, sealing=sealing.mode, now=now)
        chosen, prior = _with_prior(chosen, area, maps, sealing)
        if prior is not None:
            stack.enter_context(prior)
        if chosen.reason:
            observe.hear(Noticed("low", "kind-changed", chosen.reason))
        if not resume:
            _forget(attempts, (attempt.label for attempt in attempts.found()), observe)
        terms = terms_of(chosen, sealing)
        unfinished = _unfinished(area, attempts, terms, prior, chosen, observe=observe)
        there = 0
        if unfinished is not None:
            stack.enter_context(unfinished)
            there = sum(stored.stored_bytes for stored in unfinished.taken.values())
        # Only now is it known which kind it will be: a full one may stand in for what nothing can be built on.
        written = _written_since(chosen)
        refuse_without_room(
            area, chosen.kind, cluster.total_bytes, wal_bytes=written, there_bytes=there, quota_bytes=quota_bytes
        )
        writer = area.begin(chosen.label, sealing, now)
        log = attempts.begin(chosen.label, terms, observe)
        stack.callback(log.close)
        pace = pace or source_bucket(
            Settings(sources={source.name: source}), source.name, sleep=cancellable_sleep(observe.cancel)
        )
        over = threading.Event()
        stack.callback(over.set)
        taking = _Taking(
            source,
            area,
            chosen,
            writer,
            held,
            observe,
            clock,
            prior,
            maps,
            reread,
            pace,
            attempts,
            log,
            unfinished,
            over,
        )
        # It waits for the server and its programs, and the copy does not wait for it.
        return taking.run(beside.submit(taking.surroundings), began_at=now)


def _claim(source: SourceSettings, area: SourceArea, cluster: Cluster, now: datetime) -> None:
    """Prove that the source is this cluster's, or make it so.

    Raises:
        ClusterMismatch: it is another cluster's.
        ArchiveTimeout: nothing carries its WAL into the repository.
    """
    if area.identity() is not None:
        # Another cluster is refused as such before anything else is found wrong with it.
        area.claim(cluster.identity, now)
    # Only then is a new source claimed: a mistaken address must not make it another cluster's for ever.
    refuse_without_carrier(source)
    area.claim(cluster.identity, now)


def _written_since(chosen: BackupPlan) -> int:
    """How much the cluster wrote to its log since the plan's prior began."""
    if chosen.prior is None or chosen.cluster.wal_position is None:
        return 0
    return max(chosen.cluster.wal_position.value - chosen.prior.start_lsn.value, 0)


def resumable(area: SourceArea, chosen: BackupPlan, sealing: Sealing, block_maps: Path | None) -> ResumePlan:
    """What a planned backup could take over from attempts that were stopped; nothing is changed, or proved yet."""
    return plan_resume(area, _attempts(block_maps), terms_of(chosen, sealing), is_told=chosen.is_told)


def _attempts(block_maps: Path | None) -> Attempts:
    return Attempts(None if block_maps is None else block_maps / "attempts")


def _unfinished(
    area: SourceArea, attempts: Attempts, terms: Terms, prior: Prior | None, chosen: BackupPlan, *, observe: Observer
) -> Unfinished | None:
    """What attempts stored and still lies there, proved object by object; None if that is nothing."""
    found = plan_resume(area, attempts, terms, is_told=chosen.is_told)
    _forget(attempts, (label for label, _ in found.over), observe)
    if not found.objects:
        return None
    begin = time.monotonic()
    sound = prove(area, found, workers=chosen.workers, observe=observe)
    observe.hear(Ended("resume", time.monotonic() - begin))
    return Unfinished(prior, found, sound) if sound else None


def _forget(attempts: Attempts, labels: Iterable[BackupLabel], observe: Observer) -> None:
    try:
        attempts.forget(labels)
    except OSError as error:
        # Left behind, they are looked at again and found to be over.
        observe.hear(Noticed("low", "attempts-left", f"notes of earlier attempts cannot be removed: {error}"))


def _with_prior(chosen: BackupPlan, area: SourceArea, maps: Maps, sealing: Sealing) -> tuple[BackupPlan, Prior | None]:
    """What is known of the plan's prior, or the plan of a full backup where that is not enough to build on."""
    if chosen.prior is None:
        return chosen, None
    try:
        prior = maps.open(area, chosen.prior, sealing.ring)
    except _UNUSABLE as error:
        return chosen.as_full(f"what {chosen.prior.label} holds is not known on this host: {error.message}"), None
    try:
        area.prove_present(prior.objects)
    except _UNUSABLE as error:
        prior.close()
        return chosen.as_full(f"{chosen.prior.label} is not whole: {error.message}"), None
    return chosen, prior


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
    prior: Prior | None
    maps: Maps
    reread: bool
    pace: TokenBucket
    attempts: Attempts
    log: AttemptLog
    unfinished: Unfinished | None
    over: threading.Event

    def run(self, surroundings: Future[dict[str, str]], *, began_at: datetime) -> Head:
        with self._step("copy"):
            copied = self._copy()
        with closing(copied.files):
            return self._committed(copied, surroundings, began_at)

    def _committed(self, copied: Copied, surroundings: Future[dict[str, str]], began_at: datetime) -> Head:
        # Before the wait: the last segment arrives meanwhile.
        specials = {**copied.specials, **surroundings.result()}
        with self._step("wal"):
            self._wait_for_wal(copied)
        self._notice_bad_pages(copied)
        self._refuse_prior_let_go()
        head = self.writer.commit(
            self._head(copied, began_at),
            objects=copied.objects,
            specials=specials,
            files=copied.files.entries(),
            held=self.held,
            block_map=blocks.encode(str(self.chosen.label), copied.listed_at_ns, copied.files.maps()),
        )
        self._remember(head, copied)
        self._tell_resumed(copied)
        taken_up = self.unfinished.labels if self.unfinished is not None else ()
        _forget(self.attempts, (*taken_up, head.label), self.observe)
        return head

    def _tell_resumed(self, copied: Copied) -> None:
        if self.unfinished is not None:
            resumed = self.unfinished.resumed(copied.objects)
            self.observe.hear(resumed)
            self.observe.hear(Noticed("low", "resumed", resumed.sentence))

    def _copy(self) -> Copied:
        known = self.unfinished if self.unfinished is not None else self.prior
        if self.chosen.mode is CopyMode.DIRECT:
            from seawall.backup.direct import copy_direct  # noqa: PLC0415 - see `seawall.cli.backup`

            return copy_direct(
                self.source,
                self.chosen.cluster,
                self.writer,
                log=self.log,
                prior=self.prior,
                known=known,
                reread=self.reread,
                bucket=self.pace,
                workers=self.chosen.workers,
                adapts=self.chosen.adapts,
                first_wal=self._first_wal,
                observe=self.observe,
            )
        from seawall.backup.stream import copy_stream  # noqa: PLC0415 - as above

        return copy_stream(
            self.source,
            self.chosen.cluster,
            self.writer,
            log=self.log,
            prior=self.prior,
            known=known,
            bucket=self.pace,
            # Where one waits for the storage, another must be there to take what the server sends.
            workers=max(self.chosen.workers, 2) if self.chosen.adapts else self.chosen.workers,
            first_wal=self._first_wal,
            observe=self.observe,
        )

    def _refuse_prior_let_go(self) -> None:
        """A mark on the prior is at least 24 hours older than any removal: without one now, its objects stay.

        Raises:
            BackupMissing: the prior was marked for removal while this backup ran.
        """
        if self.prior is not None and self.area.is_expired(self.prior.head.label):
            raise BackupMissing(
                f"{self.prior.head.label}, which this backup builds on, was let go meanwhile",
                hint="Take the backup again; it will build on another one, or be full.",
            )

    def _remember(self, head: Head, copied: Copied) -> None:
        """Keep what the next incremental builds on; the backup is whole without it, so a failure is only said."""
        try:
            if head.health is Health.GOOD:
                self.maps.keep(head, copied.objects, copied.listed_at_ns, copied.files.lines())
                # An incremental builds on the newest good set, a differential on the newest good full one.
                self.maps.forget_all_but(str(h.label) for h in (head, self._newest_full(head)) if h is not None)
        except OSError as error:
            message = f"what the next incremental builds on cannot be kept: {error}"
            self.observe.hear(Noticed("medium", "no-block-map", message))

    def _newest_full(self, head: Head) -> Head | None:
        """Heads were read for the plan; under the lease no other set came since."""
        return head if head.kind is BackupKind.FULL else self.chosen.newest_full

    def _first_wal(self, first: Segment, in_recovery: bool) -> None:
        """Starting a backup closes the segment before it: if that does not arrive, nothing later will."""
        if not in_recovery and first.number > 0:
            wait_for(self.source, self.area, [first.previous()], observe=self.observe)

    def _wait_for_wal(self, copied: Copied) -> None:
        size = self.chosen.cluster.segment_bytes
        first = Segment.containing(copied.start_lsn, copied.timeline, size)
        last = Segment.ending_at(copied.stop_lsn, copied.timeline, size)
        needed = [Segment(copied.timeline, number, size) for number in range(first.number, last.number + 1)]
        if self.chosen.cluster.in_recovery and not self.area.wal.stored(last.name):
            self._close_segment()
        wait_for(self.source, self.area, needed, observe=self.observe)
        self._list_wal([segment.name for segment in needed])

    def _list_wal(self, names: list[str]) -> None:
        """Let copies of this WAL be proved without a key; what carries it may not have listed it yet."""
        try:
            self.area.wal.list_unlisted(names)
        except StorageError as error:
            message = f"the WAL of this backup is not listed with its hashes: {error.message}"
            self.observe.hear(Noticed("low", "wal-not-listed", message))

    def _close_segment(self) -> None:
        """Have the primary of a standby close its open segment; one that cannot is only slower to come to that."""
        if self.source.primary_conninfo:
            try:
                switch_wal_at_primary(self.source, self.chosen.cluster)
            except SeawallError as error:
                message = f"the primary was not asked to close its WAL segment: {error.message}"
                self.observe.hear(Noticed("medium", "wal-not-switched", message))

    def surroundings(self) -> dict[str, str]:
        """Configuration outside the data directory, and what belongs to no database; a loss that is said aloud."""
        found = self._readable("configuration", self._configuration)
        found[extensions.SPECIAL] = extensions.encoded(self.chosen.cluster.extensions)
        return found | self._readable("globals", lambda: {"globals.sql": self._globals()})

    def _globals(self) -> str:
        # A backup that failed does not wait for a server that does not answer.
        return globals_of(self.source, unwanted=self.over.is_set)

    def _configuration(self) -> dict[str, str]:
        texts = configuration(self.source, self.chosen.cluster)
        return {f"configuration:{path}": text for path, text in texts.items()}

    def _readable(self, what: str, read: Callable[[], dict[str, str]]) -> dict[str, str]:
        try:
            return read()
        except Cancelled:
            # Nobody reads it any more.
            return {}
        except SeawallError as error:
            self.observe.hear(Noticed("medium", f"no-{what}", f"{what} is not in this backup: {error.message}"))
            return {}

    def _notice_bad_pages(self, copied: Copied) -> None:
        bad = copied.files.bad_pages
        if bad:
            named = "; ".join(f"{path} pages {', '.join(map(str, pages[:8]))}" for path, pages in list(bad.items())[:8])
            self.observe.hear(
                Noticed("critical", "bad-pages", f"{sum(map(len, bad.values()))} corrupt pages were backed up: {named}")
            )

    def _head(self, copied: Copied, began_at: datetime) -> Head:
        cluster = self.chosen.cluster
        degraded = bool(copied.files.bad_pages)
        # What an attempt stored belongs to no other set: it was stored for this one.
        attempted = self.unfinished.taken if self.unfinished is not None else {}
        own = [*copied.objects[: copied.stored], *(o for o in copied.objects if o.name in attempted)]
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
            plain_bytes=copied.files.plain_bytes,
            stored_bytes=sum(stored.stored_bytes for stored in own),
            file_count=len(copied.files),
            object_count=len(own),
            compression=self.writer.sealing.compression,
            sealing=self.writer.sealing.mode,
            key_id=self.writer.key_id,
            manifest_sha256="",
            manifest_bytes=0,
            health=Health.DEGRADED if degraded else Health.GOOD,
            prior=str(self.prior.head.label) if self.prior is not None else "",
            reason=self.chosen.reason,
            checksums=cluster.checksums,
            tablespaces=cluster.tablespaces,
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.observe.hear(Ended(name, time.monotonic() - begin))
