"""Whether the keepers of this catalog's hosts live: each leaves signs of life, and everybody else looks for them.

A keeper touches a file on its host and writes to the catalog. The file is believed on its own host, where it tells of a
keeper even while the catalog did not answer; the catalog is all that other hosts see. So a host that is down is missed
from elsewhere. What nobody misses is the last keeper: of that only something outside can tell.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from seawall.catalog import Alert, Logbook, Severity
from seawall.settings import Settings
from seawall.watch import judge

SILENT = "keeper-silent"
# A sign of life comes every few seconds; while a keeper hangs in one request, after about a minute.
LIMIT = timedelta(minutes=5)


def silence_here(settings: Settings, now: datetime) -> timedelta | None:
    """How long ago the keeper on this host gave its last sign of life; None where none runs, or it ended in order."""
    try:
        seen_at = settings.keeper_beat.stat().st_mtime
    except FileNotFoundError:
        return None
    return now - datetime.fromtimestamp(seen_at, tz=now.tzinfo)


def trouble(host: str, silence: timedelta | None, now: datetime) -> str:
    """What is wrong if the keeper of a host was silent for so long; empty for nothing. Pure."""
    if silence is None or silence <= LIMIT:
        return ""
    since = (now - silence).astimezone(UTC)
    return (
        f"the keeper on {host} gave no sign of life since {since:%Y-%m-%d %H:%M} UTC: nobody there sends alerts, "
        "sweeps up dead runs or keeps the schedules"
    )


def judge_all(settings: Settings, catalog: Logbook, now: datetime, *, watched: bool = False) -> Mapping[str, str]:
    """Open or resolve the alert `keeper-silent` of each host; what is wrong, by host.

    Only what changed is written, so that it may be asked often. Who looks but once cannot tell a keeper that is gone
    from one that is just starting, as all are after a power cut, nor from one that the catalog did not answer. So what
    is seen once is an alert of low severity, which only remembers; seen again after `LIMIT`, it becomes a high one.

    Args:
        watched: whoever looks has been looking on for so long that those who are just starting were heard of.

    Raises:
        CatalogError: the catalog does not answer.
    """
    here = socket.gethostname()
    silences: dict[str, timedelta | None] = {here: None, **{one.host: one.silence for one in catalog.keepers()}}
    if (own := silence_here(settings, now)) is not None:
        silences[here] = own
    found = {host: trouble(host, silence, now) for host, silence in silences.items()}
    for host, wrong in found.items():
        known = catalog.open_alert(SILENT, subject=host)
        severity = _severity(known, now, watched=watched)
        if bool(wrong) != (known is not None) or (wrong and known is not None and severity.rank > known.severity.rank):
            judge(catalog, SILENT, host, wrong, now, severity=severity)
    return {host: wrong for host, wrong in found.items() if wrong}


def _severity(known: Alert | None, now: datetime, *, watched: bool) -> Severity:
    seen_before = known is not None and now - known.created_at >= LIMIT
    return Severity.HIGH if watched or seen_before else Severity.LOW


def end(catalog: Logbook, host: str, now: datetime) -> None:
    """Wait no longer for the keeper of a host, until it gives a sign of life again.

    Raises:
        RecordMissing: the catalog never heard of it.
    """
    catalog.end_keeper(host)
    catalog.resolve_alerts(SILENT, subject=host, now=now)
