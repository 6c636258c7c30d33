"""Acting on a plan: lay files down, let PostgreSQL replay WAL, compare what was reached with what was asked."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from seawall.archive.agent import Agent
from seawall.archive.commands import restore_command
from seawall.audit import AuditLog
from seawall.errors import RecoveryFailed
from seawall.events import Ended, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import RecoveryTarget, TargetKind
from seawall.postgres import recovery
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.instance import Instance
from seawall.repository import Repository
from seawall.restore import lay, tree
from seawall.restore.destination import refuse_destination
from seawall.restore.plan import RestorePlan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did and reached.

    Args:
        reached: where replay stopped; None when the server was not started.
        seconds: by step: `files`, `recovery`; `total` is the achieved RTO.
        port: where the server listens, 0 when none was left running.
    """

    label: str
    destination: str
    files: int
    written_bytes: int
    reused_bytes: int
    reached: recovery.Reached | None
    seconds: Mapping[str, float]
    port: int = 0

    @property
    def bytes_per_second(self) -> float:
        return self.written_bytes / max(self.seconds["files"], 0.001)


def run(
    plan: RestorePlan,
    repository: Repository,
    *,
    ring: KeyRing,
    binaries: Binaries,
    account: Account,
    actor: str,
    now: datetime,
    observe: Observer,
    workers: int = 2,
    port: int = 0,
    start: bool = True,
    socket_path: Path | None = None,
) -> RestoreReport:
    """Restore, recover and prove; leaves a stopped data directory, or a running server.

    Args:
        plan: from `restore.plan`; looked at again before anything is written.
        binaries: of the backup's major version.
        account: owns the files and runs the server.
        port: leave a server running there; 0 leaves it stopped.
        start: false lays files down and leaves recovery to the administrator, who then needs an agent on
            `socket_path` when the server starts.

    Raises:
        RecoveryFailed, WalGap: the target was not reached; the files stay for a look.
        Cancelled: on request; no server is left running.
    """
    details = {"destination": str(plan.destination), "target": f"{plan.target.kind.value} {plan.target.value}".strip()}
    AuditLog(repository.storage).append(actor, "restore", f"{plan.source} {plan.head.label}", details, now=now)
    if not start:
        return _files_only(
            plan,
            repository,
            ring=ring,
            account=account,
            observe=observe,
            workers=workers,
            socket_path=socket_path,
        )
    with recovered(
        plan, repository, ring=ring, binaries=binaries, account=account, observe=observe, workers=workers
    ) as (report, instance):
        instance.stop()
        recovery.deconfigure(plan.destination)
        if not port:
            return report
    instance.start(port)
    return RestoreReport(
        report.label,
        report.destination,
        report.files,
        report.written_bytes,
        report.reused_bytes,
        report.reached,
        report.seconds,
        port,
    )


def _files_only(
    plan: RestorePlan,
    repository: Repository,
    *,
    ring: KeyRing,
    account: Account,
    observe: Observer,
    workers: int,
    socket_path: Path | None,
) -> RestoreReport:
    begin = time.monotonic()
    command = restore_command(socket_path or Path("/run/seawall/agent.sock"))
    laid = _lay(plan, repository, ring=ring, account=account, observe=observe, workers=workers, command=command)
    seconds = time.monotonic() - begin
    return _report(plan, laid, None, {"files": seconds, "total": seconds})


@contextmanager
def recovered(
    plan: RestorePlan,
    repository: Repository,
    *,
    ring: KeyRing,
    binaries: Binaries,
    account: Account,
    observe: Observer,
    workers: int = 2,
    timeout: float = 4 * 3600.0,
) -> Iterator[tuple[RestoreReport, Instance]]:
    """A restored, recovered and promoted instance, private to this host, while the context is open.

    Nothing is left running at its end, whatever happens in between.
    """
    begin = time.monotonic()
    binaries.usable_by(account)
    with _fetching(plan, repository, ring, account, observe) as command:
        laid = _lay(plan, repository, ring=ring, account=account, observe=observe, workers=workers, command=command)
        files = time.monotonic() - begin
        observe.hear(Ended("restore", files))
        instance = Instance(plan.destination, binaries, account)
        try:
            instance.start(wait=False, private=True)
            reached = recovery.watch(instance, _target(plan), timeout=timeout, observe=observe)
            refuse_other_point(plan.target, reached)
            total = time.monotonic() - begin
            observe.hear(Ended("recovery", total - files))
            seconds = {"files": files, "recovery": total - files, "total": total}
            yield _report(plan, laid, reached, seconds), instance
        finally:
            # Whatever happened, nothing is left running; a stopped instance is left as it is.
            instance.stop("fast" if instance.is_ready() else "immediate")


@contextmanager
def _fetching(
    plan: RestorePlan, repository: Repository, ring: KeyRing, account: Account, observe: Observer
) -> Iterator[str]:
    """An agent that gives WAL to the server, and the restore_command that asks it."""
    # The server's account must reach the socket, and a socket's path may have about 100 bytes.
    place = Path(tempfile.mkdtemp(prefix="seawall-"))
    try:
        place.chmod(0o711)
        area = repository.source(plan.source)
        socket_path = place / "agent.sock"
        accounts = frozenset({account.uid, os.geteuid()})
        with Agent(area, None, ring, place / "spool", socket_path, accounts=accounts, observe=observe):
            yield restore_command(socket_path)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _lay(
    plan: RestorePlan,
    repository: Repository,
    *,
    ring: KeyRing,
    account: Account,
    observe: Observer,
    workers: int,
    command: str,
) -> lay.Laid:
    # The destination may have changed since the plan was made.
    refuse_destination(plan.destination, delta=plan.delta)
    area = repository.source(plan.source)
    laid = lay.lay(plan, area, ring, account, workers=workers, observe=observe)
    saved = {
        name.removeprefix("configuration:"): text
        for name, text in laid.specials.items()
        if name.startswith("configuration:")
    }
    written = recovery.complete_configuration(plan.destination, saved, account)
    if written:
        observe.hear(Noticed("low", "configuration", f"these lay elsewhere and were made: {', '.join(written)}"))
    recovery.configure(plan.destination, _target(plan), command, account=account)
    try:
        tree.reveal_control(plan.destination)
    except OSError as error:
        raise tree.translated(error, plan.destination) from error
    return laid


def _target(plan: RestorePlan) -> RecoveryTarget:
    """The target with its timeline as PostgreSQL takes it.

    `immediate` stays on the backup's own timeline: it is consistent before any switch.
    """
    timeline = "current" if plan.target.kind is TargetKind.IMMEDIATE else str(plan.history.timeline)
    if plan.history.timeline == plan.head.timeline:
        timeline = "current"
    return RecoveryTarget(plan.target.kind, plan.target.value, plan.target.inclusive, timeline)


def refuse_other_point(target: RecoveryTarget, reached: recovery.Reached) -> None:
    """Compare what was reached with what was asked: PostgreSQL does not always say when they differ.

    Raises:
        RecoveryFailed: replay went past the target, or ended before it.
    """
    moment, lsn = target.moment, target.lsn
    if moment is not None and reached.last_commit_at is not None and reached.last_commit_at > moment:
        raise RecoveryFailed(f"a commit of {reached.last_commit_at} was replayed, after the target {moment}")
    if lsn is not None and reached.lsn < lsn and target.inclusive:
        raise RecoveryFailed(f"replay ended at {reached.lsn}, before the target {lsn}")


def _report(
    plan: RestorePlan, laid: lay.Laid, reached: recovery.Reached | None, seconds: Mapping[str, float]
) -> RestoreReport:
    rounded = {step: round(value, 3) for step, value in seconds.items()}
    return RestoreReport(
        str(plan.head.label),
        str(plan.destination),
        laid.files,
        laid.written_bytes,
        laid.reused_bytes,
        reached,
        rounded,
    )
