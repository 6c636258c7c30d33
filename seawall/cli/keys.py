"""`seawall keys`: create, list, rotate keys; export a recovery kit."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from seawall.audit import AuditLog
from seawall.cli.context import Context
from seawall.errors import UsageError


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the keys of the ring and what each is for")
    create = actions.add_parser("create", help="make a key pair")
    create.add_argument("--name", required=True, help="whose key it is, such as `Shop backups (operations)`")
    create.add_argument("--email", required=True, help="an address for the key; nothing is sent there")
    create.add_argument("--days", type=int, default=0, help="until it expires; 0 is never")
    bring = actions.add_parser("import", help="add keys to the ring")
    bring.add_argument("file", type=Path, help="a key as gpg exports it, armoured or not")
    export = actions.add_parser("export", help="print a public key")
    export.add_argument("fingerprint", help="of the key; `seawall keys list` shows it")
    rotate = actions.add_parser("rotate", help="wrap every data key for the recipients that the settings name now")
    rotate.add_argument("--retire", action="store_true", help="then delete wraps for earlier recipients")
    rotate.add_argument("--dry-run", action="store_true", help="count, and change nothing")
    kit = actions.add_parser("kit", help="write the recovery kit: where, which keys, how; no secret")
    kit.add_argument("--output", type=Path, help="a file (default: standard output)")


def run(options: argparse.Namespace, context: Context) -> None:
    verbs = {"list": _list, "create": _create, "import": _import, "export": _export, "rotate": _rotate, "kit": _kit}
    verbs[options.action](options, context)


def _list(_options: argparse.Namespace, context: Context) -> None:
    sealing = context.settings.sealing
    roles = {sealing.operations: "operations", sealing.escrow: "escrow"}
    found = context.ring.list()
    rows = [
        (
            key.fingerprint,
            roles.get(key.fingerprint, "recipient" if key.fingerprint in sealing.recipients else "-"),
            "yes" if key.has_secret else "no",
            f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "never",
            "yes" if key.can_encrypt else "NO",
            key.user_id,
        )
        for key in found
    ]
    lines = context.console.table(("FINGERPRINT", "ROLE", "PRIVATE", "EXPIRES", "SEALS", "NAME"), rows) if rows else []
    missing = [fpr for fpr in sealing.all_recipients if fpr not in {key.fingerprint for key in found}]
    lines += [f"MISSING: {fpr}, which the settings name" for fpr in missing]
    value = [
        {
            "fingerprint": key.fingerprint,
            "role": row[1],
            "has_secret": key.has_secret,
            "can_encrypt": key.can_encrypt,
            "expires_at": key.expires_at,
            "user_id": key.user_id,
        }
        for key, row in zip(found, rows, strict=True)
    ]
    context.console.result({"keys": value, "missing": missing}, lines or ["the ring is empty"])


def _create(options: argparse.Namespace, context: Context) -> None:
    file = context.settings.sealing.passphrase_file
    if file is None:
        raise UsageError("no passphrase_file is set", hint="A private key without a passphrase is not made.")
    passphrase = file.read_text(encoding="utf-8").strip()
    fingerprint = context.ring.generate(
        options.name, options.email, passphrase=passphrase, expires_in_days=options.days
    )
    context.console.result({"fingerprint": fingerprint}, [fingerprint])


def _import(options: argparse.Namespace, context: Context) -> None:
    try:
        data = options.file.read_bytes()
    except OSError as error:
        raise UsageError(f"{options.file} cannot be read: {error.strerror}") from error
    fingerprints = context.ring.import_keys(data)
    context.console.result({"imported": list(fingerprints)}, fingerprints)


def _export(options: argparse.Namespace, context: Context) -> None:
    text = context.ring.export_public(options.fingerprint)
    context.console.result({"public_key": text}, [text.rstrip()])


def _rotate(options: argparse.Namespace, context: Context) -> None:
    sealing = context.settings.sealing
    repository = context.deletable if options.retire else context.repository
    wrapped = retired = locked = total = 0
    for name in repository.sources():
        chain = repository.source(name).keychain
        for key_id in chain.ids():
            context.observer.checkpoint()
            total += 1
            if options.dry_run:
                wrapped += not chain.is_wrapped_for(key_id, sealing.all_recipients)
                continue
            # The audit precedes the deed, once for each key, so that an interruption is visible too.
            if not chain.is_wrapped_for(key_id, sealing.all_recipients):
                details = {"recipients": ", ".join(sealing.all_recipients)}
                AuditLog(repository.storage).append(
                    context.actor, "rotate-key", f"{name} {key_id}", details, now=context.now()
                )
                wrapped += chain.rewrap(key_id, context.ring, sealing.all_recipients, context.now())
            if options.retire:
                retired += chain.retire(key_id, sealing.all_recipients)
                locked += len(chain.generations(key_id)) - 1
    value = {
        "keys": total, "rewrapped": wrapped, "retired": retired, "locked": locked, "dry_run": options.dry_run
    }  # fmt: skip
    would = "would be " if options.dry_run else ""
    lines = [f"{wrapped} of {total} data keys {would}wrapped anew, {retired} old wraps deleted"]
    lines += [f"{locked} old wraps are locked and still open for earlier recipients"] if locked else []
    context.console.result(value, lines)


def _kit(options: argparse.Namespace, context: Context) -> None:
    from seawall.keys import recovery_kit
    from seawall.repository.layout import FORMAT

    repository, sealing = context.repository, context.settings.sealing
    text = recovery_kit(
        repository_url=repository.storage.url,
        repository_id=repository.id,
        format_version=FORMAT,
        ring=context.ring,
        recipients=sealing.all_recipients,
        made_at=context.now(),
    )
    if options.output is None:
        context.console.result({"kit": text}, [text])
        return
    try:
        descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise UsageError(f"{options.output} cannot be written: {error.strerror}") from error
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    context.console.result({"output": str(options.output)}, [f"written to {options.output}; print it"])
