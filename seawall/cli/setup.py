"""`seawall init`: settings, keys and a repository, so that the first backup is one command away."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from pathlib import Path
from typing import Any

from seawall.cli import keymaking
from seawall.cli.context import Context
from seawall.errors import NotARepository, SettingsError, UsageError
from seawall.model import Compression, CopyMode, SealingMode, checked_name
from seawall.settings import Settings, load, parse

# What a repository behind a network needs beside its URL; each is a setting of [repository] of the same name.
_REMOTE = {
    "endpoint": ("URL", "of the storage service, where it is not the vendor's own"),
    "region": ("NAME", "of an S3 bucket"),
    "credentials_file": ("FILE", "(mode 0600) with what the storage asks for"),
    "ca_file": ("FILE", "with the certificates of an authority of your own"),
    "known_hosts_file": ("FILE", "with the public keys of SFTP servers"),
}


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("--directory", type=Path, help="where settings, key ring, catalog and spool are made")
    parser.add_argument("--repository", metavar="URL", help="where backups will lie (default: DIRECTORY/repository)")
    for name, (metavar, meaning) in _REMOTE.items():
        kind = Path if metavar == "FILE" else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=meaning)
    parser.add_argument("--source", metavar="NAME", help="a first source")
    parser.add_argument("--conninfo", default="", help="how to reach it, without a password")
    parser.add_argument("--passfile", type=Path, help="a libpq passfile (mode 0600) with its password")
    parser.add_argument("--data-directory", type=Path, help="its data directory on this host")
    parser.add_argument(
        "--mode",
        choices=[m.value for m in CopyMode],
        default=CopyMode.DIRECT.value,
        help="direct: read its files on this host (default); stream: ask the server for them, from anywhere",
    )
    parser.add_argument(
        "--sealing",
        choices=[m.value for m in SealingMode],
        default=SealingMode.AES_256_GCM.value,
        help="how objects are encrypted: data keys wrapped by OpenPGP (default), by gpg alone, or not at all",
    )
    parser.add_argument(
        "--compression",
        choices=[c.value for c in Compression],
        default=Compression.ZSTD.value,
        help="default: zstd; lz4 costs less time and more space",
    )
    parser.add_argument("--keyring", type=Path, metavar="DIR", help="a GnuPG home (default: DIRECTORY/keyring)")
    parser.add_argument("--operations", metavar="FINGERPRINT", help="an OpenPGP key already in the ring")
    parser.add_argument("--escrow", metavar="FINGERPRINT", help="the escrow key already in the ring")


def run(options: argparse.Namespace, context: Context) -> None:
    made: dict[str, Any] = {}
    config = options.config if "config" in options else None
    if options.directory:
        directory = options.directory.expanduser().absolute()
        config = directory / "seawall.toml"
        if config.exists():
            _add_source(options, context, config)
        else:
            made = _make_all(options, directory, config)
    settings = load(config)
    _make_work_directory(settings)
    repository_id = _make_repository(context, settings)
    _make_catalog(settings)
    value: dict[str, Any] = {"config": str(config or ""), "repository": repository_id, **made}
    context.console.result(value, _lines(config, settings, repository_id, made))


def _make_all(options: argparse.Namespace, directory: Path, config: Path) -> dict[str, Any]:
    """Keys first and settings last: where settings exist, what they name exists, also after an interruption."""
    if bool(options.operations) != bool(options.escrow):
        raise UsageError("name both --operations and --escrow, or neither", hint="Without them two keys are made.")
    draft = _parsed(_toml(options, directory, options.operations or "", options.escrow or ""), config)
    # Enterable for the account that runs the server: its archive commands read the spool below it.
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = {}
    operations, escrow = options.operations or "", options.escrow or ""
    if draft.sealing.mode is not SealingMode.NONE:
        if operations:
            keymaking.refuse_unusable(draft.sealing)
        else:
            operations, escrow = keymaking.make_pair(draft.sealing, directory)
            made = {"operations": operations, "escrow": escrow, "escrow_files": str(directory / "escrow")}
    _write(config, _toml(options, directory, operations, escrow))
    return made


def _parsed(text: str, config: Path) -> Settings:
    return parse(tomllib.loads(text), origin=str(config))


def _write(config: Path, text: str) -> None:
    """Whole or not at all."""
    draft = config.with_name(f".{config.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(config)


def _add_source(options: argparse.Namespace, context: Context, config: Path) -> None:
    """Settings that exist are kept; only a source that they lack is added."""
    settings = load(config)
    if options.source and checked_name(options.source, what="source name") not in settings.sources:
        text = config.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + "\n".join(_source_lines(options)) + "\n"
        _parsed(text, config)
        _write(config, text)
        context.console.note(f"source {options.source} was added to {config}; the rest of it stays as it is")
    else:
        context.console.note(f"{config} exists already and stays as it is")


def _make_work_directory(settings: Settings) -> None:
    work = settings.server.work_directory
    for directory in (work, work / "spool", work / "agent", work / "scratch"):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)


def _toml(options: argparse.Namespace, directory: Path, operations: str, escrow: str) -> str:
    lines = [
        "# Seawall's settings; docs/reference/settings.md explains each. No secret belongs in here.",
        "[repository]",
        f"url = {_text(_url(options.repository) or str(directory / 'repository'))}",
        *_remote_lines(options),
        "",
        "[sealing]",
        f"mode = {_text(options.sealing)}",
        f"compression = {_text(options.compression)}",
        f"keyring = {_text(str(_absolute(options.keyring) or directory / 'keyring'))}",
        f"operations = {_text(operations)}",
        f"escrow = {_text(escrow)}",
        *([] if options.sealing == SealingMode.NONE else [_passphrase_line(directory)]),
        "",
        "[catalog]",
        f"url = {_text(f'sqlite:///{directory}/catalog.db')}",
        "",
        "[server]",
        f"work_directory = {_text(str(directory / 'work'))}",
        "",
    ]
    return "\n".join(lines + (_source_lines(options) if options.source else [])) + "\n"


def _passphrase_line(directory: Path) -> str:
    return f"passphrase_file = {_text(str(directory / 'keyring.passphrase'))}"


def _source_lines(options: argparse.Namespace) -> list[str]:
    lines = [
        f"[sources.{checked_name(options.source, what='source name')}]",
        f"conninfo = {_text(options.conninfo)}",
        f"mode = {_text(options.mode)}",
    ]
    for member in ("passfile", "data_directory"):
        path = _absolute(getattr(options, member))
        if path is not None:
            lines.append(f"{member} = {_text(str(path))}")
    return lines


def _remote_lines(options: argparse.Namespace) -> list[str]:
    given = {name: getattr(options, name) for name in _REMOTE if getattr(options, name) is not None}
    return [
        f"{name} = {_text(str(_absolute(value)) if isinstance(value, Path) else value)}"
        for name, value in given.items()
    ]


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _url(text: str | None) -> str | None:
    """A URL as it is; a path as the absolute one that it means here."""
    return text if text is None or ":" in text else str(Path(text).expanduser().absolute())


def _text(value: str) -> str:
    """A TOML basic string (TOML 1.0, section "String")."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(c) < 32 or ord(c) == 127 for c in escaped):
        raise SettingsError(f"{value!r} has a control character")
    return f'"{escaped}"'


def _make_repository(context: Context, settings: Settings) -> str:
    from seawall import repair, standalone
    from seawall.repository import Repository
    from seawall.storage import open_storage

    storage = open_storage(settings.repository)
    try:
        repository = Repository.open(storage)
        context.console.note(f"repository {repository.id} exists already and stays as it is")
        if (plan := repair.plan(storage, now=context.now())).steps:
            wrong = "; ".join(step.why for step in plan.steps)
            context.console.note(f"its identity is not whole ({wrong}): see `seawall repository repair`")
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
    place = f" --config {shlex.quote(str(config))}" if config else ""
    return [*lines, f"next: seawall check{place}, then seawall backup{place}"]
