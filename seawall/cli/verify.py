"""`seawall verify`: read a backup back and prove it."""

from __future__ import annotations

import argparse

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.errors import BackupMissing, VerificationFailed
from seawall.model import BackupLabel, Proof, Verdict

_LEVELS = (Proof.PRESENT, Proof.HASH_GOOD, Proof.DECRYPTABLE, Proof.WAL_CONTINUOUS)


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("label", nargs="?", help="one backup (default: the newest)")
    parser.add_argument("--all", action="store_true", help="every backup of the source")
    parser.add_argument(
        "--up-to",
        choices=[proof.value for proof in _LEVELS],
        default=Proof.WAL_CONTINUOUS.value,
        help="how far (default: wal-continuous); up to hash-good no private key is needed",
    )


def run(options: argparse.Namespace, context: Context) -> None:
    source = context.source(options.source).name
    labels = context.repository.source(source).labels()
    if options.label:
        chosen = [BackupLabel.parse(options.label)]
    elif not labels:
        raise BackupMissing(f"{source} has no backup to verify")
    else:
        chosen = list(labels) if options.all else [labels[-1]]
    _report(context, source, [_check(context, source, label, Proof(options.up_to)) for label in chosen])


def verify_one(context: Context, source: str, label: BackupLabel) -> None:
    """Verify one backup as far as it goes and print the verdict.

    Raises:
        VerificationFailed: something in it is wrong.
    """
    _report(context, source, [_check(context, source, label, Proof.WAL_CONTINUOUS)])


def _check(context: Context, source: str, label: BackupLabel, up_to: Proof) -> Verdict:
    from seawall import verify

    area = context.repository.source(source)
    workers = context.settings.sources[source].workers if source in context.settings.sources else 2
    return verify.check(
        area, label, context.ring, up_to=up_to, now=context.now(), observe=context.observer, workers=workers
    )


def _report(context: Context, source: str, verdicts: list[Verdict]) -> None:
    lines, values = [], []
    for verdict in verdicts:
        reached = verdict.reached.value if verdict.reached else "nothing"
        lines.append(
            f"{source} {verdict.label}: {'good' if verdict.good else 'BAD'}, proved up to {reached}; "
            f"{verdict.objects} objects, {size(verdict.stored_bytes)} read in {span(verdict.took)}"
        )
        lines += [f"  {finding.code}  {finding.subject}: {finding.message}" for finding in verdict.findings]
        values.append(
            {
                "label": str(verdict.label),
                "good": verdict.good,
                "reached": reached,
                "objects": verdict.objects,
                "stored_bytes": verdict.stored_bytes,
                "plain_bytes": verdict.plain_bytes,
                "took_seconds": verdict.took,
                "findings": [{"code": f.code, "subject": f.subject, "message": f.message} for f in verdict.findings],
            }
        )
    bad = [verdict for verdict in verdicts if not verdict.good]
    if bad:
        for line in lines:
            context.console.note(line)
        faults = "; ".join(f"{f.subject}: {f.message}" for verdict in bad for f in verdict.findings[:5])
        raise VerificationFailed(f"{len(bad)} of {len(verdicts)} backups of {source} are not good: {faults}")
    context.console.result({"source": source, "verdicts": values}, lines)
