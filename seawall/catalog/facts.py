"""What verbs did, as the plain JSON values that the catalog keeps and flows return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seawall.model import Head, RecoveryTarget, Verdict

if TYPE_CHECKING:
    from seawall.events import Resumed
    from seawall.model import BackupKind
    from seawall.restore import RestorePlan, RestoreReport
    from seawall.restoretest import RestoreTestReport
    from seawall.retention import Collected, RetentionPlan

Facts = Mapping[str, object]


def backup_facts(head: Head, asked: BackupKind, resumed: Sequence[Resumed] = ()) -> Facts:
    """What a backup is, why it is of another kind than was asked for, and what it took over from attempts before it."""
    return {
        "label": str(head.label),
        "kind": head.kind.value,
        "asked": asked.value,
        "reason": head.reason,
        "plain_bytes": head.plain_bytes,
        "stored_bytes": head.stored_bytes,
        "health": head.health.value,
        "resumed": resumed_facts(resumed[-1]) if resumed else None,
    }


def resumed_facts(resumed: Resumed) -> Facts:
    """What a backup took over from attempts before it, and what there was."""
    return {
        "attempts": list(resumed.attempts),
        "objects": resumed.objects,
        "of_objects": resumed.of_objects,
        "stored_bytes": resumed.stored_bytes,
        "of_bytes": resumed.of_bytes,
    }


def verdict_facts(verdict: Verdict) -> Facts:
    """How far a backup set was proved."""
    return {
        "label": str(verdict.label),
        "reached": None if verdict.reached is None else verdict.reached.value,
        "objects": verdict.objects,
        "stored_bytes": verdict.stored_bytes,
        "plain_bytes": verdict.plain_bytes,
        "took_seconds": round(verdict.took.total_seconds(), 3),
    }


def verdict_sentence(source: str, verdict: Verdict) -> str:
    """What is wrong with a backup set, in one sentence."""
    shown = "; ".join(f"{finding.subject}: {finding.message}" for finding in verdict.findings[:10])
    return f"backup {verdict.label} of {source} has {len(verdict.findings)} faults: {shown}"


def plan_facts(planned: RestorePlan) -> Facts:
    """A restore plan as it is shown and recorded."""
    return {
        "source": planned.source,
        "label": str(planned.head.label),
        "why": planned.why,
        "target": target_text(planned.target),
        "target_action": planned.action.value,
        "timeline": planned.history.timeline,
        "destination": str(planned.destination),
        "delta": planned.delta,
        "plain_bytes": planned.head.plain_bytes,
        "wal_segments": planned.wal_count,
        "estimated_seconds": round(planned.estimated_seconds, 1),
        "meets_rto": planned.meets_rto,
        "warnings": list(planned.warnings),
    }


def report_facts(report: RestoreReport) -> Facts:
    """What a restore did and reached."""
    reached = report.reached
    last = None if reached is None else reached.last_commit_at
    return {
        "label": report.label,
        "destination": report.destination,
        "files": report.files,
        "written_bytes": report.written_bytes,
        "reused_bytes": report.reused_bytes,
        "seconds": {step: round(seconds, 3) for step, seconds in report.seconds.items()},
        "reached_lsn": None if reached is None else str(reached.lsn),
        "outcome": None if reached is None else reached.outcome.value,
        "last_commit_at": None if last is None else last.isoformat(),
        "timeline": None if reached is None else reached.timeline,
        "port": report.port,
    }


def restore_test_facts(report: RestoreTestReport, seed: int) -> Facts:
    """What a restore test proved; `seed` repeats it."""
    return {
        "label": str(report.label),
        "target": target_text(report.target),
        "seed": seed,
        "restore": report_facts(report.report),
        "row_counts": dict(report.row_counts),
        "checks": dict(report.checks),
        "achieved_rto_seconds": round(report.achieved_rto.total_seconds(), 3),
        "rto_seconds": report.rto.total_seconds(),
    }


def restore_test_sentence(source: str, report: RestoreTestReport) -> str:
    """What a restore test found, in one sentence."""
    shown = "; ".join(f"{finding.subject}: {finding.message}" for finding in report.findings[:10])
    return f"the restore test of {source} {report.label} found {len(report.findings)} faults: {shown}"


def retention_facts(plan: RetentionPlan, collected: Collected, marked: int) -> Facts:
    """What retention keeps and lets go, each with its reasons, and what was removed for good."""
    return {
        "keep": {str(decision.label): list(decision.reasons) for decision in plan.keep},
        "expire": {str(decision.label): list(decision.reasons) for decision in plan.expire},
        "marked": marked,
        "collected": list(collected.sets),
        "freed_bytes": collected.freed_bytes,
        "left": dict(collected.left),
    }


def target_text(target: RecoveryTarget) -> str:
    """A recovery target as one text, such as `lsn 0/3000028`."""
    return f"{target.kind.value} {target.value}".strip()
