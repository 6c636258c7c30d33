"""`seawall verify`: read a backup back and prove it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.reading import answer
from seawall.errors import (
    BackupMissing,
    NotARepository,
    SeawallError,
    StorageError,
    UsageError,
    VerificationFailed,
)
from seawall.model import BackupLabel, Finding, Proof, Verdict
from seawall.settings import PRIMARY

if TYPE_CHECKING:
    from seawall.catalog import Logbook
    from seawall.upkeep import Proved

_LEVELS = (Proof.PRESENT, Proof.HASH_GOOD, Proof.DECRYPTABLE, Proof.WAL_CONTINUOUS)


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("label", nargs="?", help="one backup (default: the newest)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every backup of the source, every document, and what the audit says is there",
    )
    parser.add_argument(
        "--up-to",
        choices=[proof.value for proof in _LEVELS],
        default=Proof.WAL_CONTINUOUS.value,
        help="how far (default: wal-continuous); up to hash-good no private key is needed",
    )
    parser.add_argument(
        "--budget", metavar="AMOUNT", help="objects of all backups, the oldest proof first: 50GB of them, or for 30m"
    )
    parser.add_argument(
        "--location", action="append", default=[], metavar="NAME",
        help="the copy that lies there instead of the primary, object by object; may be repeated; `all` for every one",
    )  # fmt: skip
    parser.add_argument(
        "--heal", action="store_true", help="replace what is damaged or missing by a proved copy from another location"
    )


def run(options: argparse.Namespace, context: Context) -> int:
    source = context.stored_source(options.source)
    if options.budget or options.location or options.heal:
        return _objects(options, context, source)
    labels = context.reading.repository.source(source).labels()
    if options.label:
        chosen = [BackupLabel.parse(options.label)]
    elif not labels:
        raise BackupMissing(f"{source} has no backup to verify")
    else:
        chosen = list(labels) if options.all else [labels[-1]]
    proved = [prove(context, source, label, Proof(options.up_to)) for label in chosen]
    verdicts = [verdict for verdict, _ in proved]
    value = {"source": source, "verdicts": verdict_values(verdicts), "records": [record for _, record in proved]}
    lines = verdict_lines(source, verdicts)
    failure = failure_of(source, verdicts)
    if options.all:
        from seawall import traces

        found = traces.examine(context.reading.repository, source, now=context.now(), observe=context.observer)
        value["findings"] = [{"code": f.code, "subject": f.subject, "message": f.message} for f in found]
        lines += [f"{source}: {'documents are sound and none is missed' if not found else f'{len(found)} findings'}"]
        lines += [f"  {finding.code}  {finding.subject}: {finding.message}" for finding in found]
        failure = failure or _failure_of_documents(source, found)
    return answer(context, value, lines, failure)


def _failure_of_documents(source: str, found: Sequence[Finding]) -> VerificationFailed | None:
    if not found:
        return None
    faults = "; ".join(f"{finding.subject}: {finding.message}" for finding in found[:5])
    return VerificationFailed(f"{len(found)} documents of {source} are damaged or lost: {faults}")


def _objects(options: argparse.Namespace, context: Context, source: str) -> int:
    """Object by object, in one location or several; what one of them does not answer keeps no other from being read."""
    from seawall import locations, upkeep
    from seawall.catalog import Catalog
    from seawall.proofs import Budget

    if options.label or options.all:
        raise UsageError("a budget, a location or healing concerns all backups", hint="Leave LABEL and --all out.")
    budget = Budget.parse(options.budget) if options.budget else Budget()
    names = locations.in_order(context.settings) if "all" in options.location else options.location or [PRIMARY]
    up_to = Proof.HASH_GOOD if Proof(options.up_to) is Proof.HASH_GOOD else Proof.DECRYPTABLE
    results: list[Proved] = []
    silent: list[SeawallError] = []
    with Catalog.open(context.settings.catalog.url) as catalog, context.ring as ring:
        for name in names:
            try:
                results.append(
                    upkeep.prove(
                        context.settings, source, ring, catalog, budget, location=name, up_to=up_to,
                        heal=options.heal, actor=context.actor, now=context.now(), observe=context.observer,
                    )
                )  # fmt: skip
            except (StorageError, NotARepository) as error:
                context.console.note(f"{source} in {name}: {error.message}")
                silent.append(error)
    value = {"source": source, "locations": [proved_value(result) for result in results]}
    lines = [line for result in results for line in proved_lines(result)]
    failure = upkeep.proof_failure(results) or next(iter(silent), None)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def proved_value(result: Proved) -> dict[str, Any]:
    """What was proved in a location, as JSON output shows it."""
    return {
        "location": result.location,
        "good": result.good,
        "objects": len(result.report.proved),
        "stored_bytes": result.report.stored_bytes,
        "took_seconds": result.report.took,
        "left": result.left,
        "wrong": dict(result.report.wrong),
        "healed": [{"name": one.name, "from": one.donor, "beside": one.beside} for one in result.healed.healed],
        "not_healed": dict(result.healed.left),
        "missed": [{"code": one.code, "subject": one.subject, "message": one.message} for one in result.missed],
    }


def proved_lines(result: Proved) -> list[str]:
    """The same for people."""
    report = result.report
    how = f"{len(report.proved)} objects, {size(report.stored_bytes)} read in {span(report.took)}"
    verdict = "good" if result.good else "BAD"
    lines = [f"{result.source} in {result.location}: {verdict}; {how}; {result.left} wait for another time"]
    lines += [f"  {name}: {why}" for name, why in report.wrong.items()]
    lines += [f"  {one.code}  {one.subject}: {one.message}" for one in result.missed]
    lines += [f"  {one.name}: replaced from {one.donor}" for one in result.healed.healed]
    return lines + [f"  {name}: not healed: {why}" for name, why in result.healed.left.items()]


def prove(context: Context, source: str, label: BackupLabel, up_to: Proof) -> tuple[Verdict, dict[str, Any]]:
    """Verify one backup as far as asked, and record it; the verdict, and what JSON output says of the record."""
    from seawall import processors, verify
    from seawall.catalog.facts import verdict_facts, verdict_sentence
    from seawall.catalog.recording import Result, VerificationRecord
    from seawall.cli.recorded import recorded
    from seawall.nearest import source_as_read

    repository = context.reading.repository
    area = source_as_read(repository, source, context.ring, context.observer)
    asked = context.settings.sources[source].workers if source in context.settings.sources else 2
    workers = processors.wanted(asked)

    def row(catalog: Logbook) -> VerificationRecord | None:
        if context.reading.gone is not None:
            # What the catalog says of a backup is about the primary, which is proved first when it is back.
            where = " and ".join(context.reading.locations)
            raise SeawallError(f"it proves the copies in {where}, not the primary location", hint="")
        file = catalog.find_backup_file(repository.id, source, label)
        return None if file is None else VerificationRecord.up_to(file.id, up_to)

    with recorded(context, "verify", source, row) as record:
        verdict = verify.check(
            area, label, context.ring, up_to=up_to, now=context.now(), observe=record.observe, workers=workers
        )
        record.result = Result(verdict_facts(verdict))
        record.failure = None if verdict.good else VerificationFailed(verdict_sentence(source, verdict))
    return verdict, record.value()["record"]


def verdict_values(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "label": str(verdict.label),
            "good": verdict.good,
            "reached": verdict.reached.value if verdict.reached else "nothing",
            "objects": verdict.objects,
            "stored_bytes": verdict.stored_bytes,
            "plain_bytes": verdict.plain_bytes,
            "took_seconds": verdict.took,
            "findings": [{"code": f.code, "subject": f.subject, "message": f.message} for f in verdict.findings],
        }
        for verdict in verdicts
    ]


def verdict_lines(source: str, verdicts: list[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        reached = verdict.reached.value if verdict.reached else "nothing"
        lines.append(
            f"{source} {verdict.label}: {'good' if verdict.good else 'BAD'}, proved up to {reached}; "
            f"{verdict.objects} objects, {size(verdict.stored_bytes)} read in {span(verdict.took)}"
        )
        lines += [f"  {finding.code}  {finding.subject}: {finding.message}" for finding in verdict.findings]
    return lines


def failure_of(source: str, verdicts: list[Verdict]) -> VerificationFailed | None:
    """The error that stands for whatever is not good, or None."""
    bad = [verdict for verdict in verdicts if not verdict.good]
    if not bad:
        return None
    faults = "; ".join(f"{f.subject}: {f.message}" for verdict in bad for f in verdict.findings[:5])
    return VerificationFailed(f"{len(bad)} of {len(verdicts)} backups of {source} are not good: {faults}")
