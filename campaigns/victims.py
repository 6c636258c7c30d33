"""What the kill campaign kills: each verb as a process of its own that dies at a boundary that was chosen for it.

The processes are forked from a clean one (`forkserver`) that has everything imported and no threads.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from campaigns import sample
from campaigns.boundaries import Boundaries
from campaigns.disk import Recorder
from campaigns.sample import SOURCE, QuickRing, recipients
from seawall import backup, retention
from seawall.archive.agent import Agent
from seawall.archive.receiver import Receiver
from seawall.audit import AuditLog
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.model import BackupKind, BackupLabel, Compression, CopyMode, SealingMode
from seawall.postgres.walsender import Walsender
from seawall.repository import Repository, Sealing
from seawall.settings import SourceSettings
from seawall.storage import draft, local
from seawall.storage.local import LocalStorage
from seawall.wal import Lsn

REFUSED = 3
DONE = "done"


@dataclass(frozen=True)
class Scene:
    """Where a victim works; plain values, so that a process can be given it."""

    home: Path
    conninfo: str = ""
    mode: SealingMode = SealingMode.AES_256_GCM
    copy_mode: CopyMode = CopyMode.DIRECT

    @property
    def place(self) -> Path:
        return self.home / "repository"

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def socket(self) -> Path:
        return self.home / "agent.sock"

    @property
    def settings_file(self) -> Path:
        return self.home / "seawall.toml"

    @property
    def source(self) -> SourceSettings:
        return SourceSettings(
            SOURCE, conninfo=self.conninfo, mode=self.copy_mode, workers=1, wal_timeout=timedelta(seconds=60)
        )

    def open(self) -> Repository:
        return Repository.open(LocalStorage(self.place))

    def ring(self) -> QuickRing:
        return QuickRing(self.home / "ring")

    def sealing(self) -> Sealing:
        ring = self.ring()
        return Sealing(self.mode, Compression.LZ4, 1, recipients(ring), ring)


Victim = Callable[..., None]
Process = multiprocessing.process.BaseProcess


def now() -> datetime:
    return datetime.now(UTC)


# ---- the verbs


def back_up(scene: Scene, at: str) -> None:
    """The engine: one backup, labelled with the time given."""
    begin = datetime.fromisoformat(at)
    # With a place for notes, so that what was killed is resumed by the run after it.
    maps = scene.spool / "maps"
    backup.take(scene.source, scene.open(), scene.sealing(), block_maps=maps, now=begin, observe=Observer())


def increment(scene: Scene, at: str) -> None:
    """The engine: one incremental, whose prior's block map lies on this host."""
    begin = datetime.fromisoformat(at)
    backup.take(
        scene.source,
        scene.open(),
        scene.sealing(),
        kind=BackupKind.INCREMENTAL,
        block_maps=scene.spool / "maps",
        now=begin,
        observe=Observer(),
    )


def receive(scene: Scene) -> None:
    """The receiver, until its spool directory has a file named `stop`."""
    observe = Observer()
    receiver = Receiver(
        scene.source,
        scene.open().source(SOURCE),
        scene.sealing(),
        scene.spool,
        observe=observe,
        create_slot=True,
        tail_seconds=0.3,
        workers=1,
    )
    receiver.start()
    while not (scene.home / "stop").exists() and not observe.cancel.wait(0.02):
        pass
    receiver.stop()


def serve(scene: Scene) -> None:
    """The agent that archive_command asks, until there is a file named `stop`."""
    accounts = frozenset({os.geteuid()})
    area = scene.open().source(SOURCE)
    with Agent(area, scene.sealing(), None, scene.spool, scene.socket, accounts=accounts, workers=1):
        while not (scene.home / "stop").exists():
            Observer().cancel.wait(0.02)


def let_go(scene: Scene, label: str) -> None:
    """Retention: marks one set, and the WAL that only it needs."""
    repository = scene.open()
    gone = retention.Decision(BackupLabel.parse(label), ("campaign",), 0)
    plan = retention.RetentionPlan(SOURCE, now(), (), (gone,))
    retention.expire(repository, plan, actor="campaign", now=now())


def collect(scene: Scene) -> None:
    """Retention: removes what was marked long ago."""
    retention.collect(scene.open(), SOURCE, actor="campaign", now=now(), observe=Observer())


def write_set(scene: Scene, at: str) -> None:
    """The writer of a set, without a server: lease, key, bundles, and the commit."""
    area = scene.open().source(SOURCE)
    sample.back_up(scene.sealing(), area, datetime.fromisoformat(at), 6, random.Random(at))


def write_carelessly(scene: Scene, at: str) -> None:
    """The same on a storage that syncs no folder: what a campaign of power cuts has to find."""
    setattr(local, "sync_folder", lambda _folder: None)  # noqa: B010 - a defect is made on purpose
    setattr(draft, "sync_folder", lambda _folder: None)  # noqa: B010 - as above
    write_set(scene, at)


def hold(scene: Scene, label: str) -> None:
    """An administrator keeps a set, and lets it go again."""
    repository = scene.open()
    area, chosen = repository.source(SOURCE), BackupLabel.parse(label)
    AuditLog(repository.storage).append("campaign", "hold", label, {}, now=now())
    held = area.place_hold(chosen, reason="campaign", owner="campaign", now=now())
    area.release_hold(held.id, owner="campaign", now=now())


def rotate(scene: Scene, label: str) -> None:
    """Keys: wraps one for other recipients, and removes the older wraps."""
    repository, ring = scene.open(), scene.ring()
    area, chosen = repository.source(SOURCE), recipients(ring, "operations", "successor")
    AuditLog(repository.storage).append("campaign", "rewrap", label, {}, now=now())
    area.keychain.rewrap(label, ring, chosen, now())
    area.keychain.retire(label, chosen)
    ring.close()


def work(scene: Scene, job: str) -> None:
    """The worker: the task that a flow runs, with its row in the catalog."""
    from seawall import settings  # noqa: PLC0415 - Prefect takes a second to import; only this victim needs it
    from tasks.backup import take  # noqa: PLC0415 - as above

    take.fn(settings.load(scene.settings_file), SOURCE, UUID(job), BackupKind.FULL)


# ---- running them


def run(verb: Victim, scene: Scene, arguments: tuple[str, ...], number: int, report: Path) -> None:
    """The body of a victim's process."""
    tempfile.tempdir = str(scene.home / "temporary")
    boundaries = Boundaries([scene.place, scene.spool], number, report)
    if verb is work:
        boundaries.watch_statements()
    boundaries.install()
    try:
        verb(scene, *arguments)
    except SeawallError as error:
        (scene.home / "error").write_text(f"{error.code}: {error}", encoding="utf-8")
        os._exit(REFUSED)
    os._exit(0)


def record(verb: Victim, scene: Scene, arguments: tuple[str, ...], log: Path) -> None:
    """The body of a process that is not killed, and whose writes are recorded."""
    tempfile.tempdir = str(scene.home / "temporary")
    recorder = Recorder([scene.place, scene.spool], log)
    recorder.install()
    if verb is receive:
        _promise_what_is_reported(recorder)
    verb(scene, *arguments)
    recorder.promise(DONE)
    os._exit(0)


def _promise_what_is_reported(recorder: Recorder) -> None:
    """What a receiver calls flushed, the server forgets."""
    report = Walsender.report

    def told(self: Walsender, written: Lsn, flushed: Lsn) -> None:
        recorder.promise(str(flushed.value))
        report(self, written, flushed)

    setattr(Walsender, "report", told)  # noqa: B010 - a method is replaced, which a checker of types refuses


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["campaigns.victims"])


def import_worker() -> None:
    """Have the clean process import what the worker needs too; must come before the first victim.

    Prefect takes seconds, which each worker that is to be killed would spend.
    """
    _context.set_forkserver_preload(["campaigns.victims", "tasks.backup"])


def start(verb: Victim, scene: Scene, *arguments: str, number: int = 0, report: Path) -> Process:
    """Let a verb run in a process of its own, which dies at the boundary of that number."""
    report.unlink(missing_ok=True)
    process = _context.Process(target=run, args=(verb, scene, arguments, number, report), daemon=True)
    process.start()
    return process


def start_recorded(verb: Victim, scene: Scene, *arguments: str, log: Path) -> Process:
    """Let a verb run to its end in a process of its own that writes down what it does to the disk."""
    process = _context.Process(target=record, args=(verb, scene, arguments, log), daemon=True)
    process.start()
    return process
