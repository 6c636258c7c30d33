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
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from seawall.catalog import BackupOutcome, Catalog, RunStatus, Severity
from seawall.errors import Cancelled, CatalogError, LeaseHeld, LeaseLost, Partial, SeawallError
from seawall.events import Observer
from seawall.settings import Settings
from tasks import run
from tasks.progress import Progress, Publisher, artifact_key, facts

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=120)
RENEWAL_SECONDS = 30.0
UNWIND_SECONDS = 20.0
RECORDING_SECONDS = 60.0
_CREDENTIALS = "PREFECT_API_AUTH_STRING"

Facts = Mapping[str, object]


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


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb achieved: plain JSON values for Prefect and the catalog; `outcome` if it made a backup."""

    facts: Facts = field(default_factory=dict)
    outcome: BackupOutcome | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a verb ended."""

    status: RunStatus
    result: Result = field(default_factory=Result)
    error: SeawallError | None = None


class Record(Protocol):
    """The row that a verb has in the catalog."""

    def begin(self, catalog: Catalog, *, now: datetime, lease: timedelta, flow_run_id: UUID | None) -> UUID | None:
        """Make the row.

        Raises:
            LeaseHeld: it runs already.
        """
        ...

    def finish(self, catalog: Catalog, record_id: UUID, end: End, *, now: datetime) -> None: ...


Verb = Callable[[Surroundings], Result]


def execute(record: Record, verb: Verb, *, settings: Settings, title: str, subject: str) -> Facts:
    """Run a verb with its row, lease, progress and cancellation.

    Args:
        record: which row it has.
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
        try:
            record_id = record.begin(catalog, now=_now(), lease=LEASE, flow_run_id=here.id)
        except LeaseHeld as error:
            raise AlreadyRunning(error.message, hint=error.hint) from error
        work = _Work(record, verb, settings, catalog, record_id, title, subject, here)
        return work.complete()


class _Work:
    """One verb at work."""

    def __init__(
        self,
        record: Record,
        verb: Verb,
        settings: Settings,
        catalog: Catalog,
        record_id: UUID | None,
        title: str,
        subject: str,
        here: run.FlowRun,
    ) -> None:
        self._record = record
        self._verb = verb
        self._catalog = catalog
        self._record_id = record_id
        self._title = title
        self._subject = subject
        self._here = here
        self._log = run.run_log()
        self._progress = Progress()
        self._observer = Observer(hear=self._progress.hear)
        self._surroundings = Surroundings(settings, catalog, self._observer, record_id, _actor(here), _now)
        self._stop: End | None = None
        self._stop_known = threading.Event()
        self._over = threading.Event()
        self._recorded = threading.Lock()
        self._end: End | None = None
        self._failure: BaseException | None = None

    def complete(self) -> Facts:
        """Run to the end; the result's facts, or the verb's error."""
        publisher = Publisher(
            self._progress,
            self._log,
            key=artifact_key(f"{self._title}-{self._subject}"),
            in_run=self._here.id is not None,
        )
        body = threading.Thread(target=self._body, name=self._title, daemon=True)
        renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        publisher.start()
        renewal.start()
        with run.engine_log_to(self._log):
            body.start()
            try:
                # With a time limit, so that the interpreter handles signals meanwhile.
                while body.is_alive():
                    body.join(0.5)
            except BaseException:
                self._interrupt(body)
                raise
            finally:
                self._over.set()
                publisher.stop(completed=self._end is not None and self._end.status is RunStatus.COMPLETED)
        if self._failure is not None:
            raise self._reason(self._failure)
        return dict(self._end.result.facts) if self._end is not None else {}

    def _reason(self, failure: BaseException) -> BaseException:
        """Why it ended: a verb that was told to stop only knows that it was."""
        stopped = self._stop.error if self._stop is not None else None
        return stopped if stopped is not None and isinstance(failure, Cancelled) else failure

    def _body(self) -> None:
        try:
            self._finish(self._run_verb())
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to; `complete` raises it
            self._failure = error

    def _run_verb(self) -> End:
        try:
            return End(RunStatus.COMPLETED, self._verb(self._surroundings))
        except Cancelled as error:
            self._failure = error
            # Who asked to stop knows why, but may still be asking Prefect.
            self._stop_known.wait(5)
            return self._stop or End(RunStatus.CANCELLED, error=error)
        except Partial as error:
            self._failure = error
            return End(RunStatus.PARTIAL, error=error)
        except SeawallError as error:
            self._failure = error
            return End(RunStatus.FAILED, error=error)
        except Exception as error:
            self._failure = error
            logger.exception("%s failed in a way that nobody foresaw", self._title)
            return End(RunStatus.FAILED, error=_defect(error))

    def _interrupt(self, body: threading.Thread) -> None:
        """Stop the verb because this run is to end, and see to it that the catalog says so."""
        self._observer.cancel.set()
        cancelled = self._here.id is not None and run.is_being_cancelled(self._here.id)
        if cancelled:
            self._stop = End(RunStatus.CANCELLED, error=Cancelled("the run was cancelled"))
        else:
            self._stop = End(RunStatus.FAILED, error=Cancelled("the run was interrupted: its worker was stopped"))
        self._stop_known.set()
        body.join(UNWIND_SECONDS)
        if body.is_alive():
            self._log.error("%s did not stop within %.0f s", self._title, UNWIND_SECONDS)
            self._finish(self._stop)

    def _finish(self, end: End) -> None:
        """Record an end; the first one counts."""
        if not self._recorded.acquire(blocking=False):
            return
        self._end = end
        now = _now()
        record_id, told = self._record_id, self._told(end)
        if record_id is not None:
            _persistently(lambda: self._record.finish(self._catalog, record_id, told, now=now))
        _persistently(lambda: self._alert(end, now))
        if end.error is not None:
            self._log.error("%s (%s)", end.error.message, end.error.hint)

    def _told(self, end: End) -> End:
        notices = [{"severity": n.severity, "code": n.code, "message": n.message} for n in self._progress.notices]
        known = {**end.result.facts, "progress": dict(facts(self._progress.snapshot())), "notices": notices}
        return End(end.status, Result(known, end.result.outcome), end.error)

    def _alert(self, end: End, now: datetime) -> None:
        failure = f"{self._title}-failed"
        if end.status is RunStatus.COMPLETED:
            self._catalog.resolve_alerts(failure, subject=self._subject, now=now)
        elif end.status is not RunStatus.CANCELLED and end.error is not None:
            self._catalog.raise_alert(failure, Severity.HIGH, end.error.message, subject=self._subject, now=now)
        for notice in self._progress.notices:
            severity = Severity(notice.severity)
            if severity.rank >= Severity.HIGH.rank:
                self._catalog.raise_alert(notice.code, severity, notice.message, subject=self._subject, now=now)

    def _renew(self) -> None:
        if self._record_id is None:
            return
        while not self._over.wait(RENEWAL_SECONDS):
            try:
                self._catalog.renew(self._record_id, _now(), LEASE)
            except LeaseLost as error:
                self._stop = End(RunStatus.FAILED, error=error)
                self._stop_known.set()
                self._observer.cancel.set()
                return
            except CatalogError as error:
                # The backup matters more than its record; the source's lease in the repository still keeps others out.
                self._log.warning("the lease could not be renewed: %s", error.message)


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


def _actor(here: run.FlowRun) -> str:
    return f"prefect:{here.name or 'task'}@{socket.gethostname()}"


def _now() -> datetime:
    return datetime.now(UTC)
