"""`seawall catalog`: create, check or rebuild the catalog."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from seawall.cli.context import Context
from seawall.errors import UsageError


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument(
        "action",
        choices=("upgrade", "check", "rebuild", "verify-audit", "forget-keeper"),
        help="upgrade: create or migrate; check: compare schema and code; rebuild: from the repository;"
        " forget-keeper: wait no longer for the keeper of a host that is gone for good",
    )
    parser.add_argument("host", nargs="?", help="for forget-keeper: which one, as the alert names it")


def run(options: argparse.Namespace, context: Context) -> None:
    actions = {"upgrade": _upgrade, "check": _check, "rebuild": _rebuild, "verify-audit": _verify_audit}
    if options.action == "forget-keeper":
        _forget_keeper(options.host or "", context)
    elif options.host:
        raise UsageError(f"`seawall catalog {options.action}` takes no host")
    else:
        actions[options.action](context)


def _upgrade(context: Context) -> None:
    from seawall.catalog import Catalog

    with Catalog.open(context.settings.catalog.url, create=True) as catalog:
        revision = catalog.upgrade()
    context.console.result({"revision": revision}, [f"the catalog has schema {revision}"])


def _check(context: Context) -> None:
    from seawall.catalog import Catalog
    from seawall.errors import VerificationFailed

    with Catalog.open(context.settings.catalog.url) as catalog:
        differences = catalog.check()
    if differences:
        raise VerificationFailed(
            f"the catalog differs from what this version expects: {'; '.join(differences)}",
            hint="`seawall catalog upgrade` migrates an older one.",
        )
    context.console.result({"differences": []}, ["the catalog's schema is as this version expects it"])


def _rebuild(context: Context) -> None:
    from seawall.catalog import Catalog, rebuild

    with Catalog.open(context.settings.catalog.url, create=True) as catalog:
        catalog.upgrade()
        report = rebuild(catalog, context.repository, context.now())
    value = asdict(report)
    lines = [f"{member.replace('_', ' ')}: {_told(count)}" for member, count in value.items()]
    context.console.result({"rebuilt": value}, lines)


def _told(found: object) -> str:
    """A count as it is, a list of things one by one."""
    if isinstance(found, list | tuple):
        return "; ".join(str(one["message"] if isinstance(one, dict) else one) for one in found) or "none"
    return str(found)


def _verify_audit(context: Context) -> None:
    from seawall.catalog import Catalog
    from seawall.errors import VerificationFailed

    with Catalog.open(context.settings.catalog.url) as catalog:
        verdict = catalog.verify_audit()
    if verdict.findings:
        raise VerificationFailed("; ".join(finding.message for finding in verdict.findings))
    context.console.result({"good": True}, ["the catalog's audit is unbroken"])


def _forget_keeper(host: str, context: Context) -> None:
    from seawall import keepers
    from seawall.catalog import Logbook

    if not host:
        raise UsageError("which host's keeper?", hint="The alert `keeper-silent` names it.")
    with Logbook.open(context.settings.catalog.url) as catalog:
        keepers.end(catalog, host, context.now())
        catalog.audit(context.actor, "keeper.forget", host, {}, context.now())
    context.console.result({"forgotten": host}, [f"the keeper on {host} is not waited for until it is heard of again"])
