"""What is seen of storage locations: whether they answer, and what the rules of their buckets do.

Each location is looked at by itself. One that is down is an alert; when it answers again, the alert is resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from seawall import lifecycle, locations
from seawall.catalog import Catalog, LocationType, Severity
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.locations import LocationFinding, LocationReport
from seawall.settings import PRIMARY, Settings
from seawall.storage.base import Storage

_GRAVE = ("critical", "high")


def check_locations(
    settings: Settings, catalog: Catalog | None, names: Sequence[str] = (), *, now: datetime, observe: Observer
) -> tuple[LocationReport, ...]:
    """Probe locations, all of them unless some are named, and tell the catalog; one that is down is in its report."""
    reports = tuple(check(settings, name, observe=observe) for name in names or locations.in_order(settings))
    if catalog is not None:
        for report in reports:
            record_health(catalog, report, now)
    return reports


def check(settings: Settings, name: str, *, observe: Observer) -> LocationReport:
    """Probe one location, and look at what else there is to see if it works."""
    report = locations.check(settings.location(name), settings, observe)
    if not report.good:
        return report
    with closing(locations.opened(settings, name, observe)) as storage:
        return replace(report, findings=tuple(_lifecycle(settings, name, storage)))


def _lifecycle(settings: Settings, name: str, storage: Storage) -> list[LocationFinding]:
    """How the rules of a location's bucket differ from what its retention needs."""
    try:
        planned = lifecycle.plan_for(settings, name)
        if planned is None:
            return []
        seen = lifecycle.inspect(planned, storage)
    except SeawallError as error:
        return [LocationFinding("low", "lifecycle-unknown", f"lifecycle rules: {error.message}")]
    if seen.unknown:
        text = f"lifecycle rules are not compared: {seen.unknown}; `seawall location lifecycle {name}` prints the plan"
        return [LocationFinding("low", "lifecycle-unknown", text)]
    return [LocationFinding(one.severity, "lifecycle", f"{one.rule}: {one.message}") for one in seen.differences]


def record_health(catalog: Catalog, report: LocationReport, now: datetime) -> None:
    """Keep what a check found, and open or resolve the location's alerts."""
    name = known_name(catalog, report.name, report.url)
    catalog.ensure_storage_location(
        name, LocationType.of(report.url), connection_config={"url": report.url}, role=report.role.value, now=now
    )
    catalog.observe_storage_location(
        name,
        now=now,
        latency_ms=round(1000 * report.write_seconds) if report.good else None,
        problem=report.problem or None,
    )
    judge(catalog, "location-down", report.name, report.problem, now)
    if report.good:
        _judge_findings(catalog, "lifecycle", report, now)


def _judge_findings(catalog: Catalog, code: str, report: LocationReport, now: datetime) -> None:
    """Open or resolve an alert by the grave findings of one code; what could not be looked at changes nothing."""
    if any(one.code == f"{code}-unknown" for one in report.findings):
        return
    grave = [one for one in report.findings if one.code == code and one.severity in _GRAVE]
    severity = Severity(grave[0].severity) if grave else Severity.HIGH
    judge(catalog, code, report.name, "; ".join(one.message for one in grave), now, severity=severity)


def judge(
    catalog: Catalog, kind: str, subject: str, wrong: str, now: datetime, *, severity: Severity = Severity.HIGH
) -> None:
    """Open or resolve an alert by whether something is wrong."""
    if wrong:
        catalog.raise_alert(kind, severity, wrong, subject=subject, now=now)
    else:
        catalog.resolve_alerts(kind, subject=subject, now=now)


def known_name(catalog: Catalog, name: str, url: str) -> str:
    """A location's name in the catalog: the primary may have been recorded there under another before."""
    if name != PRIMARY:
        return name
    return next((one.name for one in catalog.storage_locations() if one.connection_config.get("url") == url), name)
