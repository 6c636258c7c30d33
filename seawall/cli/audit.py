"""`seawall audit`: show and prove the audit of a repository."""

from __future__ import annotations

import argparse

from seawall.audit import AuditLog
from seawall.cli.context import Context
from seawall.cli.reading import answer


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("--last", type=int, default=20, metavar="N", help="show the newest N records (default: 20)")


def run(options: argparse.Namespace, context: Context) -> int:
    records = list(AuditLog(context.reading.repository.storage).records())
    shown = records[-options.last :] if options.last > 0 else []
    lines = [
        f"{r.number:>6}  {r.at:%Y-%m-%d %H:%M:%S}Z  {r.actor}  {r.action}  {r.subject}  "
        + ", ".join(f"{k}: {v}" for k, v in r.details.items())
        for r in shown
    ]
    digest = records[-1].digest if records else ""
    lines.append(f"{len(records)} records, unbroken" + (f"; the last one's hash is {digest}" if digest else ""))
    value = [
        {
            "number": r.number,
            "at": r.at,
            "actor": r.actor,
            "action": r.action,
            "subject": r.subject,
            "details": dict(r.details),
            "digest": r.digest,
        }
        for r in shown
    ]
    return answer(context, {"records": value, "count": len(records), "digest": digest}, lines)
