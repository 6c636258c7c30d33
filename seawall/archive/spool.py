"""A directory of WAL files that wait on this host, and the threads that ship them.

A file is in the spool under its own name only when it is whole and durable; names that begin with a dot or end
with `.open` are work in progress. A file leaves the spool only after the repository has it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from seawall.archive.intake import Taken
from seawall.errors import (
    ClusterMismatch,
    LeaseHeld,
    SeawallError,
    StorageDenied,
    StorageError,
    StorageFull,
    SupersededTimeline,
    WalConflict,
)
from seawall.events import Advanced, Noticed, Observer
from seawall.wal import is_archive_name

_log = logging.getLogger(__name__)
_LOOK_EVERY_SECONDS = 1.0
_STALE_AFTER_SECONDS = 3600.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LARGEST_FILE = 1 << 30
_ENOSPC, _EDQUOT = 28, 122
_WRONG_SERVER = (WalConflict, SupersededTimeline, ClusterMismatch)


def local_error(error: OSError, doing: str) -> StorageError:
    """What a failed system call on the spool means."""
    message = f"{doing}: {error.strerror or error}"
    if error.errno in (_ENOSPC, _EDQUOT):
        return StorageFull(message)
    return StorageDenied(message, hint="Give this account the right to read and write there.")


def prepare(directory: Path, *, owner: int | None = None, mode: int = 0o700) -> None:
    """Make a spool directory, durable and with the right owner.

    Args:
        owner: the user id that shall own it, if this process may give it away.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if owner is not None and os.getuid() == 0:
            os.chown(directory, owner, -1, follow_symlinks=False)
        if os.getuid() in (0, directory.stat().st_uid):
            directory.chmod(mode)
        sync_directory(directory.parent)
    except OSError as error:
        raise local_error(error, f"{directory} cannot be prepared") from error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(directory: Path) -> int:
    """Take a spool for this process; the descriptor that is returned holds it, also against a kill -9.

    Raises:
        LeaseHeld: another process works there.
    """
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LeaseHeld(f"another process works in {directory}", hint="Stop it; one spool has one writer.") from error
    return descriptor


def read_whole(descriptor: int) -> bytes:
    """All bytes of an open regular file, refusing one that changed while it was read.

    Raises:
        StorageError: it is no regular file, is larger than any segment, or changed.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or before.st_size > _LARGEST_FILE:
        raise StorageError("this is no WAL file: not regular, or larger than any segment")
    data = os.pread(descriptor, before.st_size, 0)
    while len(data) < before.st_size and (more := os.pread(descriptor, before.st_size - len(data), len(data))):
        data += more
    if version_of(os.fstat(descriptor)) != version_of(before) or len(data) != before.st_size:
        raise StorageError("the file changed while it was read")
    return data


def version_of(facts: os.stat_result) -> tuple[int, int, int, int]:
    """What changes whenever a file is replaced or written to."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def open_no_link(path: Path) -> int:
    """A descriptor for reading that is never one of what a symbolic link points to."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """How often a file failed, and when it is tried again (monotonic seconds)."""

    error: SeawallError
    attempts: int
    again_at: float


class Shipper:
    """Puts what lies in a spool into the repository, several files at once, and removes it there.

    Args:
        directory: the spool.
        take: stores one file by name and content, as `intake.Intake.take`.
        workers: files in flight.
        observe: hears `Advanced("archive", …)` for each file and `Noticed` for failures.
        shipped: told the name of each file that left the spool for the repository.
    """

    def __init__(
        self,
        directory: Path,
        take: Callable[[str, bytes], Taken],
        *,
        workers: int,
        observe: Observer,
        shipped: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._directory = directory
        self._take = take
        self._workers = workers
        self._observe = observe
        self._shipped = shipped
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="archive-ship")
        self._in_flight: set[str] = set()
        self._troubles: dict[str, _Trouble] = {}
        self._changed = threading.Condition()
        self._nudged = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="archive-shipper", daemon=True)

    def start(self) -> None:
        self._remove_stale()
        self._thread.start()

    def stop(self) -> None:
        """Finish what is in flight and stop; the rest stays in the spool."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def nudge(self) -> None:
        """Look at once: something new lies there."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def waiting(self) -> list[str]:
        """Names in the spool in the order of shipping: histories first, then by name."""
        try:
            names = [entry.name for entry in os.scandir(self._directory) if is_archive_name(entry.name)]
        except FileNotFoundError:
            return []  # not prepared yet
        except OSError as error:
            raise local_error(error, f"{self._directory} cannot be listed") from error
        return sorted(names, key=lambda name: (not name.endswith(".history"), name))

    def failure(self) -> SeawallError | None:
        """What shows that these files do not belong into this repository, if anything did.

        Everything else is tried again for as long as it takes, also what a person must mend first (a key, a right).
        """
        with self._changed:
            return next((t.error for t in self._troubles.values() if isinstance(t.error, _WRONG_SERVER)), None)

    def troubles(self) -> dict[str, SeawallError]:
        """What failed last time, by name."""
        with self._changed:
            return {name: trouble.error for name, trouble in self._troubles.items()}

    # ---- the loop

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
            self._schedule()
            with self._changed:
                if not self._nudged and not self._stopping:
                    self._changed.wait(_LOOK_EVERY_SECONDS)
                self._nudged = False

    def _schedule(self) -> None:
        try:
            names = self.waiting()
        except SeawallError as error:
            self._note(str(self._directory), error)
            return
        for name in names:
            with self._changed:
                trouble = self._troubles.get(name)
                due = trouble is None or trouble.again_at <= time.monotonic()
                if self._stopping or len(self._in_flight) >= self._workers:
                    return
                if name in self._in_flight or not due:
                    continue
                self._in_flight.add(name)
            self._pool.submit(self._ship, name)

    def _ship(self, name: str) -> None:
        try:
            size = self._deliver(name)
        except SeawallError as error:
            self._note(name, error)
        except FileNotFoundError:
            _log.info("%s left the spool by another way", name)
        except Exception as error:  # noqa: BLE001 - a defect must show as trouble with a file, not end the shipping
            self._note(name, StorageError(f"{name} cannot be shipped: {type(error).__name__}: {error}"))
            _log.exception("shipping %s failed", name)
        else:
            self._forget(name)
            self._observe.hear(Advanced("archive", size))
            self._shipped(name)
        finally:
            with self._changed:
                self._in_flight.discard(name)
                self._nudged = True
                self._changed.notify_all()

    def _deliver(self, name: str) -> int:
        path = self._directory / name
        descriptor = open_no_link(path)
        try:
            data = read_whole(descriptor)
        finally:
            os.close(descriptor)
        self._take(name, data)
        # Only now: the repository has it, so losing it here loses nothing. Not synced: what comes back after a
        # crash is put again, and found identical.
        path.unlink()
        return len(data)

    def _note(self, name: str, error: SeawallError) -> None:
        with self._changed:
            before = self._troubles.get(name)
            attempts = before.attempts + 1 if before else 1
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (attempts - 1), _LONGEST_PAUSE_SECONDS)
            self._troubles[name] = _Trouble(error, attempts, time.monotonic() + pause)
        if before is None or before.error.code != error.code:
            severity = "critical" if isinstance(error, _WRONG_SERVER) else "high"
            self._observe.hear(Noticed(severity, error.code, f"{name} is not in the repository: {error.message}"))

    def _forget(self, name: str) -> None:
        """The storage works (again), so what it failed at is tried again at once and not when its pause is over."""
        with self._changed:
            self._troubles.pop(name, None)
            for other, trouble in self._troubles.items():
                if isinstance(trouble.error, StorageError):
                    self._troubles[other] = replace(trouble, again_at=0.0)

    def _remove_stale(self) -> None:
        """Drafts of clients that died; a living one is done within seconds."""
        for entry in os.scandir(self._directory):
            if entry.name.startswith(".tmp-"):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _STALE_AFTER_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
