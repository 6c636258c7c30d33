"""Restore a source to a recovery target: plan first, then act."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import processors, restore
from seawall.catalog import Catalog
from seawall.catalog.facts import Facts, report_facts
from seawall.catalog.recording import RecoveryRecord, Result
from seawall.errors import TargetUnreachable, UsageError
from seawall.events import silent
from seawall.mending import mend
from seawall.model import BackupLabel, RecoveryTarget, TargetAction, TargetKind
from seawall.postgres.binaries import Account, Binaries, find
from seawall.restore import RestorePlan
from seawall.settings import Settings
from seawall.wal import Lsn
from tasks.execution import Surroundings, execute, utc_now
from tasks.opening import file_of, opened_copies, ring_of


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a restore goes.

    Args:
        directory: the data directory to be; absolute.
        delta: repair what lies there instead of refusing it.
        tablespaces: original location → new one.
        port: leave a server running there; 0 leaves it stopped.
        start: false lays files down only.
        action: what the server does at the target.
    """

    directory: Path
    delta: bool = False
    tablespaces: dict[str, Path] = field(default_factory=dict)
    port: int = 0
    start: bool = True
    action: TargetAction = TargetAction.PROMOTE


def target_of(kind: TargetKind, value: str, *, inclusive: bool, timeline: str) -> RecoveryTarget:
    """A recovery target from what a run was asked for.

    Raises:
        TargetUnreachable: the value is none of that kind.
    """
    if kind is TargetKind.TIME:
        return RecoveryTarget.at_time(value, inclusive=inclusive, timeline=timeline)
    if kind is TargetKind.LSN:
        try:
            value = str(Lsn.parse(value))
        except ValueError as error:
            raise TargetUnreachable(str(error), hint="An LSN looks like 16/B374D848.") from error
    if kind is TargetKind.XID and not value.isdigit():
        raise TargetUnreachable(f"{value!r} is no transaction id", hint="It is a whole number.")
    return RecoveryTarget(kind, value, inclusive, timeline)


@task(name="plan-restore", cache_policy=NO_CACHE, persist_result=False)
def plan(
    settings: Settings, source: str, target: RecoveryTarget, destination: Destination, label: BackupLabel | None
) -> RestorePlan:
    """Decide how the target is reached, or refuse with the reason; reads only."""
    if not destination.directory.is_absolute():
        raise UsageError(f"the destination {destination.directory} is not absolute")
    with opened_copies(settings, silent()) as repository, ExitStack() as rings:
        return restore.plan(
            repository,
            source,
            target,
            destination.directory,
            label=label,
            delta=destination.delta,
            tablespaces=destination.tablespaces,
            action=destination.action,
            now=utc_now(),
            rto=timedelta(hours=settings.server.rto_hours),
            ring=lambda: rings.enter_context(ring_of(settings)),
        )


@task(name="run-restore", cache_policy=NO_CACHE, persist_result=False)
def run(settings: Settings, planned: RestorePlan, destination: Destination) -> Facts:
    """Do what was planned; never tried again by itself, since half a restore wants a look.

    Raises:
        RecoveryFailed: the target was not reached.
    """

    def verb(around: Surroundings) -> Result:
        with ring_of(settings) as ring, opened_copies(settings, around.observe, ring) as repository:
            report = restore.run(
                planned,
                repository,
                ring=ring,
                binaries=binaries_of(settings, planned.source, planned.head.cluster.major_version),
                account=Account.for_servers(settings.server.account),
                actor=around.actor,
                now=around.now,
                observe=around.observe,
                workers=workers_of(settings, planned.source),
                port=destination.port,
                start=destination.start,
                socket_path=settings.agent_socket(planned.source),
            )
            mend(settings, repository.storage, ring, actor=around.actor, now=around.now, observe=around.observe)
        return Result(report_facts(report))

    return execute(_record(settings, planned), verb, settings=settings, title="restore", subject=planned.source)


def binaries_of(settings: Settings, source: str, major: int) -> Binaries:
    """PostgreSQL's programs of a version; a source need not be configured where it is restored."""
    configured = settings.sources.get(source)
    return find(major, None if configured is None else configured.bin_directory)


def workers_of(settings: Settings, source: str) -> int:
    configured = settings.sources.get(source)
    return 2 if configured is None else processors.wanted(configured.workers)


def _record(settings: Settings, planned: RestorePlan) -> RecoveryRecord:
    with Catalog.open(settings.catalog.url) as catalog, opened_copies(settings, silent()) as repository:
        file = file_of(catalog, repository, planned.source, planned.head.label)
    return RecoveryRecord.of(planned, file)
