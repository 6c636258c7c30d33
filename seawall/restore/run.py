"""Acting on a plan: lay files down, let PostgreSQL replay WAL, compare what was reached with what was asked.

Nothing is left running when it fails or is cancelled: the server is stopped before the agent that gives it WAL,
and files stay for a look. A restored cluster archives nothing until an administrator says that it is the successor.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from seawall.archive.agent import Agent
from seawall.archive.commands import CLIENT, restore_command
from seawall.audit import AuditLog
from seawall.errors import BinariesMissing, PrivilegeMissing, SeawallError, TargetUnreachable, UsageError, WalGap
from seawall.events import Ended, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import RecoveryTarget, TargetAction, TargetKind
from seawall.postgres import extensions, recovery
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.instance import Instance
from seawall.repository import Repository
from seawall.restore import lay, tree
from seawall.restore.destination import refuse_destination, refuse_tablespaces
from seawall.restore.plan import RestorePlan
from seawall.temporary import Temporary
from seawall.wal import Segment

log = logging.getLogger(__name__)
DEFAULT_SOCKET = Path("/run/seawall/agent.sock")
# What may wait ahead of replay on this host.
_AHEAD_BYTES = 256 * 1024 * 1024
# As pg_dumpall writes roles.
_SUPERUSER = re.compile(r'^ALTER ROLE (\w+|"(?:[^"]|"")+") WITH SUPERUSER\b[^;]*(?<!NO)LOGIN\b', re.MULTILINE)


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

    A plan that pauses is waited for until somebody resumes the server, which promotes it; it stays private to this
    host meanwhile. One that shuts down leaves an unpromoted directory, whose recovery can be continued.

    Args:
        plan: from `restore.plan`; looked at again before anything is written.
        binaries: of the backup's major version.
        account: owns the files and runs the server.
        port: leave a server running there; 0 leaves it stopped.
        start: false lays files down and leaves recovery to the administrator, who then needs an agent on
            `socket_path` when the server starts.

    Raises:
        UsageError: a server that shuts down at its target was to be left running.
        RecoveryFailed, WalGap, TargetUnreachable: the target was not reached; the files stay for a look.
        Cancelled: on request; no server is left running.
    """
    ends_down = start and plan.action is TargetAction.SHUTDOWN
    if port and ends_down:
        raise UsageError("a server that shuts down at its target cannot be left running", hint="Leave the port out.")
    _audit(plan, repository, actor=actor, now=now, observe=observe)
    command = restore_command(socket_path or DEFAULT_SOCKET)
    if not start:
        begin = time.monotonic()
        laid = _Laying(plan, repository, ring, account, observe, workers, binaries).run(command)
        seconds = time.monotonic() - begin
        return _report(plan, laid, None, {"files": seconds, "total": seconds})
    with recovered(
        plan, repository, ring=ring, binaries=binaries, account=account, observe=observe, workers=workers
    ) as (report, instance):
        instance.stop()
        if ends_down:
            # Not a temporary agent's: whoever goes on with this recovery starts one.
            recovery.configure(plan.destination, _target(plan), command, account=account, action=plan.action)
            return report
        recovery.deconfigure(plan.destination, account=account)
        observe.hear(
            Noticed("medium", "archive-off", "archive_mode is off in the restored cluster; see docs/how-to/restore.md")
        )
        if not port:
            return report
    instance.start(port)
    return replace(report, port=port)


def _audit(plan: RestorePlan, repository: Repository, *, actor: str, now: datetime, observe: Observer) -> None:
    """Note the restore in the repository. One that cannot be written to, or whose audit is broken, still restores."""
    details = {"destination": str(plan.destination), "target": f"{plan.target.kind.value} {plan.target.value}".strip()}
    try:
        AuditLog(repository.storage).append(actor, "restore", f"{plan.source} {plan.head.label}", details, now=now)
    except SeawallError as error:
        log.warning("the restore is not in the audit: %s", error)
        observe.hear(Noticed("high", "not-audited", f"the restore is not in the audit: {error.message}"))


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
    """A restored and recovered instance, promoted or as the plan wants it, private to this host, while it is open.

    Nothing is left running at its end, whatever happens in between.

    Args:
        timeout: seconds without any progress of replay.

    Raises:
        BinariesMissing, PrivilegeMissing: the server could not be run; nothing was written.
        RecoveryFailed, WalGap, TargetUnreachable: the target was not reached.
    """
    begin = time.monotonic()
    _refuse_unrunnable(plan, binaries, account)
    with _fetching(plan, repository, ring, account, observe) as command:
        laid = _Laying(plan, repository, ring, account, observe, workers, binaries).run(command)
        files = time.monotonic() - begin
        observe.hear(Ended("restore", files))
        instance = Instance(plan.destination, binaries, account, user=_superuser(laid.specials))
        try:
            instance.start(wait=False, private=True)
            reached = _watched(plan, instance, timeout, observe)
            total = time.monotonic() - begin
            observe.hear(Ended("recovery", total - files))
            seconds = {"files": files, "recovery": total - files, "total": total}
            yield _report(plan, laid, reached, seconds), instance
        finally:
            # Whatever happened, nothing is left running; a stopped instance is left as it is.
            instance.stop("fast" if instance.is_ready() else "immediate")


def _refuse_unrunnable(plan: RestorePlan, binaries: Binaries, account: Account) -> None:
    """Find out before the first byte is written that the server, or what gives it WAL, cannot be run."""
    wanted = plan.head.cluster.major_version
    if binaries.major != wanted:
        raise BinariesMissing(f"{binaries.directory} has PostgreSQL {binaries.version}, the backup is of {wanted}")
    binaries.usable_by(account)
    interpreter = Path(sys.executable)
    for reason in (account.can_execute(interpreter), account.can_enter(CLIENT.parent)):
        if reason is not None:
            raise PrivilegeMissing(f"the server could not ask for WAL: {reason}", hint="The message says what to do.")


def _superuser(specials: Mapping[str, str]) -> str:
    """A role that may look at the recovery; `postgres` unless the backup's globals say that it is none."""
    found = [_unquoted(name) for name in _SUPERUSER.findall(specials.get("globals.sql", ""))]
    return "postgres" if "postgres" in found or not found else found[0]


def _unquoted(name: str) -> str:
    """A role's name out of an SQL identifier."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _watched(plan: RestorePlan, instance: Instance, timeout: float, observe: Observer) -> recovery.Reached:
    """Follow replay to its end, and put PostgreSQL's answers into the words of what was asked."""
    try:
        reached = recovery.watch(instance, _target(plan), action=plan.action, timeout=timeout, observe=observe)
    except WalGap as error:
        if "before configured recovery target" not in error.message:
            raise
        if plan.target.kind in (TargetKind.NAME, TargetKind.XID):
            raise _not_met(plan, error) from error
        if plan.target.kind is not TargetKind.TIME:
            raise
        # The plan proved that WAL was stored after that time. So it holds no commit after it: an idle server.
        raise TargetUnreachable(
            f"all WAL up to {plan.wal_end} was replayed, but no commit after {plan.target.value} is in it: "
            f"{error.message}",
            hint="Restore to `latest`: it holds every commit there is. Nothing proves that none is missing after it.",
        ) from error
    if reached.outcome is recovery.Outcome.PAUSED:
        return _looked_at(instance, reached, observe)
    if plan.target.kind is TargetKind.LATEST:
        last = Segment.parse(plan.wal_last, plan.head.segment_bytes)
        if reached.lsn < last.start:
            # Not an error by itself: a record that spans segments may have its end in one that is not stored.
            message = f"replay ended at {reached.lsn}, although WAL up to {plan.wal_end} is stored"
            observe.hear(Noticed("high", "ended-early", message))
    return reached


def _not_met(plan: RestorePlan, error: WalGap) -> TargetUnreachable:
    """Replay came to the end of what the plan proved to be there: the name was mistyped, or it lies elsewhere."""
    what = f"restore point {plan.target.value!r}" if plan.target.kind is TargetKind.NAME else f"xid {plan.target.value}"
    return TargetUnreachable(
        f"{what} was not met in the WAL up to {plan.wal_end} on timeline {plan.history.timeline}, "
        # What follows the first line is the server's log; the line itself would call it a gap.
        f"from backup {plan.head.label} on\n{error.message.partition(chr(10))[2]}",
        hint=f"Is it written as it was made? If it lies before {plan.head.stopped_at.isoformat(timespec='seconds')}, "
        "name an earlier backup (--label, see `seawall list`). It may also lie on another timeline, or in WAL that is "
        "not stored yet.",
    )


def _looked_at(instance: Instance, paused: recovery.Reached, observe: Observer) -> recovery.Reached:
    """Say where the paused server can be looked at, and wait until somebody lets it go on."""
    message = (
        f"recovery is paused at {paused.lsn} ({paused.stopped or 'target reached'}); look at it, read-only, with "
        f"`psql -d '{instance.conninfo}'`; `SELECT pg_wal_replay_resume()` promotes it, Ctrl-C stops it unpromoted"
    )
    observe.hear(Noticed("medium", "recovery-paused", message))
    # What is reported is where replay stopped, not what the promoted server has written since.
    promoted = recovery.wait_for_promotion(instance, observe=observe)
    return replace(paused, outcome=promoted.outcome, timeline=promoted.timeline)


@contextmanager
def _fetching(
    plan: RestorePlan, repository: Repository, ring: KeyRing, account: Account, observe: Observer
) -> Iterator[str]:
    """An agent that gives WAL to the server, and the restore_command that asks it."""
    # The server's account must reach the socket, and a socket's path may have about 100 bytes.
    temporary = Temporary("seawall-restore-", Path(tempfile.gettempdir()))
    place = temporary.path
    try:
        place.chmod(0o711)
        area = repository.source(plan.source)
        socket_path = place / "agent.sock"
        accounts = frozenset({account.uid, os.geteuid()})
        depth = max(2, min(16, _AHEAD_BYTES // plan.head.segment_bytes))
        with Agent(area, None, ring, place / "spool", socket_path, accounts=accounts, observe=observe, depth=depth):
            yield restore_command(socket_path)
    finally:
        temporary.close()


@dataclass(frozen=True, slots=True)
class _Laying:
    """Everything up to a directory that PostgreSQL can start recovery in."""

    plan: RestorePlan
    repository: Repository
    ring: KeyRing
    account: Account
    observe: Observer
    workers: int
    binaries: Binaries

    def run(self, command: str) -> lay.Laid:
        plan = self.plan
        # The destination may have changed since the plan was made.
        refuse_destination(plan.destination, delta=plan.delta)
        refuse_tablespaces(plan.tablespaces, plan.destination, delta=plan.delta)
        area = self.repository.source(plan.source)
        laid = lay.lay(plan, area, self.ring, self.account, workers=self.workers, observe=self.observe)
        self._notice_missing_extensions(laid)
        saved = {
            name.removeprefix("configuration:"): text
            for name, text in laid.specials.items()
            if name.startswith("configuration:")
        }
        written = recovery.complete_configuration(plan.destination, saved, self.account)
        if written:
            made = f"these lay elsewhere and were made: {', '.join(written)}"
            self.observe.hear(Noticed("low", "configuration", made))
        recovery.configure(plan.destination, _target(plan), command, account=self.account, action=plan.action)
        try:
            # Last of all: from here on PostgreSQL can start there.
            tree.reveal_control(plan.destination)
        except OSError as error:
            raise tree.translated(error, plan.destination) from error
        return laid

    def _notice_missing_extensions(self, laid: lay.Laid) -> None:
        """A database whose extension is not installed starts, and fails at the first use of it."""
        missing = extensions.missing(extensions.of_backup(laid.specials), self.binaries)
        if missing:
            named = ", ".join(f"{one.name} {one.version} (database {one.database})" for one in missing)
            message = f"PostgreSQL in {self.binaries.directory} lacks extensions that the backup uses: {named}"
            self.observe.hear(Noticed("high", "extension-missing", message))


def _target(plan: RestorePlan) -> RecoveryTarget:
    """The target with its timeline as PostgreSQL takes it.

    `immediate` stays on the backup's own timeline: it is consistent before any switch.
    """
    timeline = "current" if plan.target.kind is TargetKind.IMMEDIATE else str(plan.history.timeline)
    if plan.history.timeline == plan.head.timeline:
        timeline = "current"
    return RecoveryTarget(plan.target.kind, plan.target.value, plan.target.inclusive, timeline)


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
