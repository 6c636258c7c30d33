"""`seawall backup`: take a backup of a source."""

from __future__ import annotations

import argparse
import importlib
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.listing import summary
from seawall.errors import SeawallError
from seawall.events import Resumed, keeping
from seawall.model import BackupKind, Head, Proof
from seawall.settings import PRIMARY, SourceSettings

if TYPE_CHECKING:
    from seawall.backup import ResumePlan
    from seawall.catalog import Logbook
    from seawall.cli.recorded import Recording


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument(
        "--kind",
        choices=[kind.value for kind in BackupKind],
        default=BackupKind.FULL.value,
        help="what to take (default: full); another kind becomes a full where it has nothing to build on",
    )
    parser.add_argument(
        "--reread",
        action="store_true",
        help="compare all files with the prior backup, also those whose times say that nothing was written to them",
    )
    parser.add_argument(
        "--no-resume",
        dest="resume",
        action="store_false",
        help="store everything anew, and forget what backups that were stopped had stored already",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be taken, and write nothing")
    parser.add_argument("--verify", action="store_true", help="read it back afterwards")


def run(options: argparse.Namespace, context: Context) -> int:
    source, kind = context.source(options.source), BackupKind(options.kind)
    if options.dry_run:
        _show_plan(context, source, kind, resume=options.resume)
        return 0
    head, record = _taken(context, source, kind, reread=options.reread, resume=options.resume)
    value, lines = {"backup": summary(head), **record}, [_line(head)]
    if options.verify:
        return _verify(context, head, value, lines)
    context.console.result(value, lines)
    return 0


def _taken(
    context: Context, source: SourceSettings, kind: BackupKind, *, reread: bool, resume: bool
) -> tuple[Head, dict[str, Any]]:
    """Take it and record it; the head, and what JSON output says of the record."""
    _import_ahead()
    from seawall import backup, throttle
    from seawall.arrivals import locking_arrivals
    from seawall.catalog import BackupOutcome
    from seawall.catalog.facts import backup_facts, resumed_facts
    from seawall.catalog.recording import ExecutionRecord, Result, job_of, job_type_of, record_judgement, record_taken
    from seawall.cli.recorded import recorded
    from seawall.storage.wrappers import cancellable_sleep

    settings, repository = context.settings, context.repository
    jobs: list[UUID] = []
    resumed: list[Resumed] = []

    def row(catalog: Logbook) -> ExecutionRecord:
        jobs.append(job_of(catalog, settings, source.name, job_type_of(kind), now=context.now()).id)
        return ExecutionRecord(jobs[0])

    with recorded(context, "backup", source.name, row) as record:
        head = backup.take(
            source,
            locking_arrivals(settings.repository, repository, source.name, record.observe),
            context.sealing,
            kind=kind,
            block_maps=settings.block_maps(source.name),
            reread=reread,
            resume=resume,
            pace=throttle.source_bucket(settings, source.name, sleep=cancellable_sleep(context.observer.cancel)),
            quota_bytes=settings.repository.quota_bytes,
            now=context.now(),
            observe=keeping(record.observe, resumed),
        )
        # It is listed by now; the catalog follows, never leads.
        record.result = Result(backup_facts(head, kind, resumed), BackupOutcome.of(head))
        record.tell(
            lambda catalog, execution: record_taken(
                catalog, settings, repository, head, job_id=jobs[0], execution_id=execution, now=context.now()
            )
        )
        record.tell(lambda catalog, _: record_judgement(catalog, repository, head, record.observe, now=context.now()))
        _lock(context, source.name, record)
    told = {"resumed": resumed_facts(resumed[-1]) if resumed else None}
    return head, told | record.value()


def _lock(context: Context, source: str, record: Recording) -> None:
    """Lock what was taken where the repository can; the backup is listed, whatever becomes of that."""
    from seawall.storage.immutability import shall_lock

    settings, repository = context.settings, context.repository
    if not shall_lock(settings.repository, repository.storage):
        return
    from seawall import upkeep, watch

    report = upkeep.secure_primary(settings, repository, source, None, now=context.now(), observe=record.observe)
    if report is not None:
        subject = f"{source} {PRIMARY}"
        record.tell(
            lambda catalog, _: watch.judge(catalog, "copies-not-locked", subject, report.problem, context.now())
        )


def _import_ahead() -> None:
    """Import what copies a cluster, arrays included, while catalog, server and gpg are waited for: some 0.15 s."""
    # No daemon: a command that fails at once must not end its interpreter while a library is half imported.
    threading.Thread(target=importlib.import_module, args=("seawall.backup.direct",), name="imports").start()


def _line(head: Head) -> str:
    took = head.ended_at - head.began_at
    rate = head.plain_bytes / max(took.total_seconds(), 0.001)
    line = f"{head.source} {head.label}: {size(head.plain_bytes)} in {head.file_count} files, stored as "
    return line + f"{size(head.stored_bytes)}, {span(took)}, {size(rate)}/s, {head.health.value}"


def _verify(context: Context, head: Head, value: dict[str, Any], lines: list[str]) -> int:
    """The backup exists whatever comes of this, so what was taken is printed also when its proof fails."""
    from seawall.cli import verify

    try:
        verdict, _ = verify.prove(context, head.source, head.label, Proof.WAL_CONTINUOUS)
    except SeawallError as error:
        context.console.failed(error, value, lines)
        return error.exit_code
    verdicts = [verdict]
    value, lines = (
        value | {"verdicts": verify.verdict_values(verdicts)},
        lines + verify.verdict_lines(head.source, verdicts),
    )
    failure = verify.failure_of(head.source, verdicts)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _show_plan(context: Context, source: SourceSettings, kind: BackupKind, *, resume: bool) -> None:
    from seawall import backup
    from seawall.capacity import room_in
    from seawall.postgres.inspect import inspect

    cluster = inspect(source)
    area, sealing = context.repository.source(source.name), context.sealing
    chosen = backup.plan(source, area, cluster, kind, sealing=sealing.mode, now=context.now())
    maps = context.settings.block_maps(source.name) if resume else None
    resumable = backup.resumable(area, chosen, sealing, maps)
    value = {
        "source": chosen.source,
        "label": str(chosen.label),
        "kind": chosen.kind.value,
        "prior": str(chosen.prior.label) if chosen.prior else "",
        "reason": chosen.reason,
        "mode": chosen.mode.value,
        "workers": chosen.workers,
        "estimated_bytes": cluster.total_bytes,
        "free_bytes": room_in(context.repository.storage, context.settings.repository.quota_bytes).left_bytes,
        "resume": {
            "attempts": [str(label) for label in resumable.labels],
            "objects": len(resumable.objects),
            "stored_bytes": resumable.stored_bytes,
            "passed_over": {str(label): why for label, why in (*resumable.over, *resumable.unfit)},
        },
    }
    lines = [f"would take {chosen.label} of {chosen.source}: about {size(cluster.total_bytes)}, {chosen.mode.value}"]
    lines += [chosen.reason] if chosen.reason else []
    context.console.result({"plan": value, "dry_run": True}, lines + _resume_lines(resumable))


def _resume_lines(resumable: ResumePlan) -> list[str]:
    lines = [f"{label} is not resumed: {why}" for label, why in (*resumable.over, *resumable.unfit)]
    if resumable.objects:
        labels = " and ".join(str(label) for label in resumable.labels)
        found = f"{len(resumable.objects)} objects, {size(resumable.stored_bytes)}"
        lines.append(f"would resume {labels}: up to {found}, as far as the cluster still holds what is in them")
    return lines
