"""Telling people of alerts, through the channel that the settings name.

The catalog remembers who was told of what, so it does not matter who raised an alert (a flow, the command line, the
sweeper), and one that could not be sent is sent later. A repeat is sent once a day while the trouble lasts, and at
once when it got worse. What somebody acknowledged is not repeated.

Not guaranteed: that a message arrives; only that the channel took it. Secrets are in the block alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from blocks.notification import NotificationChannel, send
from seawall.catalog import Alert, Catalog, Severity
from seawall.errors import SettingsError

logger = logging.getLogger(__name__)

REPEAT_AFTER = timedelta(hours=24)
RETRY_FIRST = timedelta(minutes=1)
RETRY_MOST = timedelta(minutes=30)


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


class Notifier:
    """Sends what is due; after a failure it waits longer and longer, so that a dead mail server is not hammered.

    Args:
        load: the channel as it is now; None where none is configured.
    """

    def __init__(self, catalog: Catalog, load: Callable[[], NotificationChannel | None]) -> None:
        self._catalog = catalog
        self._load = load
        self._wait = RETRY_FIRST
        self._not_before: datetime | None = None

    def notify(self, now: datetime) -> int:
        """Send what is due; how many were sent. A failure is logged and tried again later."""
        if self._not_before is not None and now < self._not_before:
            return 0
        waiting = self._catalog.alerts(limit=1000)
        if not waiting:
            return 0
        try:
            sent = self._send(waiting, now)
        except SettingsError as error:
            logger.error("alerts cannot be sent: %s (%s)", error.message, error.hint)  # noqa: TRY400 - no defect
            return self._failed(now)
        return self._failed(now) if sent is None else sent

    def _send(self, waiting: Iterable[Alert], now: datetime) -> int | None:
        channel = self._load()
        if channel is None:
            return 0
        found = due(waiting, channel.minimum_severity, now=now)
        for number, alert in enumerate(found):
            if not send(channel, alert.severity, *text_of(alert)):
                logger.warning("the channel did not take the alert %s of %s", alert.alert_type, alert.subject or "site")
                return None if number == 0 else number
            # After it was taken: who is told twice because this process was killed between is better off than one
            # who is told never.
            self._catalog.record_notification(alert.id, now=now)
        self._wait, self._not_before = RETRY_FIRST, None
        return len(found)

    def _failed(self, now: datetime) -> int:
        self._not_before = now + self._wait
        self._wait = min(self._wait * 2, RETRY_MOST)
        return 0


def text_of(alert: Alert) -> tuple[str, str]:
    """Title and body of the message about an alert."""
    subject = alert.subject or "this site"
    title = f"[Seawall {alert.severity.value}] {alert.alert_type}: {subject}"
    lines = [
        alert.message,
        "",
        f"first noticed: {alert.created_at.isoformat(timespec='seconds')}",
        f"last noticed: {alert.last_raised_at.isoformat(timespec='seconds')} ({alert.occurrences} in all)",
        f"alert: {alert.id}",
    ]
    return title, "\n".join(lines)
