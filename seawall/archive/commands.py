"""The command lines that PostgreSQL runs: archive_command and restore_command; `start.py` in them starts `client.py`.

PostgreSQL gives them to a shell. What happens when the client cannot even start (the interpreter or the file is
gone) is decided in that line, because then nothing of Seawall runs: an archive_command must be counted as
failed, and a restore_command must never look like the end of WAL.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

CLIENT = Path(__file__).with_name("client.py")
START = CLIENT.with_name("start.py")
_ABSENT = 44


def archive_command(
    socket_path: Path, *, spool: Path | None = None, python: Path | None = None, client: Path = START
) -> str:
    """The value of archive_command.

    Args:
        socket_path: where the agent listens.
        spool: where segments may wait on this host while no agent runs; without it PostgreSQL keeps them.
        python: the interpreter, executable for the server's account; this process's own when omitted.
        client: `start.py` with `client.py` beside it.
    """
    words = [*_start(python, client), "push", "--socket", str(socket_path)]
    if spool is not None:
        words += ["--spool", str(spool)]
    # The shell says 126 or 127 when the interpreter cannot be run. Above 125 the archiver would die without
    # counting a failure, and nobody who watches pg_stat_archiver would see it.
    return f"{_quoted(words)} %p || {{ r=$?; case $r in 126|127) exit 125;; *) exit $r;; esac; }}"


def restore_command(
    socket_path: Path, *, python: Path | None = None, client: Path = START, wait_seconds: int = 30
) -> str:
    """The value of restore_command.

    Args:
        socket_path: where the agent listens.
        python: the interpreter, executable for the server's account; this process's own when omitted.
        wait_seconds: how long to wait for an agent that is not there (yet).
    """
    options = ["get", "--socket", str(socket_path), "--absent", str(_ABSENT), "--wait", str(wait_seconds)]
    words = [*_start(python, client), *options]
    # Python exits with 1 or 2 when it cannot start or find the file; both would mean "end of WAL" to PostgreSQL.
    # So only the client's own, unlikely number is turned into 1.
    return f"{_quoted(words)} %f %p; case $? in 0) exit 0;; {_ABSENT}) exit 1;; *) exit 126;; esac"


def _start(python: Path | None, client: Path) -> list[str]:
    return [str(python or sys.executable), "-I", "-S", str(client)]


def _quoted(words: list[str]) -> str:
    """Quoted for the shell, and with PostgreSQL's `%` doubled."""
    return shlex.join(words).replace("%", "%%")
