"""Hearing at once of WAL that PostgreSQL has marked as ready to be archived.

PostgreSQL marks a segment, wakes its archiver, and that starts a shell, an interpreter and the client. Who hears of
the mark itself works meanwhile. This is inotify(7), which nothing in Python's library speaks.

Not guaranteed: that anything is heard. On a network file system nothing may be; then files are found when they
are asked for.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
# sys/inotify.h
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x008, 0x080
_EVENT_BYTES = 64 * 1024


class ReadyMarks:
    """Calls `appeared`, in a thread of its own, whenever marks appeared in `pg_wal/archive_status`.

    Args:
        directory: the cluster's `pg_wal/archive_status`.
        appeared: called once for any number of marks; what it raises is a defect.
    """

    def __init__(self, directory: Path, appeared: Callable[[], None]) -> None:
        self._directory = directory
        self._appeared = appeared
        self._events = self._stopped = -1
        self._thread = threading.Thread(target=self._run, name="archive-ready", daemon=True)

    def start(self) -> None:
        """Begin to listen; a system that does not let us is told of and needs nothing else."""
        try:
            self._events = _watched(self._directory)
        except (OSError, AttributeError) as error:
            _log.info("%s is not watched, files are found when they are asked for: %s", self._directory, error)
            return
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread.start()

    def stop(self) -> None:
        if self._events < 0:
            return
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        for descriptor in (self._events, self._stopped):
            os.close(descriptor)
        self._events = -1

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in (self._events, self._stopped):
            poll.register(descriptor, select.POLLIN)
        while self._stopped not in dict(poll.poll()):
            # The other marks there, `.done`, are renamed ones: of them nothing has to be done.
            if b".ready" in os.read(self._events, _EVENT_BYTES):
                self._appeared()


def _watched(directory: Path) -> int:
    """An inotify descriptor for files that were written or renamed in a directory."""
    library = ctypes.CDLL(None, use_errno=True)
    events: int = library.inotify_init1(os.O_CLOEXEC)
    if events < 0:
        raise OSError(ctypes.get_errno(), "inotify cannot be used")
    if library.inotify_add_watch(events, os.fsencode(directory), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
        number = ctypes.get_errno()
        os.close(events)
        raise OSError(number, os.strerror(number))
    return events
