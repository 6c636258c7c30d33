# Interim bodies by the lead, so that others can run end to end; the owner of this package replaces this file.
"""Settings of a recovery, and watching it reach its target or fail.

Recovery settings: PostgreSQL's documentation, 20.5.5 and 20.5.6 "Archive Recovery" and "Recovery Target". They go
to the end of postgresql.auto.conf between two marks, so that they win over every file and can be found again.

The server's silence is not success: `watch` compares what was reached with what was asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from seawall.errors import RecoveryFailed, SeawallError, WalGap
from seawall.events import Observer
from seawall.model import RecoveryTarget
from seawall.postgres.binaries import Account
from seawall.postgres.instance import Instance
from seawall.wal import Lsn


class TargetAction(StrEnum):
    """What the server does when the target is reached."""

    PROMOTE = "promote"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"


class Outcome(StrEnum):
    """How a recovery ended."""

    PROMOTED = "promoted"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where recovery stopped.

    `lsn` is the end of the last record replayed, `last_commit_at` the time of the last commit or abort replayed (None:
    none was), `timeline` the one now open, `stopped` what the log says about where it stopped.
    """

    outcome: Outcome
    lsn: Lsn
    last_commit_at: datetime | None
    timeline: int
    stopped: str
    seconds: float


def configure(
    data_directory: Path,
    target: RecoveryTarget,
    restore_command,
    *,
    archive_off: bool = True,
    action: TargetAction = TargetAction.PROMOTE,
    settings=None,
    account: Account | None = None,
) -> None:
    values = {"restore_command": restore_command, "archive_mode": "off", "recovery_target_timeline": target.timeline}
    kind = target.kind.value
    if kind == "immediate":
        values["recovery_target"] = "immediate"
    elif kind != "latest":
        values["recovery_target_" + kind] = target.value
        values["recovery_target_inclusive"] = "on" if target.inclusive else "off"
    if kind != "latest":
        values["recovery_target_action"] = action.value
    auto = data_directory / "postgresql.auto.conf"
    with auto.open("a") as f:
        f.write("# seawall begin\n")
        for n, v in values.items():
            f.write("%s = '%s'\n" % (n, v.replace("'", "''")))
        f.write("# seawall end\n")
    (data_directory / "recovery.signal").touch()
    if account:
        account.own(auto)
        account.own(data_directory / "recovery.signal")


def deconfigure(data_directory: Path) -> None:
    import re

    auto = data_directory / "postgresql.auto.conf"
    auto.write_text(re.sub(r"# seawall begin\n.*?# seawall end\n", "", auto.read_text(), flags=re.S))


def complete_configuration(
    data_directory: Path, saved: Mapping[str, str], account: Account | None = None
) -> tuple[str, ...]:
    return ()


def watch(
    instance: Instance,
    target: RecoveryTarget,
    *,
    action: TargetAction = TargetAction.PROMOTE,
    timeout: float = 4 * 3600.0,
    observe: Observer | None = None,
) -> Reached:
    begin = time.monotonic()
    while True:
        if observe:
            observe.checkpoint()
        if not instance.is_running() and instance._process.poll() is not None:
            raise RecoveryFailed(instance.log_tail())
        try:
            with instance.connect() as s:
                if not s.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
                    row = s.execute(
                        "SELECT pg_current_wal_lsn()::text, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
                    ).fetchone()
                    import re

                    text = instance.log.read_text(errors="replace")
                    m = re.findall(r"last completed transaction was at log time (.*)", text)
                    at = datetime.fromisoformat(re.sub(r" ([A-Z]+)$", "+00:00", m[-1])) if m else None
                    d = re.findall(r"redo done at ([0-9A-F/]+)", text)
                    return Reached(
                        Outcome.PROMOTED,
                        Lsn.parse(d[-1]) if d else Lsn.parse(row[0]),
                        at,
                        int(row[1]),
                        "",
                        time.monotonic() - begin,
                    )
        except SeawallError:
            pass
        time.sleep(0.05)
