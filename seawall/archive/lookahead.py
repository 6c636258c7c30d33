"""The pushing side of the agent: takes segments from PostgreSQL and ships further ready ones ahead of the asking.

PostgreSQL archives one file after another and waits for each. So while one push is answered, the agent already
ships what `pg_wal/archive_status` shows as ready, and what becomes ready while the client for it is still being
started; the pushes of those are then answered sooner or at once.

Invariant: a push is answered with success only after the repository stored exactly the file that was passed,
or proved that it has the same content.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seawall.archive.intake import Intake, Taken
from seawall.archive.ready import ReadyMarks
from seawall.archive.spool import open_no_link, read_whole, version_of
from seawall.errors import StorageError, UsageError
from seawall.events import Advanced, Observer
from seawall.wal import is_archive_name

_log = logging.getLogger(__name__)
_Version = tuple[int, int, int, int]
# A server that has not asked for so long archives in another way, or not at all.
_ASKED_WITHIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Shipment:
    """A file of a certain version on its way; `ahead` when nobody has asked for it yet."""

    version: _Version
    done: Future[Taken]
    ahead: bool


class Lookahead:
    """Answers pushes.

    Args:
        intake: stores files.
        data_directory: whose `pg_wal` the files must lie in and is looked ahead in; None where this process cannot
            see it, then any file is taken that its header proves to be of this cluster.
        workers: files in flight.
        ahead: how many ready files are scheduled at most.
    """

    def __init__(
        self, intake: Intake, data_directory: Path | None, *, workers: int, ahead: int, observe: Observer
    ) -> None:
        self._intake = intake
        self._wal_directory = None if data_directory is None else data_directory / "pg_wal"
        self._ahead = ahead
        self._observe = observe
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="archive-push")
        self._shipments: dict[str, _Shipment] = {}
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        status = None if self._wal_directory is None else self._wal_directory / "archive_status"
        self._marks = None if status is None else ReadyMarks(status, self._became_ready)

    def start(self) -> None:
        """Begin to hear of files that become ready."""
        if self._marks is not None:
            self._marks.start()

    def stop(self) -> None:
        if self._marks is not None:
            self._marks.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def push(self, path: str, descriptor: int) -> Taken:
        """Make one file durable in the repository.

        Args:
            path: absolute, as the client sees it.
            descriptor: the file, opened by the client.

        Raises:
            UsageError: the path is not one of this cluster's WAL.
            SeawallError: it was refused or could not be stored.
        """
        name = self._admitted(path)
        self._asked_at = time.monotonic()
        version = version_of(os.fstat(descriptor))
        shipment = self._begin(name, version, os.dup(descriptor), ahead=False)
        self._look_ahead()
        try:
            return shipment.done.result()
        except BaseException:
            with self._lock:
                if self._shipments.get(name) is shipment:
                    del self._shipments[name]
            raise

    def _admitted(self, path: str) -> str:
        name = Path(path).name
        if not is_archive_name(name):
            raise UsageError(f"{name!r} is not the name of a WAL file")
        if self._wal_directory is not None and Path(path).parent.resolve() != self._wal_directory.resolve():
            raise UsageError(
                f"{path} does not lie in {self._wal_directory}",
                hint="Each cluster has an agent and a socket of its own.",
            )
        return name

    def _begin(self, name: str, version: _Version, descriptor: int, *, ahead: bool) -> _Shipment:
        """The shipment of what `descriptor` reads, begun now unless it is under way; closes the descriptor."""
        with self._lock:
            known = self._shipments.get(name)
            if known is not None and (ahead or _is_of(known, version)):
                os.close(descriptor)
                return known
            done = self._pool.submit(self._ship, name, version, descriptor)
            done.add_done_callback(lambda ended: os.close(descriptor) if ended.cancelled() else None)
            shipment = self._shipments[name] = _Shipment(version, done, ahead)
            self._forget_old()
        return shipment

    def _forget_old(self) -> None:
        """PostgreSQL asks once for each file; what it has long been told need not be remembered."""
        while len(self._shipments) > 4 * self._ahead:
            oldest = next(iter(self._shipments))
            if not self._shipments[oldest].done.done():
                return
            del self._shipments[oldest]

    def _ship(self, name: str, version: _Version, descriptor: int) -> Taken:
        try:
            if version_of(os.fstat(descriptor)) != version:
                raise StorageError(f"{name} changed before it was read")
            data = read_whole(descriptor)
        finally:
            os.close(descriptor)
        taken = self._intake.take(name, data)
        self._observe.hear(Advanced("archive", len(data)))
        return taken

    # ---- ahead of the asking

    def _became_ready(self) -> None:
        if time.monotonic() - self._asked_at < _ASKED_WITHIN_SECONDS:
            self._look_ahead()

    def _look_ahead(self) -> None:
        if self._wal_directory is None:
            return
        try:
            ready = _ready(self._wal_directory / "archive_status")
        except OSError as error:
            _log.warning("cannot look ahead: %s", error)
            return
        for name in ready[: self._ahead]:
            try:
                self._ship_ahead(name)
            except OSError as error:
                _log.info("%s is not shipped ahead: %s", name, error)

    def _ship_ahead(self, name: str) -> None:
        if self._wal_directory is None:
            return
        with self._lock:
            if name in self._shipments:
                return
        descriptor = open_no_link(self._wal_directory / name)
        self._begin(name, version_of(os.fstat(descriptor)), descriptor, ahead=True)


def _is_of(shipment: _Shipment, version: _Version) -> bool:
    """Whether it is of exactly this file, and not one ahead of the asking that failed: that is tried again."""
    if shipment.version != version:
        return False
    return not (shipment.ahead and shipment.done.done() and shipment.done.exception() is not None)


def _ready(status_directory: Path) -> list[str]:
    """Names that PostgreSQL will archive next, in its order: histories first, then by name (pgarch.c)."""
    with os.scandir(status_directory) as entries:
        names = [entry.name.removesuffix(".ready") for entry in entries if entry.name.endswith(".ready")]
    return sorted(filter(is_archive_name, names), key=lambda name: (not name.endswith(".history"), name))
