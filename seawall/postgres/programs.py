"""Programs of PostgreSQL that are asked for their output, and that end as soon as nobody wants it any more.

Each leads a process group of its own, which is ended as a whole: a shell that an administrator put in a program's
place leaves what it started behind otherwise, and that holds connections to the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from seawall.errors import Cancelled, ClusterError

_LOOK_SECONDS = 0.1
_GOODBYE_SECONDS = 2.0


def output_of(
    arguments: Sequence[str], *, seconds: float, unwanted: Callable[[], bool] = lambda: False
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever exit code that has.

    Args:
        arguments: program and arguments; no secret is among them.
        seconds: how long it may take.
        unwanted: looked at all the time; once it is true, the program is ended.

    Raises:
        Cancelled: nobody wants the output any more.
        ClusterError: the program cannot be started, or took too long.
    """
    name, deadline = Path(arguments[0]).name, time.monotonic() + seconds
    if unwanted():
        raise Cancelled(f"{name} was not started")
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
    except OSError as error:
        raise ClusterError(f"{name} did not start: {error}") from error
    with process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, words = process.communicate(timeout=_LOOK_SECONDS)
                    return subprocess.CompletedProcess(arguments, process.returncode, output, words)
                if unwanted():
                    raise Cancelled(f"{name} was ended")
                if time.monotonic() > deadline:
                    raise ClusterError(f"{name} did not finish within {seconds:.0f} s")
        except BaseException:
            if process.returncode is None:
                _end(process)
            raise


def _end(process: subprocess.Popen[str]) -> None:
    """TERM, so that it can say goodbye to the server, and soon KILL, for the whole group.

    Until the group is done with, its leader is not reaped: nobody else can get the number meanwhile.
    """
    deadline = time.monotonic() + _GOODBYE_SECONDS
    os.killpg(process.pid, signal.SIGTERM)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_SECONDS / 10)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
