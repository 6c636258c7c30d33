"""Kill beside a running server: the engine, the receiver, the worker and PostgreSQL itself, all in one repository."""

from __future__ import annotations

import itertools
import multiprocessing.process
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from campaigns import scenes, victims
from campaigns.kill import GRACE, KILLED, Looker, Tally, Trial
from campaigns.sample import PASSPHRASE, SOURCE, recipients
from campaigns.victims import Scene
from seawall import restore, retention, settings
from seawall.catalog import Catalog, JobType
from seawall.catalog.rebuilding import rebuild
from seawall.catalog.recording import job_of
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import CopyMode, RecoveryTarget
from seawall.postgres.binaries import Account
from seawall.postgres.instance import Instance
from seawall.repository import documents
from seawall.wal import Segment

_SEGMENT_BYTES = 1 << 20
# About what a receiver passes until it has carried ten segments.
_RECEIVER_BOUNDARIES = 400
_CONNECTED = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'"
_ROWS = "SELECT count(*) FROM t"
_SETTINGS = """
[repository]
url = "{scene.place}"
[sealing]
compression = "lz4"
keyring = "{scene.home}/ring"
operations = "{keys[0]}"
escrow = "{keys[1]}"
passphrase_file = "{passphrase}"
[catalog]
url = "{catalog}"
[server]
work_directory = "{scene.home}/work"
[sources.shop]
conninfo = "{conninfo}"
workers = 1
"""


@dataclass
class Live:
    """Kills the engine, the receiver, the agent and the worker beside a running server, all in one repository.

    `resumed` counts the backups that took over what a killed one had stored. The catalog is one in the scene, unless
    `catalog_url` names another.
    """

    scene: Scene
    instance: Instance
    ring: KeyRing
    carrier: multiprocessing.process.BaseProcess | None = None
    number: int = 0
    resumed: int = 0
    catalog_url: str = ""

    def __post_init__(self) -> None:
        self.catalog_url = self.catalog_url or f"sqlite:///{self.scene.spool}/catalog.db"

    @property
    def looker(self) -> Looker:
        return Looker(self.scene, self.ring)

    # ---- WAL

    def carry(self) -> None:
        """Let a receiver bring WAL that nobody kills."""
        (self.scene.home / "stop").unlink(missing_ok=True)
        report = self.scene.home / "carrier"
        self.carrier = victims.start(victims.receive, self.scene, report=report)
        scenes.until(lambda: self._value(_CONNECTED) == "t", "the receiver's connection")

    def drop_carrier(self) -> None:
        (self.scene.home / "stop").touch()
        if self.carrier is not None:
            self.carrier.join(60)
            self.carrier = None

    def write_wal(self, segments: int = 1) -> str:
        """Fill so many segments; the name of the last."""
        with self.instance.connect() as session:
            for _ in range(segments):
                session.execute("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 500) AS n")
                row = session.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        return str(row[0]) if row else ""

    def _value(self, question: str) -> str:
        with self.instance.connect() as session:
            row = session.execute(question.encode()).fetchone()
        return "" if row is None else {True: "t", False: "f"}.get(row[0], str(row[0]))

    # ---- the engine

    def kill_backups(self, copy_mode: CopyMode, points: int, tally: Tally) -> None:
        """Kill a full backup at so many boundaries; a receiver carries WAL meanwhile."""
        trial = Trial(victims.back_up, replace(self.scene, copy_mode=copy_mode), self._free_label)
        self._kill_each(f"full backup, {copy_mode.value}", trial, points, tally)

    def kill_incrementals(self, points: int, tally: Tally) -> None:
        """Kill an incremental at so many boundaries; each one that ends is the prior of the next."""
        trial = Trial(victims.increment, self.scene, self._free_label)
        self._kill_each("incremental backup", trial, points, tally)

    def _kill_each(self, name: str, trial: Trial, points: int, tally: Tally) -> None:
        self.carry()
        try:
            # The first incremental of all is a full backup, which has other boundaries.
            trial.finish()
            tally.boundaries[name] = count = trial.count()
            for number in scenes.spread(count, points):
                self._kill_one(name, trial, number, tally)
        finally:
            self.drop_carrier()

    def _kill_one(self, name: str, trial: Trial, number: int, tally: Tally) -> None:
        looker = self.looker
        self.number += 1
        self.write_wal()
        before = looker.labels()
        code = trial.run(number)
        point = trial.point() if code == KILLED else f"ended with {code}"
        faults = list(looker.listed(before))
        if self.number % 2:
            # Garbage first: there is nothing to resume.
            faults += looker.garbage()
            trial.finish()
        else:
            looker.end_leases()
            trial.finish()
            self.resumed += looker.has_resumed()
            faults += looker.garbage()
        faults += looker.listed(before)
        faults += looker.without_gap()
        tally.add(name, number, point, faults)
        if trial.verb is not victims.increment:
            self.thin_out()

    def _free_label(self) -> tuple[str]:
        """A time that no backup, killed or not, has begun at."""
        begun = [label.begun_at for label in self.looker.area.begun()]
        return (max([victims.now(), *(moment + timedelta(seconds=1) for moment in begun)]).isoformat(),)

    def thin_out(self) -> None:
        """Let all but the two newest sets go, by marks that are old enough already."""
        area = self.looker.area
        for label in area.labels()[:-2]:
            mark = {"label": str(label), "actor": "campaign", "marked_at": (victims.now() - 2 * GRACE).isoformat()}
            documents.put(area.storage, area.layout.expiry(label), mark)
        self.looker.end_leases()
        retention.collect(self.scene.open(), SOURCE, actor="campaign", now=victims.now(), observe=Observer())

    # ---- the server

    def kill_servers(self, points: int, tally: Tally) -> None:
        """Kill PostgreSQL while a backup has passed so many boundaries."""
        self.carry()
        trial = Trial(victims.back_up, self.scene, self._free_label)
        count = trial.count()
        for number in scenes.spread(count, points):
            before = self.looker.labels()
            process = victims.start(victims.back_up, self.scene, *self._free_label(), report=trial.report)
            while process.exitcode is None and _lines(trial.report) < number:
                process.join(0.01)
            self._kill_server()
            process.join(120)
            faults = list(self._told(process.exitcode))
            self._start_server()
            faults += self.looker.listed(before)
            faults += self.looker.garbage()
            scenes.until(lambda: self._value(_CONNECTED) == "t", "the receiver's connection")
            trial.finish()
            faults += self.looker.listed(before)
            faults += self.looker.without_gap()
            tally.add("PostgreSQL, during a backup", number, "any", faults)
            self.thin_out()
        self.drop_carrier()

    def _told(self, code: int | None) -> Iterator[str]:
        """A backup that could not end says that the server is away."""
        said = self.scene.home / "error"
        error = said.read_text(encoding="utf-8") if said.exists() else ""
        said.unlink(missing_ok=True)
        if code != 0 and not error.startswith(("server-unreachable", "server-failed", "archive-timeout")):
            yield f"the backup ended with {code} and said {error!r}"

    def _kill_server(self) -> None:
        pid = self.instance.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        scenes.until(lambda: not self.instance.is_running(), "the server's end")

    def _start_server(self) -> None:
        # Its children end by themselves as soon as they see that the postmaster is gone.
        give_up = time.monotonic() + 60
        while True:
            try:
                return self.instance.start(self.instance.port, scenes.SERVER)
            except SeawallError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)

    # ---- the worker

    def kill_workers(self, points: int, tally: Tally) -> None:
        """Kill the task that a flow runs, at its writes to repository and catalog."""
        job = str(self._prepare_catalog())
        self.carry()
        trial = Trial(victims.work, self.scene, lambda: (job,))
        tally.boundaries["worker"] = count = trial.count()
        for number in scenes.spread(count, points):
            self.wait_for_free_second()
            before = self.looker.labels()
            code = trial.run(number)
            point = trial.point() if code == KILLED else f"ended with {code}"
            faults = list(self.looker.listed(before))
            faults += self.looker.garbage()
            with self.catalog() as catalog:
                catalog.reconcile(victims.now() + timedelta(hours=1))
            self.wait_for_free_second()
            trial.finish()
            faults += self.recorded()
            faults += self.looker.listed(before)
            tally.add("worker", number, point, faults)
            self.thin_out()
        self.drop_carrier()

    def catalog(self) -> Catalog:
        return Catalog.open(self.catalog_url)

    def write_settings(self) -> None:
        """The file from which a task learns of scene and server."""
        passphrase = self.scene.home / "passphrase"
        passphrase.write_text(PASSPHRASE, encoding="utf-8")
        passphrase.chmod(0o600)
        text = _SETTINGS.format(
            scene=self.scene,
            keys=recipients(self.ring),
            passphrase=passphrase,
            conninfo=self.scene.conninfo,
            catalog=self.catalog_url,
        )
        self.scene.settings_file.write_text(text, encoding="utf-8")

    def _prepare_catalog(self) -> UUID:
        self.write_settings()
        Catalog.open(self.catalog_url, create=True).close()
        with self.catalog() as catalog:
            known = settings.load(self.scene.settings_file)
            return job_of(catalog, known, SOURCE, JobType.FULL, now=victims.now()).id

    def recorded(self) -> Iterator[str]:
        """The catalog is whole, nothing seems to run, and a rebuild adds what it could not be told."""
        with self.catalog() as catalog:
            yield from (f"the catalog: {fault}" for fault in catalog.check())
            running = [run for run in catalog.executions() if not run.status.is_final]
            yield from (f"execution {run.id} is still {run.status}" for run in running)
            rebuild(catalog, self.scene.open(), victims.now())
            known = {str(file.label) for file in catalog.backup_files() if file.expired_at is None}
        yield from (f"{label} is not in the catalog" for label in self.looker.labels() if str(label) not in known)

    def wait_for_free_second(self) -> None:
        """The worker takes the time as it is, and a label is used once."""
        newest = max((label.begun_at for label in self.looker.area.begun()), default=victims.now() - GRACE)
        scenes.until(lambda: victims.now() > newest + timedelta(seconds=1), "a later second")

    # ---- the receiver

    def kill_receivers(self, points: int, tally: Tally) -> None:
        """Kill the receiver at so many boundaries; the next one goes on where it ended."""
        for number in scenes.spread(_RECEIVER_BOUNDARIES, points):
            (self.scene.home / "stop").unlink(missing_ok=True)
            trial = Trial(victims.receive, self.scene)
            process = victims.start(victims.receive, self.scene, number=number, report=trial.report)
            while process.exitcode is None:
                self.write_wal()
                process.join(0.1)
            point = trial.point() if process.exitcode == KILLED else f"ended with {process.exitcode}"
            tally.add("receiver", number, point, self._received())

    def _received(self) -> Iterator[str]:
        """A new receiver brings all there is, and what the repository has is what the server wrote."""
        last = self.write_wal()
        self.carry()
        try:
            area = self.looker.area
            scenes.until(lambda: area.wal.stored(last), f"{last} in the repository")
        finally:
            self.drop_carrier()
        names = sorted(area.wal.names())
        segments = [Segment.parse(name, _SEGMENT_BYTES) for name in names]
        for one, next_one in itertools.pairwise(segments):
            if one.next() != next_one:
                yield f"WAL has a gap behind {one.name}"
        for name in names[-6:]:
            written = self.instance.data_directory / "pg_wal" / name
            if written.exists() and written.read_bytes() != area.wal.fetch(name, self.ring):
                yield f"{name} is not what the server wrote"

    # ---- a restore of what is left

    def start_restored(self, account: Account) -> Iterator[str]:
        """The newest backup is restored, recovered and started, and has all rows."""
        expected = self._value(_ROWS)
        last = self.write_wal()
        self.carry()
        try:
            scenes.until(lambda: self.looker.area.wal.stored(last), f"{last} in the repository")
        finally:
            self.drop_carrier()
        place = self.scene.home / "restored" / "data"
        place.parent.mkdir(mode=0o755)
        repository = self.scene.open()
        plan = restore.plan(repository, SOURCE, RecoveryTarget(), place, now=victims.now())
        with restore.recovered(
            plan, repository, ring=self.ring, binaries=self.instance.binaries, account=account, observe=Observer()
        ) as (_, instance):
            with instance.connect() as session:
                row = session.execute(_ROWS.encode()).fetchone()
            # What `write_wal` added since is more, and nothing may be less.
            if row is None or int(str(row[0])) < int(expected):
                yield f"the restored cluster has {row} rows of {expected}"
        shutil.rmtree(place.parent)


def _lines(report: Path) -> int:
    return len(report.read_bytes().splitlines()) if report.exists() else 0
