"""Telling people of alerts, through the channel of the job that raised them, or else the site's.

The catalog remembers who was told of what, so it does not matter who raised an alert (a flow, the command line, the
sweeper), and one that could not be sent is sent later. A repeat is sent once a day while the trouble lasts, and at
once when it got worse. What somebody acknowledged is not repeated. Who was told of trouble hears when it is over.

Not guaranteed: that a message arrives; only that the channel took it. Secrets are in the block alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from blocks.notification import NotificationChannel, channel_of, send
from seawall.catalog import Alert, Catalog, Severity
from seawall.catalog.logbook.alerts import JOB
from seawall.errors import RecordMissing, SettingsError

logger = logging.getLogger(__name__)

REPEAT_AFTER = timedelta(hours=24)
RETRY_FIRST = timedelta(minutes=1)
RETRY_MOST = timedelta(minutes=30)
SITE = ""


def due(alerts: Iterable[Alert], minimum: Severity, *, now: datetime) -> tuple[Alert, ...]:
    """The open alerts that somebody must be told of now, the most urgent and oldest first."""
    found = [alert for alert in alerts if alert.severity.rank >= minimum.rank and _is_due(alert, now)]
    return tuple(sorted(found, key=lambda alert: (-alert.severity.rank, alert.created_at)))


def _is_due(alert: Alert, now: datetime) -> bool:
    if alert.resolved_at is not None or alert.acknowledged_at is not None:
        return False
    if alert.notified_at is None:
        return True
    # Only what was noticed again since then: an alert that nobody raises any more repeats nothing new.
    return alert.last_raised_at > alert.notified_at and now - alert.notified_at >= REPEAT_AFTER


def over(resolved: Iterable[Alert], still_open: Iterable[Alert], minimum: Severity) -> tuple[Alert, ...]:
    """The resolved alerts of which it must be said that they are; not those whose trouble is back already."""
    back = {(alert.alert_type, alert.subject) for alert in still_open}
    return tuple(
        alert
        for alert in resolved
        if alert.severity.rank >= minimum.rank and (alert.alert_type, alert.subject) not in back
    )


@dataclass
class _Patience:
    """How long a channel that failed is left alone: longer and longer, so that a dead mail server is not hammered."""

    wait: timedelta = RETRY_FIRST
    not_before: datetime | None = None

    def failed(self, now: datetime) -> None:
        self.not_before = now + self.wait
        self.wait = min(self.wait * 2, RETRY_MOST)

    def worked(self) -> None:
        self.wait, self.not_before = RETRY_FIRST, None


class Notifier:
    """Sends what is due, each alert to one channel; one that is dead does not hold up the others.

    Args:
        load: the site's channel as it is now; None where none is configured.
        load_named: the channel of a name; raises SettingsError where there is none.
    """

    def __init__(
        self,
        catalog: Catalog,
        load: Callable[[], NotificationChannel | None],
        load_named: Callable[[str], NotificationChannel | None] = channel_of,
    ) -> None:
        self._catalog = catalog
        self._load = load
        self._load_named = load_named
        self._patience: dict[str, _Patience] = {}

    def notify(self, now: datetime) -> int:
        """Send what is due; how many were sent. A failure is logged and tried again later."""
        waiting = self._catalog.alerts(limit=1000)
        resolved = self._catalog.resolved_untold(now - REPEAT_AFTER)
        names = {alert.id: self._channel_name(alert) for alert in (*resolved, *waiting)}
        sent = 0
        for name in sorted(set(names.values())):
            patience = self._patience.setdefault(name, _Patience())
            if patience.not_before is None or now >= patience.not_before:
                mine = [alert for alert in waiting if names[alert.id] == name]
                done = [alert for alert in resolved if names[alert.id] == name]
                sent += self._send(name, mine, over(done, waiting, Severity.LOW), patience, now)
        return sent

    def _channel_name(self, alert: Alert) -> str:
        """The channel that the alert's job names; the site's where it names none, or nobody knows the job."""
        job_id = alert.alert_data.get(JOB)
        if job_id is None:
            return SITE
        try:
            return str(self._catalog.job(UUID(str(job_id))).notification_config.get("channel") or SITE)
        except (RecordMissing, ValueError):
            return SITE

    def _send(
        self, name: str, waiting: list[Alert], resolved: tuple[Alert, ...], patience: _Patience, now: datetime
    ) -> int:
        try:
            channel = self._channel(name)
            if channel is None:
                return 0
            gone = over(resolved, (), channel.minimum_severity) if channel.tell_resolved else ()
            found = (*gone, *due(waiting, channel.minimum_severity, now=now))
            return self._send_all(channel, found, patience, now)
        except SettingsError as error:
            logger.error("alerts cannot be sent: %s (%s)", error.message, error.hint)  # noqa: TRY400 - no defect
            patience.failed(now)
            return 0

    def _channel(self, name: str) -> NotificationChannel | None:
        """The channel of a name; the site's in its place where it is missing, because somebody must hear."""
        if name == SITE:
            return self._load()
        try:
            return self._load_named(name)
        except SettingsError as error:
            logger.error("a job's channel is not there, so the site's is taken: %s", error.message)  # noqa: TRY400 - no defect
            return self._load()

    def _send_all(
        self, channel: NotificationChannel, found: Iterable[Alert], patience: _Patience, now: datetime
    ) -> int:
        sent = 0
        for alert in found:
            if not send(channel, alert.severity, *text_of(alert)):
                logger.warning("the channel did not take the alert %s of %s", alert.alert_type, alert.subject or "site")
                # What went out before it shows that the channel works: the rest is tried with the next look.
                if not sent:
                    patience.failed(now)
                return sent
            # After it was taken: who is told twice because this process was killed between is better off than one
            # who is told never.
            self._catalog.record_notification(alert.id, now=now)
            sent += 1
        patience.worked()
        return sent


def text_of(alert: Alert) -> tuple[str, str]:
    """Title and body of the message about an alert."""
    subject = alert.subject or "this site"
    state = alert.severity.value if alert.resolved_at is None else "resolved"
    lines = [
        alert.message if alert.resolved_at is None else f"over: {alert.message}",
        "",
        f"first noticed: {alert.created_at.isoformat(timespec='seconds')}",
        f"last noticed: {alert.last_raised_at.isoformat(timespec='seconds')} ({alert.occurrences} in all)",
    ]
    if alert.resolved_at is not None:
        lines.append(f"resolved: {alert.resolved_at.isoformat(timespec='seconds')}")
    return f"[Seawall {state}] {alert.alert_type}: {subject}", "\n".join([*lines, f"alert: {alert.id}"])
