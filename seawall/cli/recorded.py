"""What the command line did, recorded in the catalog as the flows record it.

The deed counts, whatever becomes of its record: a catalog that is missing or locked is told of loudly and changes
no exit code. `seawall catalog rebuild` finds a backup that was not recorded.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from seawall.catalog import Logbook, RunStatus
from seawall.catalog.anchors import watched
from seawall.catalog.logbook.alerts import at_work
from seawall.catalog.recording import End, Lease, Record, Result, job_id_of, raise_alerts
from seawall.cli.context import Context
from seawall.errors import Cancelled, LeaseHeld, Partial, SeawallError
from seawall.events import Event, Noticed, Observer

LEASE = timedelta(seconds=120)
RENEWAL_SECONDS = 30.0
_T = TypeVar("_T")


class Recording:
    """One verb at work, and its row if the catalog took one.

    `result` and `failure` are set by the verb; a failure is one that the verb tells in its own way, without raising.
    """

    def __init__(self, context: Context, title: str, subject: str) -> None:
        self._context, self._title, self._subject = context, title, subject
        self._notices: list[Noticed] = []
        self._catalog: Logbook | None = None
        self._record: Record | None = None
        self._over = threading.Event()
        self.ids: tuple[UUID, ...] = ()
        self.why_not = ""
        self.result = Result()
        self.failure: SeawallError | None = None
        self.observe = Observer(hear=self._hear, cancel=context.observer.cancel)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Noticed):
            self._notices.append(event)
        self._context.observer.hear(event)

    def begin(self, make: Callable[[Logbook], Record | None]) -> None:
        """Open the catalog and make the row.

        Raises:
            LeaseHeld: the catalog says that this very job is running.
        """
        try:
            self._catalog = Logbook.open(self._context.settings.catalog.url)
            self._record = make(self._catalog)
            if self._record is None:
                self.why_not = "the catalog does not know this backup; `seawall catalog rebuild` makes it known"
                self._context.console.note(f"not recorded: {self.why_not}")
                return
            lease = Lease(LEASE, socket.gethostname())
            self.ids = self._record.begin(self._catalog, now=self._context.now(), lease=lease)
        except LeaseHeld:
            raise
        except SeawallError as error:
            self._give_up(error)
        else:
            threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def tell(self, say: Callable[[Logbook, UUID], _T]) -> _T | None:
        """Tell the catalog something about the row; None if it cannot hear."""
        if self._catalog is None or not self.ids:
            return None
        try:
            return say(self._catalog, self.ids[0])
        except SeawallError as error:
            self._give_up(error)
            return None

    def end(self, end: End) -> None:
        """Record how it ended, raise or resolve alerts, and remember where the repository's audit ends."""
        self._over.set()
        record, now = self._record, self._context.now()
        self._watch_audit(now)
        notices = [{"severity": n.severity, "code": n.code, "message": n.message} for n in self._notices]
        facts = {**end.result.facts, "actor": self._context.actor, "notices": notices}
        told = End(end.status, Result(facts, end.result.outcome), end.error)
        if record is not None:
            self.tell(lambda catalog, _: record.finish(catalog, self.ids, told, now=now))
        with at_work(job_id_of(record)):
            self.tell(lambda catalog, _: raise_alerts(catalog, self._title, self._subject, end, self._notices, now=now))
        if self._catalog is not None:
            self._catalog.close()

    def _watch_audit(self, now: datetime) -> None:
        try:
            repository = self._context.repository
        except SeawallError as error:
            # A restore from other locations goes well also where the primary is lost.
            self.observe.hear(Noticed("medium", "audit-unread", f"the audit could not be read: {error.message}"))
            return
        self.tell(lambda catalog, _: watched(catalog, repository, self.observe, now=now))

    def value(self) -> dict[str, Any]:
        """What JSON output says of the record."""
        if self.ids and not self.why_not:
            return {"record": {"recorded": True, "id": str(self.ids[0])}}
        return {"record": {"recorded": False, "why": self.why_not}}

    def _renew(self) -> None:
        while self._catalog is not None and not self._over.wait(RENEWAL_SECONDS):
            catalog = self._catalog
            try:
                for row in self.ids:
                    catalog.renew(row, self._context.now(), LEASE)
            except SeawallError as error:
                # Its end is believed all the same; the source's own lease keeps a second writer out.
                self._context.console.note(f"the lease in the catalog could not be renewed: {error.message}")

    def _give_up(self, error: SeawallError) -> None:
        self.why_not = error.message
        if self._catalog is not None:
            self._catalog.close()
        self._catalog = None
        hint = f" ({error.hint})" if error.hint else ""
        later = "; `seawall catalog rebuild` makes it known there later" if self._title == "backup" else ""
        message = f"this run of {self._title} is not in the catalog: {error.message}{hint}{later}"
        self._context.observer.hear(Noticed("high", "not-recorded", message))


@contextmanager
def recorded(
    context: Context, title: str, subject: str, make: Callable[[Logbook], Record | None]
) -> Iterator[Recording]:
    """Surround a verb with its row in the catalog.

    Args:
        title: the verb as alerts name it, such as `backup`.
        subject: what it concerns, such as the source's name.
        make: which row; None if the catalog does not know what the verb works on.

    Raises:
        LeaseHeld: the catalog says that this very job is running; nothing was begun.
    """
    recording = Recording(context, title, subject)
    recording.begin(make)
    try:
        yield recording
    except BaseException as error:
        recording.end(_end_of(error))
        raise
    failure = recording.failure
    status = RunStatus.COMPLETED if failure is None else RunStatus.FAILED
    recording.end(End(status, recording.result, failure))


def _end_of(error: BaseException) -> End:
    if isinstance(error, Cancelled | KeyboardInterrupt):
        return End(RunStatus.CANCELLED, error=Cancelled("stopped on request"))
    if isinstance(error, SeawallError):
        return End(RunStatus.PARTIAL if isinstance(error, Partial) else RunStatus.FAILED, error=error)
    return End(RunStatus.FAILED, error=SeawallError(f"{type(error).__name__}: {error}", hint="This is a defect."))


def told(context: Context, what: str, say: Callable[[Logbook], None]) -> dict[str, Any]:
    """Tell the catalog of something that was done at once; what JSON output says of that.

    Args:
        what: was done, for the notice that it is not recorded.
    """
    try:
        with Logbook.open(context.settings.catalog.url) as catalog:
            say(catalog)
    except SeawallError as error:
        context.observer.hear(Noticed("high", "not-recorded", f"{what} is not in the catalog: {error.message}"))
        return {"record": {"recorded": False, "why": error.message}}
    return {"record": {"recorded": True}}
