"""Which process this is, so that others on the same host can prove later that it is gone.

A number alone proves nothing: numbers are used again, and containers have numbers of their own. So the identity names
the boot of the machine and the namespace of the number, and when the process began. Whoever cannot compare all of that
proves nothing, and waits.

Source: proc(5), `/proc/sys/kernel/random/boot_id`, `/proc/self/ns/pid`, `/proc/<pid>/stat` field 22.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_STATE, _STARTED = 0, 19  # of what follows the program's name in `stat`
_MOST = 1 << 31


def identity() -> str:
    """This process, as text; empty where the system does not tell."""
    return _identity_of(os.getpid())


@cache
def _identity_of(pid: int) -> str:
    # Kept by number: a child that was forked is another process.
    place, fields = _place(), _fields(pid)
    return f"{place}/{pid}/{fields[_STARTED]}" if place and fields else ""


def is_gone(other: str) -> bool:
    """Whether a process is provably gone; not, as long as there is a doubt.

    Args:
        other: what `identity` said there; empty, or of another machine, boot or container, proves nothing.
    """
    try:
        place, number, started = other.rsplit("/", 2)
        pid = int(number)
    except ValueError:
        return False
    # Never 0 or less: to `kill`, those are groups.
    if not place or place != _place() or not 0 < pid < _MOST:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    fields = _fields(pid)
    # Processes of other accounts may be hidden: what cannot be read lives.
    return bool(fields) and (fields[_STARTED] != started or fields[_STATE] in "ZX")


def _place() -> str:
    """The boot of this machine and the namespace in which processes are numbered; empty where it is not told."""
    try:
        boot, namespace = _BOOT.read_text(encoding="ascii").strip(), str(_NAMESPACE.readlink())
    except (OSError, ValueError):
        return ""
    return f"{boot}/{namespace}"


def _fields(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
