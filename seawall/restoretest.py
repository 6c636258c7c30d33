"""The restore test: a backup counts as restorable when it was restored, started, replayed and looked at.

Everything happens in a scratch instance that is private to this host, archives nothing, and is removed at the end
whatever happens.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import LiteralString

from seawall import restore
from seawall.errors import SeawallError
from seawall.events import Began, Ended, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Finding, Head, RecoveryTarget, TargetKind
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.connect import Session
from seawall.postgres.instance import Instance, scratch
from seawall.postgres.pages import FRAME_BYTES, PageChecker
from seawall.postgres.scan import scan
from seawall.repository import Repository, SourceArea
from seawall.restore import RestorePlan, RestoreReport
from seawall.wal import Lsn, Segment, contiguous_until

_INDEXES: LiteralString = (
    "SELECT c.oid::regclass::text, c.oid::int8 FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid"
    " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND i.indisvalid AND c.relpersistence = 'p'"
    " AND c.relkind = 'i' ORDER BY c.relpages"
)
_TABLES: LiteralString = (
    "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, c.oid::int8 FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence = 'p'"
    " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY c.relpages, name"
)
# -2 marks a database whose DROP DATABASE broke off: nobody can connect to it (PostgreSQL pg_database.h).
_DATABASES: LiteralString = "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"


@dataclass(frozen=True, slots=True)
class Assertion:
    """A query whose first value, as text, must be `expected`."""

    database: str
    query: str
    expected: str


@dataclass(frozen=True, slots=True)
class RestoreTestReport:
    """What a restore test proved.

    Args:
        row_counts: rows by `database: schema.table`.
        checks: how many of each kind ran, such as indexes and pages.
        seconds: by step; `total` is the achieved RTO and leaves the checks out.
    """

    label: BackupLabel
    target: RecoveryTarget
    report: RestoreReport
    row_counts: Mapping[str, int]
    checks: Mapping[str, int]
    findings: tuple[Finding, ...]
    rto: timedelta
    checked_at: datetime

    @property
    def achieved_rto(self) -> timedelta:
        return timedelta(seconds=self.report.seconds["total"])

    @property
    def good(self) -> bool:
        return not self.findings


def run(
    repository: Repository,
    source: str,
    *,
    ring: KeyRing,
    binaries: Binaries,
    account: Account,
    parent: Path,
    target: RecoveryTarget | None = None,
    label: BackupLabel | None = None,
    assertions: Sequence[Assertion] = (),
    now: datetime,
    rto: timedelta = timedelta(hours=4),
    randomness: random.Random,
    observe: Observer,
    workers: int = 2,
    budget: timedelta = timedelta(hours=1),
) -> RestoreTestReport:
    """Restore into a scratch instance below `parent`, check it, and remove it.

    Args:
        target: where to stop; a random position inside the recoverability window when omitted.
        assertions: queries of the administrator.
        randomness: chooses that position; seeded by the caller.
        budget: for counting rows and comparing indexes, the smallest first; what it does not suffice for is counted
            as `skipped`. Page checksums and assertions are always looked at.

    Raises:
        SeawallError: it could not be restored at all; what is wrong with a restored one is in the findings.
    """
    chosen = target or random_target(repository, source, randomness, label, ring=ring)
    with scratch(parent, binaries, account) as place:
        plan = restore.plan(
            repository, source, chosen, place.data_directory, label=label, now=now, rto=rto, ring=lambda: ring
        )
        plan = _within(plan, place.root)
        with restore.recovered(
            plan, repository, ring=ring, binaries=binaries, account=account, observe=observe, workers=workers
        ) as (report, instance):
            looking = _Look(instance, assertions, observe, budget)
            looking.run()
    return RestoreTestReport(
        plan.head.label,
        chosen,
        report,
        looking.row_counts,
        looking.checks,
        tuple(looking.findings),
        rto,
        now,
    )


def _within(plan: RestorePlan, root: Path) -> RestorePlan:
    """The plan with its tablespaces below the scratch directory, so that they are removed with it."""
    moved = tuple((oid, origin, root / f"tablespace-{oid}") for oid, origin, _ in plan.tablespaces)
    return replace(plan, tablespaces=moved)


def random_target(
    repository: Repository,
    source: str,
    randomness: random.Random,
    label: BackupLabel | None = None,
    *,
    ring: KeyRing | None = None,
) -> RecoveryTarget:
    """A random position inside the recoverability window; `latest` if there is no room.

    A position is always reachable, which a random time is not: on an idle server no commit may follow it. Every
    position that some listed backup and unbroken WAL lead to is as likely as any other.

    Args:
        label: only positions after this backup's end.
        ring: opens the manifest when the head is damaged.
    """
    area = repository.source(source)
    stretches = _stretches(area, [area.head(label, ring)] if label else area.readable_heads()[0])
    total = sum(end - begin for _, begin, end in stretches)
    if not total:
        return RecoveryTarget(TargetKind.LATEST, timeline="current" if label else "latest")
    timeline, position = _at(stretches, randomness.randrange(total))
    # The timeline's number, not `current`: which backup it starts from is for the plan to choose.
    return RecoveryTarget(TargetKind.LSN, str(Lsn(position)), timeline="current" if label else str(timeline))


def _at(stretches: Sequence[tuple[int, int, int]], number: int) -> tuple[int, int]:
    """Timeline and value of the position with that number, counted through all stretches."""
    for timeline, begin, end in stretches:
        if number < end - begin:
            return timeline, begin + number
        number -= end - begin
    raise ValueError("there are fewer positions than that")


def _stretches(area: SourceArea, heads: Sequence[Head]) -> list[tuple[int, int, int]]:
    """Positions that can be recovered to: timeline, first, and the one after the last; each position once."""
    names = {timeline: area.wal.names(timeline) for timeline in {head.timeline for head in heads}}
    found: dict[tuple[int, int], int] = {}
    for head in heads:
        first = Segment.ending_at(head.stop_lsn, head.timeline, head.segment_bytes)
        last = contiguous_until(first, names[head.timeline])
        if last is not None and last.start > head.stop_lsn:
            # Backups whose WAL runs on to the same place share what comes after the later one of them.
            place = (head.timeline, last.start.value)
            found[place] = min(found.get(place, head.stop_lsn.value), head.stop_lsn.value)
    return sorted((timeline, begin, end) for (timeline, end), begin in found.items())


@contextmanager
def _interruptible(session: Session, observe: Observer) -> Iterator[Session]:
    """Cancels the statement that runs as soon as somebody asks to stop: one may take hours."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if observe.cancel.is_set():
                session.cancel_safe(timeout=5)

    watcher = threading.Thread(target=watch, name="restore-test-cancel", daemon=True)
    watcher.start()
    try:
        yield session
    finally:
        over.set()
        watcher.join()


class _Look:
    """Everything that is checked in a restored instance."""

    def __init__(
        self, instance: Instance, assertions: Sequence[Assertion], observe: Observer, budget: timedelta
    ) -> None:
        self._instance, self._assertions, self._observe = instance, assertions, observe
        self._late_at = time.monotonic() + budget.total_seconds()
        self.row_counts: dict[str, int] = {}
        self.checks = {"indexes": 0, "tables": 0, "pages": 0, "assertions": 0, "skipped": 0}
        self.findings: list[Finding] = []

    def run(self) -> None:
        begin = time.monotonic()
        self._observe.hear(Began("check"))
        with self._instance.connect() as session:
            names = [str(row[0]) for row in session.execute(_DATABASES)]
        for name in names:
            with self._instance.connect(name) as session, _interruptible(session, self._observe):
                self._database(name, session)
        for assertion in self._assertions:
            self._assert(assertion)
            self._observe.checkpoint()
        self._instance.stop()
        self._pages()
        self._observe.hear(Ended("check", time.monotonic() - begin))

    def _database(self, name: str, session: Session) -> None:
        amcheck = self._amcheck(session)
        for table, oid in session.execute(_TABLES).fetchall():
            if self._in_time():
                self._table(name, session, str(table), int(oid), amcheck=amcheck)
        for index, oid in session.execute(_INDEXES).fetchall() if amcheck else ():
            if self._in_time():
                self._index(name, session, str(index), int(oid))
        self._observe.checkpoint()

    def _in_time(self) -> bool:
        self._observe.checkpoint()
        if time.monotonic() < self._late_at:
            return True
        self.checks["skipped"] += 1
        return False

    def _amcheck(self, session: Session) -> bool:
        row = session.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'").fetchone()
        if row is None or not row[0]:
            self._observe.hear(Noticed("low", "no-amcheck", "amcheck is not installed: indexes were not compared"))
            return False
        session.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        return True

    def _table(self, database: str, session: Session, table: str, oid: int, *, amcheck: bool) -> None:
        from psycopg import Error, sql  # noqa: PLC0415 - only a restore test needs it here

        try:
            count = session.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.SQL(table))).fetchone()
            self.row_counts[f"{database}: {table}"] = 0 if count is None else int(count[0])
            if amcheck:
                problems = session.execute(
                    "SELECT msg, blkno FROM verify_heapam(%s::oid::regclass) LIMIT 5", (oid,)
                ).fetchall()
                self.findings += [
                    Finding("heap", f"{database}: {table}", f"block {block}: {text}") for text, block in problems
                ]
            self.checks["tables"] += 1
        except Error as error:
            self.findings.append(Finding("heap", f"{database}: {table}", str(error).strip()))

    def _index(self, database: str, session: Session, index: str, oid: int) -> None:
        from psycopg import Error  # noqa: PLC0415 - only a restore test needs it here

        try:
            session.execute("SELECT bt_index_check(%s::oid::regclass, true)", (oid,))
            self.checks["indexes"] += 1
        except Error as error:
            self.findings.append(Finding("index", f"{database}: {index}", str(error).strip()))

    def _assert(self, assertion: Assertion) -> None:
        from psycopg import Error, sql  # noqa: PLC0415 - only a restore test needs it here

        self.checks["assertions"] += 1
        try:
            with self._instance.connect(assertion.database) as session, _interruptible(session, self._observe):
                # The administrator's own query, run in a scratch instance that is thrown away.
                row = session.execute(sql.SQL(assertion.query)).fetchone()
            found = "" if row is None or row[0] is None else str(row[0])
        except (Error, SeawallError) as error:
            found = f"error: {str(error).strip()}"
        if found != assertion.expected:
            message = f"{assertion.query} gave {found!r}, expected was {assertion.expected!r}"
            self.findings.append(Finding("assertion", assertion.database, message))

    def _pages(self) -> None:
        """Checksums of every page as it lies on disk, after the server wrote everything and stopped."""
        from seawall.postgres.control import read_control  # noqa: PLC0415 - kept beside its only use

        directory = self._instance.data_directory
        control = read_control(directory)
        if not control.checksums:
            return
        checker = PageChecker(FRAME_BYTES, control.block_bytes)
        for entry in scan(directory).files:
            if not entry.is_relation:
                continue
            with entry.absolute.open("rb") as file:
                block = entry.first_block
                while piece := file.read(FRAME_BYTES):
                    self._observe.checkpoint()
                    for bad in checker.check(piece, block):
                        self.findings.append(Finding("page", entry.path, f"page {bad} has a wrong checksum"))
                    block += len(piece) // control.block_bytes
                    self.checks["pages"] += len(piece) // control.block_bytes
