"""What a retention policy says: spans by job type, calendar slots, and the point-in-time window.

A slot is a day, an ISO week or a month in the site's time zone. Of each slot the last good full backup stays, or
the last good one of another kind, or the last of all: so a slot that is past always means the same backup, however
often the policy is applied.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from seawall.errors import SettingsError, UsageError
from seawall.model import BackupKind
from seawall.settings import PRIMARY, RetentionSettings, Settings, SourceSettings

# A century. Dates do not reach back for ever, and who writes more means for ever.
_MOST_DAYS, _MOST_MONTHS = 36_525, 1_200


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long backups and WAL of one source are kept in one storage location.

    Args:
        window: every moment of this span up to now stays restorable.
        kept_for: every backup of a kind is kept for so long.
        daily: the last backup of each day is kept for so long.
        weekly_months: the last backup of each ISO week is kept for so many calendar months.
        monthly_years: the last backup of each month is kept for so many calendar years.
        keep_last: so many of the newest backups stay whatever their age.
        minimum_redundancy: so many of the newest good full backups stay whatever their age; at least 1.
        time_zone: an IANA name; in which days, weeks and months begin.

    Raises:
        UsageError: the policy is empty, or a span is negative or longer than a century.
    """

    window: timedelta
    kept_for: Mapping[BackupKind, timedelta] = field(default_factory=dict)
    daily: timedelta = timedelta(0)
    weekly_months: int = 0
    monthly_years: int = 0
    keep_last: int = 0
    minimum_redundancy: int = 1
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        spans = (self.window, self.daily, *self.kept_for.values())
        counts = (self.weekly_months, self.monthly_years, self.keep_last, self.minimum_redundancy)
        if min(spans) < timedelta(0) or min(counts) < 0:
            raise UsageError("a retention policy has a negative span or number")
        if max(spans) > timedelta(days=_MOST_DAYS) or max(self.weekly_months, 12 * self.monthly_years) > _MOST_MONTHS:
            raise UsageError("a retention policy has a span of more than a hundred years")
        if not any(spans) and not any(counts[:3]):
            raise UsageError(
                "an empty retention policy would keep nothing", hint="Set retention_days or one of the rules."
            )
        _zone(self.time_zone)

    @classmethod
    def of_days(cls, days: int) -> RetentionPolicy:
        """A policy of one number: every moment of so many days stays restorable, and every backup of them stays.

        Raises:
            UsageError: fewer than one day, because a policy that keeps nothing is never meant; or more than a century.
        """
        if days < 1:
            raise UsageError(f"a retention of {days} days would keep nothing", hint="Set retention_days to 1 or more.")
        if days > _MOST_DAYS:
            raise UsageError(f"a retention of {days} days is longer than the most, {_MOST_DAYS} days")
        span = timedelta(days=days)
        return cls(span, dict.fromkeys(BackupKind, span))

    def with_days(self, days: int) -> RetentionPolicy:
        """This policy with another window and another span of dailies; weeklies and monthlies stay as they are.

        Raises:
            UsageError: fewer than one day, or more than a century.
        """
        short = RetentionPolicy.of_days(days)
        return replace(self, window=short.window, daily=short.window)

    @property
    def zone(self) -> ZoneInfo:
        return _zone(self.time_zone)


@dataclass(frozen=True, slots=True)
class Slots:
    """One rule of calendar slots: the name of the slot that a moment lies in, and since when slots are kept."""

    name: str
    of: Callable[[datetime], str]
    since: datetime


def slots(policy: RetentionPolicy, now: datetime) -> tuple[Slots, ...]:
    """The slot rules that are in force, seen from `now`."""
    local = now.astimezone(policy.zone)
    found = []
    if policy.daily:
        found.append(Slots("daily", _day, now - policy.daily))
    if policy.weekly_months:
        found.append(Slots("weekly", _week, months_before(local, policy.weekly_months)))
    if policy.monthly_years:
        found.append(Slots("monthly", _month, months_before(local, 12 * policy.monthly_years)))
    return tuple(found)


def months_before(moment: datetime, months: int) -> datetime:
    """The same time of day so many calendar months earlier, on the month's last day where it is shorter."""
    number = moment.year * 12 + moment.month - 1 - months
    year, month = number // 12, number % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, monthrange(year, month)[1]))


def _day(local: datetime) -> str:
    return local.date().isoformat()


def _week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year}-W{week:02d}"


def _month(local: datetime) -> str:
    return local.date().isoformat()[:7]


def policy_for(settings: Settings, source: str, location: str = PRIMARY) -> RetentionPolicy:
    """The policy of one source in one storage location.

    Args:
        location: its name; where none are set for it, the source's own rules hold.

    Raises:
        SettingsError: the source is not configured, or its rules keep nothing.
    """
    return policy_of(settings, settings.source(source), location)


def policy_of(settings: Settings, source: SourceSettings, location: str = PRIMARY) -> RetentionPolicy:
    """The policy that the settings of a source state; see `policy_for`.

    Raises:
        SettingsError: its rules keep nothing.
    """
    rules = source.retention.locations.get(location, source.retention)
    try:
        return _policy(source, rules, settings.server.time_zone)
    except UsageError as error:
        raise SettingsError(f"the retention of {source.name} is refused: {error.message}", hint=error.hint) from error


def _policy(source: SourceSettings, rules: RetentionSettings, time_zone: str) -> RetentionPolicy:
    shortest = RetentionPolicy.of_days(rules.window_days or source.retention_days)
    return replace(
        shortest,
        kept_for={
            BackupKind.FULL: timedelta(days=rules.full_days),
            BackupKind.DIFFERENTIAL: timedelta(days=rules.differential_days),
            BackupKind.INCREMENTAL: timedelta(days=rules.incremental_days),
        },
        daily=timedelta(days=rules.daily_days or source.retention_days),
        weekly_months=rules.weekly_months,
        monthly_years=rules.monthly_years,
        keep_last=rules.keep_last,
        minimum_redundancy=rules.minimum_redundancy,
        time_zone=time_zone,
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise SettingsError(f"{name!r} is no time zone", hint="Write one such as Europe/Berlin.") from error
