"""Write boundaries of this process: every system call and statement by which something on disk changes.

Installed in a process that is to die, it counts: the moment before each such call, the middle of each write (half of
the bytes are written), and the moment after. At the chosen one the process ends itself with SIGKILL, as a power cut or
`kill -9` would: no handler, no cleanup. The count is of this process's own order, so that the same number is the same
moment again as long as its threads take turns alike.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_BY_DESCRIPTOR = ("write", "pwrite", "fsync", "fdatasync", "ftruncate")
_BY_NAME = ("unlink", "remove", "mkdir", "rmdir", "open")
_BY_TWO_NAMES = ("rename", "replace", "link")
_TORN = ("write", "pwrite")

Call = Callable[..., Any]


class Boundaries:
    """Counts boundaries below some directories, and kills at one of them.

    Args:
        places: only what happens below these counts.
        number: the boundary to die at, from 1; 0 only counts.
        report: a file that gets a line for each boundary that was passed, the last one being that of the end.
        strike: what happens at the chosen one.
    """

    def __init__(
        self, places: Sequence[Path], number: int, report: Path, *, strike: Callable[[], None] | None = None
    ) -> None:
        self._places = tuple(f"{place}/" for place in places)
        self._number = number
        self._report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._passed = 0
        self._lock = threading.Lock()
        self._write = os.write
        self._strike = strike or _die

    def install(self) -> None:
        """Put itself before the operating system, and before the catalog's database if that is loaded."""
        for name in _BY_DESCRIPTOR:
            setattr(os, name, self._around(name, getattr(os, name), _of_descriptor))
        for name in _BY_NAME:
            setattr(os, name, self._around(name, getattr(os, name), _of_name))
        for name in _BY_TWO_NAMES:
            setattr(os, name, self._around(name, getattr(os, name), _of_target))

    def watch_statements(self) -> None:
        """Count the statements and commits of SQLAlchemy too; they reach the disk by another way."""
        from sqlalchemy import event  # noqa: PLC0415 - only victims that have a catalog need it
        from sqlalchemy.engine import Engine  # noqa: PLC0415 - as above

        def before(*arguments: Any) -> None:
            self.passed("statement", "before", _verb(arguments[2]))

        def after(*arguments: Any) -> None:
            self.passed("statement", "after", _verb(arguments[2]))

        event.listen(Engine, "before_cursor_execute", before)
        event.listen(Engine, "after_cursor_execute", after)
        event.listen(Engine, "commit", lambda _connection: self.passed("commit", "before", "catalog"))

    def passed(self, call: str, phase: str, what: str) -> None:
        """Note one boundary, and die if it is the one."""
        with self._lock:
            self._passed += 1
            self._write(self._report, f"{call} {phase} {what}\n".encode())
            if self._passed == self._number:
                self._strike()

    def _around(self, name: str, call: Call, path_of: Call) -> Call:
        def counted(*arguments: Any, **options: Any) -> Any:
            path = path_of(arguments, options)
            if not path.startswith(self._places) or (name == "open" and not arguments[1] & os.O_CREAT):
                return call(*arguments, **options)
            what = form_of(path)
            self.passed(name, "before", what)
            if name in _TORN and memoryview(arguments[1]).nbytes > 1:
                return self._torn(name, call, what, arguments)
            result = call(*arguments, **options)
            self.passed(name, "after", what)
            return result

        return counted

    def _torn(self, name: str, call: Call, what: str, arguments: Sequence[Any]) -> int:
        """Write in two halves, as a kernel may; between them is a boundary."""
        descriptor, data, *offset = arguments
        view = memoryview(data).cast("B")
        half = len(view) // 2
        done = 0
        for piece in (view[:half], view[half:]):
            at = [offset[0] + done] if offset else []
            done += int(call(descriptor, piece, *at))
            self.passed(name, "middle" if done <= half else "after", what)
        return done


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def form_of(path: str) -> str:
    """A path without what differs from run to run: two boundaries of one form are of one kind."""
    name = path.split("/repository/", 1)[-1] if "/repository/" in path else path.rsplit("/", 1)[-1]
    name = re.sub(r"\d{8}T\d{6}Z", "<time>", name)
    return re.sub(r"[0-9A-Fa-f]{4,}|\d+", "#", name)


def _verb(statement: str) -> str:
    return " ".join(statement.split()[:3]).lower()


def _of_descriptor(arguments: Sequence[Any], _options: Mapping[str, Any]) -> str:
    return _link(arguments[0])


def _of_name(arguments: Sequence[Any], options: Mapping[str, Any]) -> str:
    return _absolute(arguments[0], options.get("dir_fd"))


def _of_target(arguments: Sequence[Any], options: Mapping[str, Any]) -> str:
    return _absolute(arguments[1], options.get("dst_dir_fd"))


def _absolute(name: Any, folder: int | None) -> str:
    text = os.fsdecode(name)
    if text.startswith("/") or folder is None:
        return text
    return f"{_link(folder)}/{text}"


def _link(descriptor: Any) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - pathlib would call what is wrapped here
    except OSError:
        return ""
