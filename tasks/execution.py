"""What surrounds every verb: its row in the catalog, a lease on that, progress, cancellation, its end.

The verb runs in a thread of its own, and the main thread only waits. So a signal that Prefect turns into an
exception never lands in the middle of the verb or of its recording: the main thread asks the verb to stop, and the
verb unwinds by itself. How it ended is in the catalog before `execute` returns, whatever became of the Prefect server.

Not guaranteed: that a verb stops in time if it never looks at its observer; it is then recorded as stopped, and its
process ends with it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from seawall.catalog import Catalog, RunStatus
from seawall.catalog.facts import Facts
from seawall.catalog.logbook.alerts import at_work
from seawall.catalog.recording import End, Lease, Record, Result, job_id_of, raise_alerts
from seawall.errors import Cancelled, CatalogError, LeaseHeld, LeaseLost, Partial, SeawallError
from seawall.events import Observer
from seawall.settings import Settings
from tasks import run
from tasks.progress import Progress, Publisher, artifact_key, facts

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=120)
RENEWAL_SECONDS = 30.0
UNWIND_SECONDS = 20.0
STOP_REASON_SECONDS = 5.0
RECORDING_SECONDS = 60.0
_CREDENTIALS = "PREFECT_API_AUTH_STRING"


class AlreadyRunning(LeaseHeld):
    """The job runs already; this run has nothing to do."""

    code = "already-running"
    retryable = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a verb gets; `record_id` is its row in the catalog, None for work that has none."""

    settings: Settings
    catalog: Catalog
    observe: Observer
    record_id: UUID | None
    actor: str
    clock: Callable[[], datetime]

    @property
    def now(self) -> datetime:
        return self.clock()


Verb = Callable[[Surroundings], Result]


def execute(record: Record | None, verb: Verb, *, settings: Settings, title: str, subject: str) -> Facts:
    """Run a verb with its row, lease, progress and cancellation.

    Args:
        record: which row it has; None for work that the repository's own audit records.
        verb: must look at `observe.cancel` between two pieces of work.
        title: what it is, for artifact and alerts, such as `backup`.
        subject: what it concerns, such as the source's name.

    Raises:
        AlreadyRunning: the row says that it runs already; nothing was done.
        SeawallError: what the verb raised.
    """
    # What the engine starts (servers, gpg) inherits this process's environment and has no business with the API.
    os.environ.pop(_CREDENTIALS, None)
    here = run.current()
    with Catalog.open(settings.catalog.url) as catalog:
        progress = Progress()
        row = None if record is None else _Row.begin(record, catalog, here.id)
        surroundings = Surroundings(
            settings=settings,
            catalog=catalog,
            observe=Observer(hear=progress.hear),
            record_id=None if row is None else row.ids[0],
            actor=f"prefect:{here.name or 'task'}@{socket.gethostname()}",
            clock=utc_now,
        )
        return _Work(verb, surroundings, row, progress, _Subject(title, subject, here.id)).complete()


@dataclass(frozen=True, slots=True)
class _Subject:
    title: str
    name: str
    flow_run_id: UUID | None


@dataclass(frozen=True, slots=True)
class _Row:
    """The verb's rows while it runs."""

    record: Record
    catalog: Catalog
    ids: tuple[UUID, ...]

    @classmethod
    def begin(cls, record: Record, catalog: Catalog, flow_run_id: UUID | None) -> _Row:
        try:
            lease = Lease(LEASE, socket.gethostname(), flow_run_id)
            return cls(record, catalog, record.begin(catalog, now=utc_now(), lease=lease))
        except LeaseHeld as error:
            raise AlreadyRunning(error.message, hint=error.hint) from error

    def renew(self) -> None:
        for row in self.ids:
            self.catalog.renew(row, utc_now(), LEASE)

    def finish(self, end: End) -> None:
        _persistently(lambda: self.record.finish(self.catalog, self.ids, end, now=utc_now()))


class _Work:
    """One verb at work."""

    def __init__(
        self, verb: Verb, surroundings: Surroundings, row: _Row | None, progress: Progress, subject: _Subject
    ) -> None:
        self._verb = verb
        self._surroundings = surroundings
        self._row = row
        self._progress = progress
        self._subject = subject
        self._log = run.run_log()
        self._stop: End | None = None
        self._stop_known = threading.Event()
        self._over = threading.Event()
        self._unwound = threading.Event()
        self._recorded = threading.Lock()
        self._end: End | None = None
        self._failure: BaseException | None = None

    def complete(self) -> Facts:
        """Run to the end; the result's facts, or the verb's error."""
        key = artifact_key(f"{self._subject.title}-{self._subject.name}")
        publisher = Publisher(self._progress, self._log, key=key, in_run=self._subject.flow_run_id is not None)
        body = threading.Thread(target=self._body, name=self._subject.title, daemon=True)
        renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        publisher.start()
        renewal.start()
        with run.engine_log_to(self._log):
            try:
                body.start()
                # With a time limit, so that the interpreter handles signals meanwhile. Not `join`: interrupted by an
                # exception, CPython 3.11 takes a running thread for ended (`Thread._wait_for_tstate_lock`).
                while not self._unwound.wait(0.5):
                    continue
            except BaseException:
                with _undisturbed():
                    self._interrupt(body)
                raise
            finally:
                self._over.set()
                publisher.stop(completed=self._end is not None and self._end.status is RunStatus.COMPLETED)
        if self._failure is not None:
            raise self._reason(self._failure)
        return dict(self._end.result.told) if self._end is not None else {}

    def _reason(self, failure: BaseException) -> BaseException:
        """Why it ended: a verb that was told to stop only knows that it was."""
        stopped = self._stop.error if self._stop is not None else None
        return stopped if stopped is not None and isinstance(failure, Cancelled) else failure

    def _body(self) -> None:
        try:
            self._finish(self._run_verb())
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to; `complete` raises it
            self._failure = error
        finally:
            self._unwound.set()

    def _run_verb(self) -> End:
        try:
            with at_work(self._job_id):
                result = self._verb(self._surroundings)
                return End(RunStatus.COMPLETED if result.lacking is None else RunStatus.PARTIAL, result)
        except Cancelled as error:
            self._failure = error
            # Who asked to stop knows why, but may still be asking Prefect.
            self._stop_known.wait(STOP_REASON_SECONDS)
            return self._stop or End(RunStatus.CANCELLED, error=error)
        except Partial as error:
            self._failure = error
            return End(RunStatus.PARTIAL, error=error)
        except SeawallError as error:
            self._failure = error
            return End(RunStatus.FAILED, error=error)
        except Exception as error:
            self._failure = error
            logger.exception("%s failed in a way that nobody foresaw", self._subject.title)
            return End(RunStatus.FAILED, error=_defect(error))

    def _interrupt(self, body: threading.Thread) -> None:
        """Stop the verb because this run is to end, and see to it that the catalog says so."""
        self._surroundings.observe.cancel.set()
        flow_run_id = self._subject.flow_run_id
        if flow_run_id is not None and run.is_being_cancelled(flow_run_id):
            self._stop = End(RunStatus.CANCELLED, error=Cancelled("the run was cancelled"))
        else:
            self._stop = End(RunStatus.FAILED, error=Cancelled("the run was interrupted: its worker was stopped"))
        self._stop_known.set()
        if body.ident is None:
            self._finish(self._stop)
        elif not self._unwound.wait(UNWIND_SECONDS):
            self._log.error("%s did not stop within %.0f s", self._subject.title, UNWIND_SECONDS)
            self._finish(self._stop)

    def _finish(self, end: End) -> None:
        """Record an end; the first one counts."""
        if not self._recorded.acquire(blocking=False):
            return
        self._end = end
        if self._row is not None:
            self._row.finish(self._told(end))
        _persistently(lambda: self._alert(end, utc_now()))
        if end.error is not None:
            self._log.error("%s (%s)", end.error.message, end.error.hint)
        elif end.result.lacking is not None:
            self._log.warning("%s (%s)", end.result.lacking.message, end.result.lacking.hint)

    def _told(self, end: End) -> End:
        notices = [{"severity": n.severity, "code": n.code, "message": n.message} for n in self._progress.notices]
        known = {**end.result.told, "progress": dict(facts(self._progress.snapshot())), "notices": notices}
        return End(end.status, Result(known, end.result.outcome), end.error or end.result.lacking)

    def _alert(self, end: End, now: datetime) -> None:
        catalog, subject = self._surroundings.catalog, self._subject
        with at_work(self._job_id):
            raise_alerts(catalog, subject.title, subject.name, end, self._progress.notices, now=now)

    @property
    def _job_id(self) -> UUID | None:
        return None if self._row is None else job_id_of(self._row.record)

    def _renew(self) -> None:
        while self._row is not None and not self._over.wait(RENEWAL_SECONDS):
            try:
                self._row.renew()
            except LeaseLost as error:
                self._stop = End(RunStatus.FAILED, error=error)
                self._stop_known.set()
                self._surroundings.observe.cancel.set()
                return
            except CatalogError as error:
                # The backup matters more than its record; the source's lease in the repository still keeps others out.
                self._log.warning("the lease could not be renewed: %s", error.message)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a second SIGTERM pass unheard: Prefect sends one for each way in which it hears of a cancellation."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not SIG_IGN, which programs that are started meanwhile would inherit.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _persistently(record: Callable[[], None]) -> None:
    """Record, trying again for a while if the catalog does not answer.

    Raises:
        CatalogError: it did not answer for that long, or refused.
    """
    deadline = time.monotonic() + RECORDING_SECONDS
    while True:
        try:
            return record()
        except CatalogError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(2)


def _defect(error: Exception) -> SeawallError:
    return SeawallError(
        f"{type(error).__name__}: {error}", hint="This is a defect of Seawall; the log has its traceback."
    )


def utc_now() -> datetime:
    return datetime.now(UTC)
