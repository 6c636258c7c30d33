"""`seawall init`: settings, keys and a repository, so that the first backup is one command away."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.cli.context import Context
from seawall.errors import NotARepository, SettingsError, UsageError
from seawall.model import Compression, CopyMode, SealingMode, checked_name
from seawall.settings import Settings, load

if TYPE_CHECKING:
    from seawall.keys import KeyRing


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("--directory", type=Path, help="where settings, key ring, catalog and spool are made")
    parser.add_argument("--repository", metavar="URL", help="where backups will lie (default: DIRECTORY/repository)")
    parser.add_argument("--source", metavar="NAME", help="a first source")
    parser.add_argument("--conninfo", default="", help="how to reach it, without a password")
    parser.add_argument("--passfile", type=Path, help="a libpq passfile (mode 0600) with its password")
    parser.add_argument("--data-directory", type=Path, help="its data directory on this host")
    parser.add_argument("--mode", choices=[m.value for m in CopyMode], default=CopyMode.DIRECT.value)
    parser.add_argument("--sealing", choices=[m.value for m in SealingMode], default=SealingMode.AES_256_GCM.value)
    parser.add_argument("--compression", choices=[c.value for c in Compression], default=Compression.ZSTD.value)
    parser.add_argument("--operations", metavar="FINGERPRINT", help="an OpenPGP key already in the ring")
    parser.add_argument("--escrow", metavar="FINGERPRINT", help="the escrow key already in the ring")


def run(options: argparse.Namespace, context: Context) -> None:
    config = _write_settings(options) if options.directory else options.config
    settings = load(config)
    made = _make_keys(options, settings, config) if options.directory else {}
    settings = load(config)
    repository_id = _make_repository(context, settings)
    _make_catalog(settings)
    value: dict[str, Any] = {"config": str(config or ""), "repository": repository_id, **made}
    context.console.result(value, _lines(config, settings, repository_id, made))


def _write_settings(options: argparse.Namespace) -> Path:
    directory: Path = options.directory.expanduser().absolute()
    if options.source:
        checked_name(options.source, what="source name")
    config = directory / "seawall.toml"
    if config.exists():
        raise UsageError(f"{config} exists already", hint="`seawall init --config` uses it as it is.")
    # Readable for the account that runs the server: its archive commands read the spool below it.
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    config.write_text(_toml(options, directory), encoding="utf-8")
    return config


def _toml(options: argparse.Namespace, directory: Path) -> str:
    lines = [
        "# Seawall's settings; docs/reference/settings.md explains each. No secret belongs in here.",
        "[repository]",
        f"url = {_text(options.repository or str(directory / 'repository'))}",
        "",
        "[sealing]",
        f"mode = {_text(options.sealing)}",
        f"compression = {_text(options.compression)}",
        f"keyring = {_text(str(directory / 'keyring'))}",
        f"operations = {_text(options.operations or '')}",
        f"escrow = {_text(options.escrow or '')}",
        f"passphrase_file = {_text(str(directory / 'keyring.passphrase'))}",
        "",
        "[catalog]",
        f"url = {_text(f'sqlite:///{directory}/catalog.db')}",
        "",
        "[server]",
        f"work_directory = {_text(str(directory / 'work'))}",
        "",
    ]
    if options.source:
        lines += [
            f"[sources.{options.source}]",
            f"conninfo = {_text(options.conninfo)}",
            f"mode = {_text(options.mode)}",
        ]
        for member, path in (("passfile", options.passfile), ("data_directory", options.data_directory)):
            if path is not None:
                lines.append(f"{member} = {_text(str(path.expanduser().absolute()))}")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A TOML basic string (TOML 1.0, section "String")."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(c) < 32 or ord(c) == 127 for c in escaped):
        raise SettingsError(f"{value!r} has a control character")
    return f'"{escaped}"'


def _make_keys(options: argparse.Namespace, settings: Settings, config: Path) -> dict[str, Any]:
    if settings.sealing.mode is SealingMode.NONE or (options.operations and options.escrow):
        return {}
    if options.operations or options.escrow:
        raise UsageError("name both --operations and --escrow, or neither", hint="Without them two keys are made.")
    passphrase_file = settings.sealing.passphrase_file
    if passphrase_file is None:
        raise SettingsError("no passphrase_file is set")
    _write_secret(passphrase_file, secrets.token_urlsafe(24))
    from seawall.keys import open_ring

    ring = open_ring(settings.sealing)
    try:
        operations = ring.generate(
            "Seawall operations",
            "operations@seawall.invalid",
            passphrase=passphrase_file.read_text(encoding="utf-8").strip(),
        )
        escrow = _make_escrow(ring, config.parent)
    finally:
        ring.close()
    text = config.read_text(encoding="utf-8")
    text = text.replace('operations = ""', f'operations = "{operations}"').replace(
        'escrow = ""', f'escrow = "{escrow}"'
    )
    config.write_text(text, encoding="utf-8")
    return {"operations": operations, "escrow": escrow, "escrow_files": str(config.parent / "escrow")}


def _make_escrow(ring: KeyRing, directory: Path) -> str:
    """Make the escrow key in a ring of its own: its private part never enters the ring that stays here."""
    from seawall.keys import KeyRing as Ring

    folder = directory / "escrow"
    folder.mkdir(mode=0o700)
    passphrase = secrets.token_urlsafe(24)
    away = Ring(folder / "ring", lambda: passphrase)
    try:
        fingerprint = away.generate("Seawall escrow", "escrow@seawall.invalid", passphrase=passphrase)
        ring.import_keys(away.export_public(fingerprint))
        _write_secret(folder / "escrow-secret.asc", away.export_secret(fingerprint))
        _write_secret(folder / "escrow.passphrase", passphrase)
    finally:
        away.close()
    import shutil

    shutil.rmtree(folder / "ring")
    return fingerprint


def _write_secret(path: Path, text: str | bytes) -> None:
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def _make_repository(context: Context, settings: Settings) -> str:
    from seawall import standalone
    from seawall.repository import Repository
    from seawall.storage import open_storage

    storage = open_storage(settings.repository)
    try:
        repository = Repository.open(storage)
        context.console.note(f"repository {repository.id} exists already and stays as it is")
    except NotARepository:
        repository = Repository.create(storage, now=context.now())
    repository.install_recovery_script(standalone.recovery_script())
    return repository.id


def _make_catalog(settings: Settings) -> None:
    from seawall.catalog import Catalog

    Catalog.open(settings.catalog.url, create=True).close()


def _lines(config: Path | None, settings: Settings, repository_id: str, made: dict[str, Any]) -> list[str]:
    lines = [f"repository {repository_id} is ready at {settings.repository.url}"]
    if made:
        lines += [
            f"operations key {made['operations']} is in the key ring; its passphrase lies beside the settings",
            f"escrow key {made['escrow']}: move {made['escrow_files']} to a safe place away from this host now",
        ]
    if settings.sealing.mode is SealingMode.NONE:
        lines.append("sealing is `none`: whoever reads the storage reads the data")
    place = f" --config {config}" if config else ""
    return [*lines, f"next: seawall check{place}, then seawall backup{place}"]
