"""Settings of a recovery: what makes the next start of a data directory replay WAL up to a target.

Recovery settings: PostgreSQL's documentation, 20.5.5 and 20.5.6 "Archive Recovery" and "Recovery Target". They go
to the end of postgresql.auto.conf between two marks, so that they win over every file and can be found again.
`watch` (from `replay`) then follows the server until the target is reached or recovery failed.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from seawall.errors import ClusterError, RecoveryFailed, SettingsError
from seawall.model import RecoveryTarget, TargetAction, TargetKind
from seawall.postgres.binaries import Account
from seawall.postgres.control import CONTROL_FILE, ControlData, read_control
from seawall.postgres.replay import Outcome, Reached, wait_for_promotion, watch

__all__ = [
    "Outcome",
    "Reached",
    "TargetAction",
    "complete_configuration",
    "configure",
    "deconfigure",
    "restore_command_line",
    "wait_for_promotion",
    "watch",
]

_log = logging.getLogger(__name__)
_AUTO = "postgresql.auto.conf"
_BEGIN = "# Seawall: settings of a recovery, from here"
_END = "# Seawall: to here"
_BLOCK = re.compile(rf"^{re.escape(_BEGIN)}$.*?^{re.escape(_END)}$\n?", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r"^\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=?\s*('(?:[^'\\]|''|\\.)*'|[^\s#']+)")
_PLACEHOLDERS = ("%f", "%p", "%r")
# What an older recovery left behind. PostgreSQL refuses two targets even if one of them is the empty string, so the
# lines must go; it would also run the clean-up commands of the source against the source's archive.
_OF_RECOVERY = frozenset(
    ("restore_command", "archive_cleanup_command", "recovery_end_command", "recovery_target", "recovery_target_time",
     "recovery_target_xid", "recovery_target_lsn", "recovery_target_name", "recovery_target_inclusive",
     "recovery_target_action", "recovery_target_timeline", "recovery_min_apply_delay")
)  # fmt: skip
_BUILT_IN = {
    "max_connections": 100,
    "max_worker_processes": 8,
    "max_wal_senders": 10,
    "max_prepared_transactions": 0,
    "max_locks_per_transaction": 64,
}
# Settings that mean the same on every host and that replay, sorting or stored data may depend on.
_PORTABLE = frozenset(
    ("shared_preload_libraries", "track_commit_timestamp", "timezone", "datestyle", "intervalstyle",
     "default_text_search_config", "wal_level", "max_replication_slots", "default_toast_compression",
     "standard_conforming_strings", "bytea_output", "wal_log_hints", *_BUILT_IN)
)  # fmt: skip
_SAVED_DIRECTORY = "seawall-configuration"
_HBA = """# Written by Seawall, because the source's file lay outside its data directory: admits local sockets only, and
# accounts only as the role of their own name. The source's own file is in {saved}/.
local all all peer
local replication all peer
"""


def restore_command_line(arguments: Sequence[str | Path]) -> str:
    """A shell command for `restore_command` from single arguments.

    The arguments `%f`, `%p` and `%r` stay PostgreSQL's placeholders; every other percent sign is doubled, and every
    argument is quoted for the shell, so paths may have spaces.

    Raises:
        SettingsError: an argument has a line break or NUL in it.
    """
    return " ".join(_shell_word(str(argument)) for argument in arguments)


def _shell_word(argument: str) -> str:
    if argument in _PLACEHOLDERS:
        return f'"{argument}"'
    return shlex.quote(_one_line("restore_command", argument)).replace("%", "%%")


def configure(
    data_directory: Path,
    target: RecoveryTarget,
    restore_command: str | Sequence[str | Path],
    *,
    archive_off: bool = True,
    action: TargetAction = TargetAction.PROMOTE,
    settings: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> None:
    """Make the next start of the server an archive recovery to `target`; the server must be down.

    Writes postgresql.auto.conf and recovery.signal, removes standby.signal and older recovery settings, and raises
    max_connections and the like to what pg_control says replay needs. Running it again replaces what it wrote.

    Args:
        data_directory: the restored files; pg_control may still lie there under a longer name (`pg_control.…`).
        target: where to stop.
        restore_command: a finished shell command with %f and %p, or arguments for `restore_command_line`.
        archive_off: with archive_mode off, so that a test never writes into the source's archive.
        action: what to do at the target; ignored for `latest`, which always promotes.
        settings: more settings for the same block.
        account: becomes the owner of the files written.

    Raises:
        RecoveryFailed: the files cannot be written.
        SettingsError: a value has a line break or NUL in it.
    """
    command = restore_command if isinstance(restore_command, str) else restore_command_line(restore_command)
    try:
        main = data_directory / "postgresql.conf"
        if main.exists():
            _replace(main, _without_recovery(main.read_text(encoding="utf-8", errors="surrogateescape")), account)
        kept = _without_recovery(_text(data_directory / _AUTO))
        values = {"restore_command": command} | _target_settings(target, action)
        if archive_off:
            values["archive_mode"] = "off"
        values |= _raised(_control(data_directory), _text(main) + "\n" + kept) | dict(settings or {})
        _replace(data_directory / _AUTO, kept + _block(values), account)
        _replace(data_directory / "recovery.signal", "", account)
        # With both files the server would become a standby, which never ends recovery.
        (data_directory / "standby.signal").unlink(missing_ok=True)
    except OSError as error:
        raise RecoveryFailed(f"recovery cannot be set up in {data_directory}: {error}", hint="") from error


def deconfigure(data_directory: Path, *, archive_off: bool = True, account: Account | None = None) -> None:
    """Take the block that `configure` wrote out again, once the server was promoted; it may run.

    Args:
        data_directory: the recovered cluster.
        archive_off: leave archive_mode off, because the restored copy has its source's archive_command; the
            administrator takes that line out when this cluster succeeds the source.
        account: becomes the owner of the file written; the present owner stays when omitted.

    Raises:
        RecoveryFailed: the file cannot be written.
    """
    path = data_directory / _AUTO
    try:
        owner = path.stat()
        kept = _without_recovery(_text(path))
        _replace(path, kept + (_block({"archive_mode": "off"}) if archive_off else ""), account)
        if account is None and os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise RecoveryFailed(f"{path} cannot be written: {error.strerror}", hint="") from error


def complete_configuration(
    data_directory: Path, saved: Mapping[str, str], account: Account | None = None
) -> tuple[str, ...]:
    """Give a data directory the configuration files that it lacks because they lay elsewhere (as on Debian).

    Writes only what is missing: a postgresql.conf with the settings of `saved` that replay and sorting need and
    nothing that names paths or addresses of the old host; a pg_hba.conf that admits local sockets as peer; an empty
    pg_ident.conf. The saved originals go to `seawall-configuration/`, for the administrator to merge.

    Args:
        data_directory: the restored files.
        saved: text of the source's configuration files by absolute path, as `inspect.configuration` gave.
        account: becomes the owner of the files written.

    Returns:
        The names written, relative to the data directory.

    Raises:
        RecoveryFailed: a file cannot be written.
    """
    texts = {
        "postgresql.conf": _portable(saved),
        "pg_hba.conf": _HBA.format(saved=_SAVED_DIRECTORY),
        "pg_ident.conf": "# Written by Seawall: no mappings.\n",
    }
    missing = {name: text for name, text in texts.items() if not (data_directory / name).exists()}
    if missing:
        # Below one directory under their old paths; anything that would lead out of it is refused.
        for path, text in saved.items():
            missing[f"{_SAVED_DIRECTORY}/{_relative(path)}"] = text
    try:
        for name, text in missing.items():
            place = data_directory / name
            _make_parents(place.parent, data_directory, account)
            _replace(place, text, account)
    except OSError as error:
        raise RecoveryFailed(f"configuration cannot be written: {error}", hint="") from error
    return tuple(missing)


def parse_settings(text: str) -> dict[str, str]:
    """The settings of a postgresql.conf by lower-case name, the last of each counting (guc-file.l).

    Included files are not followed: their text is given along by whoever has it.
    """
    found: dict[str, str] = {}
    for line in text.split("\n"):  # nothing but a line feed ends a line there
        match = _SETTING.match(line)
        if match is not None and not match[1].lower().startswith("include"):
            found[match[1].lower()] = _unquoted(match[2])
    return found


def _unquoted(value: str) -> str:
    if not value.startswith("'"):
        return value
    return re.sub(r"''|\\(.)", lambda m: m[1] or "'", value[1:-1])


def quoted(value: str) -> str:
    """A value as postgresql.conf takes it (guc-file.l, GUC_scanstr).

    Raises:
        SettingsError: it has a line break or NUL in it.
    """
    text = _one_line("a setting", value).replace("\\", "\\\\").replace("'", "''")
    return f"'{text}'"


def _one_line(what: str, value: str) -> str:
    if any(character in value for character in "\n\r\0"):
        raise SettingsError(f"{what} has a line break in it: {value!r}")
    return value


def _target_settings(target: RecoveryTarget, action: TargetAction) -> dict[str, str]:
    timeline = target.timeline
    if target.kind is TargetKind.LATEST:
        return {"recovery_target_timeline": timeline}
    if target.kind is TargetKind.IMMEDIATE:
        # Consistency lies on the backup's own timeline, whatever came after it.
        # Behind an old backup its later WAL may have been let go; reading ahead would ask for it before the stop.
        values = {"recovery_target": "immediate", "recovery_prefetch": "off"}
        timeline = "current" if timeline == "latest" else timeline
    else:
        values = {f"recovery_target_{target.kind.value}": target.value}
    if target.kind in (TargetKind.TIME, TargetKind.LSN, TargetKind.XID):
        values["recovery_target_inclusive"] = "on" if target.inclusive else "off"
    return values | {"recovery_target_timeline": timeline, "recovery_target_action": action.value}


def _raised(control: ControlData | None, text: str) -> dict[str, str]:
    """The settings that are lower than what the source had: recovery would refuse to go on."""
    if control is None:
        return {}
    configured = parse_settings(text)
    needed: dict[str, str] = {}
    for name, least in control.minimums:
        present = configured.get(name, "")
        if least > (int(present) if present.isdigit() else _BUILT_IN[name]):
            needed[name] = str(least)
    return needed


def _control(data_directory: Path) -> ControlData | None:
    # A restore keeps pg_control under a longer name until every other file is in place.
    for path in [data_directory / CONTROL_FILE, *sorted((data_directory / "global").glob("pg_control?*"))]:
        try:
            return read_control(path, attempts=1)
        except ClusterError as error:
            _log.debug("%s", error.message)
    return None


def _block(values: Mapping[str, str]) -> str:
    lines = [f"{name} = {quoted(value)}" for name, value in values.items()]
    return "\n".join([_BEGIN, *lines, _END, ""])


def _without_recovery(text: str) -> str:
    """The text without our block and without settings of recovery, wherever they stand."""
    kept: list[str] = []
    for line in _BLOCK.sub("", text).removesuffix("\n").split("\n"):
        match = _SETTING.match(line)
        if match is None or match[1].lower() not in _OF_RECOVERY:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept) if any(kept) else ""


def _portable(saved: Mapping[str, str]) -> str:
    mains = [path for path in saved if path.endswith(".conf") and not path.endswith(("hba.conf", "ident.conf"))]
    values: dict[str, str] = {}
    for path in _in_effect(mains):
        values |= {n: v for n, v in parse_settings(saved[path]).items() if n in _PORTABLE}
    head = f"# Written by Seawall, because the source's file lay outside its data directory ({_SAVED_DIRECTORY}/).\n"
    return head + "".join(f"{name} = {quoted(value)}\n" for name, value in sorted(values.items()))


def _in_effect(paths: Iterable[str]) -> list[str]:
    """Main files first, included ones after them: those win."""
    return sorted(paths, key=lambda path: (not path.endswith("/postgresql.conf"), path))


def _relative(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if not parts or "\0" in path:
        raise RecoveryFailed(f"{path!r} is no path of a configuration file")
    return "/".join(parts)


def _make_parents(directory: Path, top: Path, account: Account | None) -> None:
    for place in [*reversed(directory.parents), directory]:
        if place.is_relative_to(top) and not place.exists():
            place.mkdir(mode=0o700)
            if account is not None:
                account.own(place)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""


def _replace(path: Path, text: str, account: Account | None) -> None:
    """Temporary name, fsync, rename: a server never reads half of its settings."""
    draft = path.with_name(path.name + ".seawall")
    mode = path.stat().st_mode & 0o7777 if path.exists() else 0o600
    with draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        draft.chmod(mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if account is not None:
        account.own(draft)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
