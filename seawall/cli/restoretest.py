"""`seawall restore-test`: restore into a scratch instance, check it, and remove it."""

from __future__ import annotations

import argparse
import random
import secrets
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.console import span
from seawall.cli.context import Context
from seawall.cli.restore import report_value, target_arguments, target_of
from seawall.errors import VerificationFailed
from seawall.model import BackupLabel

if TYPE_CHECKING:
    from seawall.catalog import Logbook
    from seawall.catalog.recording import VerificationRecord


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    target_arguments(parser)
    parser.add_argument("--random", action="store_true", help="stop at a random position inside the window")
    parser.add_argument("--seed", type=int, help="makes --random repeatable; the one that was used is shown")
    parser.add_argument(
        "--assert",
        dest="assertions",
        nargs=3,
        action="append",
        default=[],
        metavar=("DATABASE", "SQL", "EXPECTED"),
        help="a query whose first value must be EXPECTED; may be repeated",
    )
    parser.add_argument("--scratch", type=Path, help="where (default: below the work directory)")
    parser.add_argument("--bin-directory", type=Path, help="where postgres of the right version lies")


def run(options: argparse.Namespace, context: Context) -> int:
    from seawall import restore, restoretest
    from seawall.catalog import VerificationType
    from seawall.catalog.facts import restore_test_facts, restore_test_sentence
    from seawall.catalog.recording import Result, VerificationRecord
    from seawall.cli.recorded import recorded
    from seawall.postgres.binaries import Account, find

    source = context.stored_source(options.source)
    identity = context.copies.source(source).identity()
    parent = options.scratch or context.settings.server.work_directory / "scratch"
    parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    randomness = random.Random(seed)  # noqa: S311 - chooses where to look, guards nothing
    named = BackupLabel.parse(options.label) if options.label else None
    target = (
        restoretest.random_target(context.copies, source, randomness, named) if options.random else target_of(options)
    )
    # Which backup it starts from must be known before it begins, because the record says so.
    label = restore.plan(
        context.copies,
        source,
        target,
        parent.absolute() / f"plan-{seed}",
        label=named,
        now=context.now(),
        ring=lambda: context.ring,
    ).head.label

    def row(catalog: Logbook) -> VerificationRecord | None:
        file = catalog.find_backup_file(context.copies.id, source, label)
        return None if file is None else VerificationRecord(file.id, VerificationType.RESTORE_TEST)

    with recorded(context, "restore-test", source, row) as record:
        report = restoretest.run(
            context.copies,
            source,
            ring=context.ring,
            binaries=find(identity.major_version if identity else None, options.bin_directory),
            account=Account.for_servers(context.settings.server.account),
            parent=parent,
            target=target,
            label=label,
            assertions=[restoretest.Assertion(*given) for given in options.assertions],
            now=context.now(),
            rto=timedelta(hours=context.settings.server.rto_hours),
            randomness=randomness,
            observe=record.observe,
        )
        record.result = Result(restore_test_facts(report, seed))
        record.failure = None if report.good else VerificationFailed(restore_test_sentence(source, report))
    findings = [{"code": f.code, "subject": f.subject, "message": f.message} for f in report.findings]
    value = {
        "source": source,
        "label": str(report.label),
        "target": {"kind": report.target.kind.value, "value": report.target.value},
        "seed": seed,
        "report": report_value(report.report),
        "row_counts": dict(report.row_counts),
        "checks": dict(report.checks),
        "achieved_rto_seconds": report.achieved_rto,
        "rto_seconds": report.rto,
        "findings": findings,
        **record.value(),
    }
    checks = ", ".join(f"{count} {what}" for what, count in report.checks.items())
    reached = report.report.reached.lsn if report.report.reached else "-"
    lines = [
        f"{source} {report.label}: restored and replayed to {reached}",
        f"  {span(report.achieved_rto)} achieved, the RTO is {span(report.rto)}; checked {checks}",
        *(f"  {name}: {count} rows" for name, count in report.row_counts.items()),
    ]
    if not findings:
        context.console.result(value, lines)
        return 0
    lines += [f"  {f['code']} {f['subject']}: {f['message']}" for f in findings]
    failure = VerificationFailed(
        f"the restore test of {source} {report.label} found {len(findings)} faults; the first: "
        f"{findings[0]['subject']}: {findings[0]['message']}"
    )
    context.console.failed(failure, value, lines)
    return failure.exit_code
