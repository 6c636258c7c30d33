"""What is seen of storage locations: whether they answer, whether their locks hold, what lies there, for how long there
is room, what their buckets' rules do, and whether they are apart from each other.

Each location is looked at by itself. One that is down is an alert; when it answers again, the alert is resolved.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall import lifecycle, locations, lockprobe
from seawall.capacity import (
    Capacity,
    Ratios,
    Sample,
    Trend,
    ratios_of,
    samples_of,
    standing,
    theil_sen,
    warned,
    within_quota,
)
from seawall.catalog import LocationType, Logbook, Measurement, Severity
from seawall.errors import RepositoryError, SeawallError, SettingsError, StorageError
from seawall.events import Observer
from seawall.lifecycle import Inspected
from seawall.locations import LocationFinding, LocationReport
from seawall.lockprobe import LockReport, LockState
from seawall.model import Head, LockMode
from seawall.repository import Repository
from seawall.retention import policy_of
from seawall.retention.keeping import longest
from seawall.settings import PRIMARY, LocationRole, Locking, RepositorySettings, Settings, SourceSettings
from seawall.storage.access import service_of
from seawall.storage.base import Stat, Storage
from seawall.storage.local import folder_of
from seawall.usage import Usage, measure

if TYPE_CHECKING:
    from seawall.catalog import Catalog

# Findings of these kinds are alerts, from which severity on.
_ALERTS = {"lifecycle": ("critical", "high"), "capacity": ("critical", "high", "medium")}
_ORDER = ("critical", "high", "medium", "low")
# Fewer measurements say less of growth than the backups themselves do.
_TREND_SAMPLES = 7


@dataclass(frozen=True, slots=True)
class Measuring:
    """How much work a check makes of what lies in a location.

    Args:
        max_age: what was measured since then is taken as it is.
        most: a measurement stops after so long, and the next one goes on; None for however long it takes.
    """

    max_age: timedelta = timedelta(hours=20)
    most: timedelta | None = timedelta(minutes=2)


DAILY = Measuring()
NOW_WHOLE = Measuring(timedelta(0), None)


def check_locations(
    settings: Settings,
    catalog: Catalog | None,
    names: Sequence[str] = (),
    *,
    measuring: Measuring = DAILY,
    now: datetime,
    observe: Observer,
) -> tuple[LocationReport, ...]:
    """Look at locations, all of them unless some are named, and tell the catalog; one that is down is in its report."""
    reports = []
    for name in names or locations.in_order(settings):
        report = check(settings, name, catalog, measuring=measuring, now=now, observe=observe)
        reports.append(report)
        if catalog is not None:
            record_health(catalog, report, now)
    return tuple(reports)


def check(
    settings: Settings,
    name: str,
    catalog: Catalog | None = None,
    *,
    measuring: Measuring = DAILY,
    now: datetime,
    observe: Observer,
) -> LocationReport:
    """Probe one location, and look at what else there is to see if it works."""
    report = locations.check(settings.location(name), settings, observe)
    if not report.good:
        return report
    findings = [*report.findings, *role_findings(settings, name), *lock_findings(settings, name, report)]
    try:
        with closing(locations.opened(settings, name, observe)) as storage:
            seen, said = _lifecycle(settings, name, storage)
            look = _Look(settings, name, catalog, storage, seen, now, observe)
            report = look.at(report, measuring)
    except (StorageError, RepositoryError) as error:
        said = [LocationFinding("low", "capacity-unknown", f"what lies there is not known: {error.message}")]
    findings += [*said, *_room(report.capacity, now), *_hidden(report.usage)]
    return replace(report, findings=tuple(sorted(findings, key=lambda one: _ORDER.index(one.severity))))


# ---- rules of the bucket


def _lifecycle(settings: Settings, name: str, storage: Storage) -> tuple[Inspected | None, list[LocationFinding]]:
    """How the rules of a location's bucket differ from what its retention needs."""
    try:
        planned = lifecycle.plan_for(settings, name)
        if planned is None:
            return None, []
        seen = lifecycle.inspect(planned, storage)
    except SeawallError as error:
        return None, [LocationFinding("low", "lifecycle-unknown", f"lifecycle rules: {error.message}")]
    if seen.unknown:
        text = f"lifecycle rules are not compared: {seen.unknown}; `seawall location lifecycle {name}` prints the plan"
        return seen, [LocationFinding("low", "lifecycle-unknown", text)]
    return seen, [LocationFinding(one.severity, "lifecycle", f"{one.rule}: {one.message}") for one in seen.differences]


# ---- what lies there


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at what lies in a location."""

    settings: Settings
    name: str
    catalog: Catalog | None
    storage: Storage
    rules: Inspected | None
    now: datetime
    observe: Observer

    def at(self, report: LocationReport, measuring: Measuring) -> LocationReport:
        """The report with what lies there and how long there is room."""
        known = self._known(report)
        newest = known[-1] if known else None
        if newest is not None and self.now - newest.measured_at < measuring.max_age:
            return self._with(report, usage_of(newest), newest.details, known, measured=False)
        usage = self._measured(measuring)
        if usage is None:
            old = None if newest is None else usage_of(newest)
            details = {} if newest is None else newest.details
            return report if old is None else self._with(report, old, details, known, measured=False)
        return self._with(report, usage, _details(self._heads()), known, measured=True)

    def _known(self, report: LocationReport) -> tuple[Measurement, ...]:
        if self.catalog is None:
            return ()
        return self.catalog.measurements(known_name(self.catalog, self.name, report.url))

    def _measured(self, measuring: Measuring) -> Usage | None:
        until = None if measuring.most is None else time.monotonic() + measuring.most.total_seconds()
        memory = self.settings.server.work_directory / "usage" / f"{self.name}.json"
        return measure(self.storage, self._class_of, memory=memory, until=until, now=self.now, observe=self.observe)

    def _class_of(self, stat: Stat) -> str:
        if self.rules is None or self.rules.found is None:
            return ""
        age = (self.now - stat.modified_at) / timedelta(days=1)
        return lifecycle.class_at(self.rules.configured, self.rules.plan.root + stat.name, stat.size_bytes, age)

    def _heads(self) -> list[Head]:
        repository = Repository.open(self.storage)
        return [head for name in repository.sources() for head in repository.source(name).readable_heads()[0]]

    def _with(
        self,
        report: LocationReport,
        usage: Usage,
        details: Mapping[str, Any],
        known: Sequence[Measurement],
        *,
        measured: bool,
    ) -> LocationReport:
        quota = self.settings.location(self.name).storage.quota_bytes
        free = within_quota(report.free_bytes, usage.kept_bytes, quota)
        samples = [Sample(one.measured_at, one.used_bytes) for one in known]
        samples += [Sample(usage.measured_at, usage.used_bytes)] if measured else []
        trend = trend_of(samples, details)
        capacity = standing(ratios_in(details), trend, used_bytes=usage.used_bytes, free_bytes=free, now=self.now)
        return replace(report, usage=usage, measured=measured, capacity=capacity, free_bytes=free)


def _details(heads: Sequence[Head]) -> dict[str, Any]:
    """What is worth keeping of the heads beside the counts."""
    ratios, trend = ratios_of(heads), theil_sen(samples_of(heads))
    return {
        "plain_bytes": ratios.plain_bytes,
        "stored_bytes": ratios.stored_bytes,
        "compression": round(ratios.compression, 4),
        "backup_bytes_per_day": None if trend is None else trend.bytes_per_day,
    }


def usage_of(measurement: Measurement) -> Usage:
    """What was measured, as it was recorded."""
    details: Mapping[str, Any] = measurement.details
    return Usage(
        measurement.measured_at,
        measurement.object_count,
        measurement.used_bytes,
        int(details.get("recent_objects", 0)),
        int(details.get("recent_bytes", 0)),
        dict(details.get("by_class", {})),
        int(details.get("hidden_bytes", 0)),
    )


def ratios_in(details: Mapping[str, Any]) -> Ratios:
    """The ratios that were recorded with a measurement."""
    return Ratios(
        int(details.get("plain_bytes", 0)), int(details.get("stored_bytes", 0)), float(details.get("compression", 0))
    )


def trend_of(samples: Sequence[Sample], details: Mapping[str, Any]) -> Trend | None:
    """How a location grows: by what was measured, and by its backups while that is little."""
    growth = details.get("backup_bytes_per_day")
    if len(samples) < _TREND_SAMPLES and growth is not None and samples:
        return Trend(float(growth), samples[-1].at)
    return theil_sen(samples)


def _room(capacity: Capacity | None, now: datetime) -> list[LocationFinding]:
    said = None if capacity is None else warned(capacity, now=now)
    return [] if said is None else [LocationFinding(said.severity, "capacity", said.message)]


def _hidden(usage: Usage | None) -> list[LocationFinding]:
    if usage is None or not usage.hidden_bytes:
        return []
    text = (
        f"{usage.hidden_bytes:,} bytes lie in versions that no list shows: somebody else overwrote or deleted "
        "objects, or the service keeps for a while what is deleted; they are paid for and count for the quota"
    )
    return [LocationFinding("low", "hidden-versions", text)]


# ---- how far its locks reach

# What is locked for longer than this, and cannot be unlocked, is worth a word.
_LONG = timedelta(days=100)


def lock_findings(settings: Settings, name: str, report: LocationReport) -> list[LocationFinding]:
    """That a location which locks will lock for long, before it does: in the mode `compliance` nobody can undo it."""
    place = settings.location(name).storage
    if not report.locks or place.lock is Locking.OFF or place.lock_mode is not LockMode.COMPLIANCE:
        return []
    users = [one for one in settings.sources.values() if name == PRIMARY or name in one.mirrors]
    try:
        reach = max(longest(policy_of(settings, one, name)) for one in users or [SourceSettings("none")])
    except SettingsError as error:
        return [LocationFinding("low", "locks-unknown", f"how far its locks reach: {error.message}")]
    if place.lock_at_most_days:
        reach = min(reach, timedelta(days=place.lock_at_most_days))
    if reach <= _LONG:
        return []
    text = (
        f"backups are locked here for up to {reach.days} days, as its retention keeps them; nobody can unlock them: "
        'lock_at_most_days limits that, lock = "off" ends it (docs/how-to/immutability.md)'
    )
    return [LocationFinding("low", "locks", text)]


# ---- apart from each other


def role_findings(settings: Settings, name: str) -> list[LocationFinding]:
    """What contradicts a location's role: a copy elsewhere that is in the same place is none."""
    location = settings.location(name)
    if location.role is LocationRole.PRIMARY:
        return [] if settings.locations else [_ALONE]
    found = []
    for other in locations.in_order(settings):
        if other == name:
            continue
        if same := locations.overlap(location.storage, settings.location(other).storage):
            found.append(LocationFinding("critical", "role", f"it and {other} are {same}: a copy there is none"))
        elif why := shared(location.storage, settings.location(other).storage):
            text = f"its role is {location.role.value}, but it and {other} are {why}: what destroys one destroys both"
            found.append(LocationFinding("medium", "role", text))
    return found


_ALONE = LocationFinding(
    "low", "role", "it is the only location: what destroys it destroys every backup (docs/how-to/locations.md)"
)


def shared(place: RepositorySettings, other: RepositorySettings) -> str:
    """What two places have in common that can be lost at once; empty for nothing that can be seen from here."""
    here, there = folder_of(place.url), folder_of(other.url)
    if here is not None and there is not None:
        return "on the same file system" if _device(here) == _device(there) else ""
    first, second = (one.url.partition("://")[0::2] for one in (place, other))
    same = first[0] == second[0] and first[1].partition("/")[0] == second[1].partition("/")[0]
    same = same and service_of(place) == service_of(other)
    if not same or first[0] not in ("s3", "azure", "gs", "sftp"):
        return ""
    return "on the same server" if first[0] == "sftp" else "in the same bucket"


def _device(path: str) -> int | str:
    try:
        return Path(path).stat().st_dev
    except OSError:
        return path


# ---- what the catalog is told


def probe_locks(
    settings: Settings, catalog: Catalog | None, names: Sequence[str] = (), *, now: datetime, observe: Observer
) -> tuple[LockReport, ...]:
    """Attack a locked canary in locations, all of them unless some are named, and tell the catalog.

    Raises:
        Cancelled: on request.
    """
    reports = tuple(
        lockprobe.probe_location(settings.location(name), settings, now=now, observe=observe)
        for name in names or locations.in_order(settings)
    )
    if catalog is not None:
        for report in reports:
            _record_lock(catalog, report, now)
            if settings.location(report.name).storage.lock is Locking.OFF:
                catalog.resolve_alerts("lock-gone", subject=report.name, now=now)
    return reports


def _record_lock(catalog: Catalog, report: LockReport, now: datetime) -> None:
    """A breach, or locks that went away, are alerts until a later probe finds the lock held: silence is no proof."""
    unproved = report.error is not None and not report.vanished
    judge(catalog, "lock-unproved", report.name, report.sentence if unproved else "", now)
    if report.state is LockState.BROKEN:
        text = f"location {report.name}: {report.sentence}"
        catalog.raise_alert("lock-broken", Severity.CRITICAL, text, subject=report.name, now=now)
    elif report.vanished:
        text = f"location {report.name}: {report.sentence}"
        catalog.raise_alert("lock-gone", Severity.HIGH, text, subject=report.name, now=now)
    elif report.state is LockState.HOLDS:
        for code in ("lock-broken", "lock-gone"):
            catalog.resolve_alerts(code, subject=report.name, now=now)


def record_health(catalog: Catalog, report: LocationReport, now: datetime) -> None:
    """Keep what a check found, and open or resolve the location's alerts."""
    name = known_name(catalog, report.name, report.url)
    catalog.ensure_storage_location(
        name, LocationType.of(report.url), connection_config={"url": report.url}, role=report.role.value, now=now
    )
    capacity = report.capacity
    room = None if capacity is None or capacity.free_bytes is None else capacity.used_bytes + capacity.free_bytes
    catalog.observe_storage_location(
        name,
        now=now,
        latency_ms=round(1000 * report.write_seconds) if report.good else None,
        capacity_bytes=room,
        problem=report.problem or None,
    )
    if report.measured:
        _record_usage(catalog, name, report, room)
    judge(catalog, "location-down", report.name, report.problem, now)
    if report.good:
        for code in _ALERTS:
            _judge_findings(catalog, code, report, now)


def _record_usage(catalog: Catalog, name: str, report: LocationReport, room: int | None) -> None:
    usage, capacity = report.usage, report.capacity
    if usage is None or capacity is None:
        return
    details = {
        "recent_objects": usage.recent_objects,
        "recent_bytes": usage.recent_bytes,
        "by_class": dict(usage.by_class),
        "hidden_bytes": usage.hidden_bytes,
        "plain_bytes": capacity.plain_bytes,
        "stored_bytes": capacity.stored_bytes,
        "compression": capacity.compression,
        "backup_bytes_per_day": None if capacity.trend is None else capacity.trend.bytes_per_day,
    }
    catalog.record_measurement(
        name,
        used_bytes=usage.used_bytes,
        object_count=usage.objects,
        capacity_bytes=room,
        details=details,
        measured_at=usage.measured_at,
    )


def _judge_findings(catalog: Logbook, code: str, report: LocationReport, now: datetime) -> None:
    """Open or resolve an alert by the grave findings of one code; what could not be looked at changes nothing."""
    if any(one.code == f"{code}-unknown" for one in report.findings):
        return
    grave = [one for one in report.findings if one.code == code and one.severity in _ALERTS[code]]
    severity = Severity(grave[0].severity) if grave else Severity.HIGH
    judge(catalog, code, report.name, "; ".join(one.message for one in grave), now, severity=severity)


def judge(
    catalog: Logbook, kind: str, subject: str, wrong: str, now: datetime, *, severity: Severity = Severity.HIGH
) -> None:
    """Open or resolve an alert by whether something is wrong."""
    if wrong:
        catalog.raise_alert(kind, severity, wrong, subject=subject, now=now)
    else:
        catalog.resolve_alerts(kind, subject=subject, now=now)


def known_name(catalog: Logbook, name: str, url: str) -> str:
    """A location's name in the catalog: the primary may have been recorded there under another before."""
    if name != PRIMARY:
        return name
    rows = ((one.name, str(one.connection_config.get("url", ""))) for one in catalog.storage_locations())
    # Settings and drivers write a folder differently.
    return next((row for row, known in rows if (folder_of(known) or known) == (folder_of(url) or url)), name)
