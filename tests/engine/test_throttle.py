"""Limits by calendar, and buckets that follow them while bytes flow."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import SettingsError
from seawall.limits import DAYS, LimitWindow, highest, limit_at
from seawall.settings import LocationRole, Settings, load, parse
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Throttled, TokenBucket
from seawall.throttle import Following, limits_of_location, limits_of_source

MB = 1_000_000
BERLIN = ZoneInfo("Europe/Berlin")
# Monday noon in Berlin.
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=BERLIN)
OFFICE = LimitWindow(DAYS[:5], time(8), time(18), "Europe/Berlin", 10 * MB)
NIGHT = LimitWindow(("fri",), time(22), time(6), "Europe/Berlin", 50 * MB)


class World:
    """A monotonic clock and a calendar that advance together, only while somebody sleeps."""

    def __init__(self, began_at: datetime = NOON) -> None:
        self.began_at, self.seconds = began_at, 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return (self.began_at.astimezone(UTC) + timedelta(seconds=self.seconds)).astimezone(UTC)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def carried(bucket: TokenBucket, world: World, seconds: float, chunk: int = 64 * 1024) -> int:
    """How many bytes pass within so many seconds when somebody always wants more."""
    end, total = world.seconds + seconds, 0
    while world.seconds < end:
        bucket.take(chunk)
        total += chunk
    return total


# -- windows


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-23T07:59:59+01:00", 0),
        ("2026-11-23T08:00:00+01:00", 10 * MB),
        ("2026-11-23T17:59:59+01:00", 10 * MB),
        ("2026-11-23T18:00:00+01:00", 0),
        ("2026-11-22T12:00:00+01:00", 0),  # a Sunday
        ("2026-11-23T07:30:00+00:00", 10 * MB),  # half past eight in Berlin
        ("2026-07-06T06:30:00+00:00", 10 * MB),  # half past eight in Berlin's summer
        ("2026-11-27T23:00:00+01:00", 50 * MB),
        ("2026-11-28T05:59:00+01:00", 50 * MB),  # Saturday morning belongs to Friday's night
        ("2026-11-28T06:00:00+01:00", 0),
        ("2026-11-27T05:00:00+01:00", 0),  # Friday morning does not
    ],
)
def test_a_window_holds_in_the_clock_of_its_zone_from_its_beginning_to_before_its_end(
    moment: str, expected: int
) -> None:
    assert limit_at([OFFICE, NIGHT], datetime.fromisoformat(moment)) == expected


def test_the_first_window_that_holds_counts_and_zero_lifts_the_limit() -> None:
    lifted = LimitWindow(bytes_per_second=0)
    assert limit_at([lifted, OFFICE], NOON, otherwise=MB) == 0
    assert limit_at([OFFICE, lifted], NOON, otherwise=MB) == 10 * MB
    assert limit_at([], NOON, otherwise=MB) == MB


def test_a_window_without_a_zone_means_the_sites() -> None:
    window = LimitWindow(from_=time(8), to=time(9), bytes_per_second=MB)
    moment = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
    assert limit_at([window], moment, site_zone="Europe/Berlin") == MB
    assert limit_at([window], moment) == 0


@given(
    begin=st.times(),
    end=st.times(),
    day=st.sampled_from(DAYS),
    minutes=st.integers(0, 14 * 24 * 60),
)
def test_a_window_of_one_day_holds_at_most_a_day_and_the_windows_of_all_days_hold_every_day(
    begin: time, end: time, day: str, minutes: int
) -> None:
    moment = datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    each = [LimitWindow((name,), begin, end) for name in DAYS]
    holding = [window for window in each if window.holds(moment)]
    assert len(holding) <= 1
    assert LimitWindow(DAYS, begin, end).holds(moment) is bool(holding)
    if LimitWindow((day,), begin, end).holds(moment):
        assert not LimitWindow((day,), begin, end).holds(moment + timedelta(days=1))


def test_the_highest_limit_is_none_if_any_moment_has_none() -> None:
    assert highest([OFFICE, NIGHT], 20 * MB) == 50 * MB
    assert highest([OFFICE], 0) == 0


# -- buckets


@pytest.mark.parametrize("rate", [200_000, MB, 80 * MB])
def test_a_bucket_carries_what_is_set_within_a_tenth(rate: int) -> None:
    world = World()
    bucket = TokenBucket(rate, clock=world.clock, sleep=world.sleep)
    assert carried(bucket, world, 30) == pytest.approx(30 * rate, rel=0.1)


def test_a_window_that_begins_while_bytes_flow_slows_them_and_one_that_ends_lets_them_go() -> None:
    world = World(NOON.replace(hour=7, minute=59, second=30))
    settings = settings_of('[repository]\nurl = "memory:"\nbandwidth_bytes_per_second = 40_000_000', OFFICE_TOML)
    following = Following(settings, limits_of_location, now=world.now, clock=world.clock)
    bucket = TokenBucket(following, clock=world.clock, sleep=world.sleep)
    before, _, during = (carried(bucket, world, seconds) for seconds in (29, 2, 30))
    assert before == pytest.approx(29 * 40 * MB, rel=0.1)
    assert during == pytest.approx(30 * 10 * MB, rel=0.1)
    world.seconds += 10 * 3600 - 31
    _, after = carried(bucket, world, 2), carried(bucket, world, 20)
    assert after == pytest.approx(20 * 40 * MB, rel=0.1)


def test_a_changed_settings_file_counts_within_two_seconds(tmp_path: Path) -> None:
    file, world = tmp_path / "seawall.toml", World()
    write(file, '[repository]\nurl = "memory:"', "[sources.shop]\nmax_rate_bytes_per_second = 10_000_000")
    following = Following(
        load(file, {}), lambda found: limits_of_source(found, "shop"), now=world.now, clock=world.clock
    )
    bucket = TokenBucket(following, clock=world.clock, sleep=world.sleep)
    assert carried(bucket, world, 10) == pytest.approx(10 * 10 * MB, rel=0.1)
    write(file, '[repository]\nurl = "memory:"', "[sources.shop]\nmax_rate_bytes_per_second = 2_000_000")
    carried(bucket, world, 2)
    assert carried(bucket, world, 20) == pytest.approx(20 * 2 * MB, rel=0.1)


def test_a_settings_file_that_became_wrong_or_went_away_leaves_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, world = tmp_path / "seawall.toml", World()
    write(file, '[repository]\nurl = "memory:"\nbandwidth_bytes_per_second = 5000')
    following = Following(load(file, {}), limits_of_location, now=world.now, clock=world.clock)
    write(file, "[repository\n")
    world.sleep(2)
    assert following() == 5000
    assert "limits stay as they were" in caplog.text
    file.unlink()
    world.sleep(2)
    assert following() == 5000


def test_limits_that_do_not_come_from_the_file_are_not_taken_from_it(tmp_path: Path) -> None:
    file, world = tmp_path / "seawall.toml", World()
    write(file, '[repository]\nurl = "memory:"\nbandwidth_bytes_per_second = 5000')
    from dataclasses import replace

    settings = load(file, {})
    replaced = replace(settings, repository=replace(settings.repository, bandwidth_bytes_per_second=7000))
    following = Following(replaced, limits_of_location, now=world.now, clock=world.clock)
    write(file, '[repository]\nurl = "memory:"\nbandwidth_bytes_per_second = 6000')
    world.sleep(2)
    assert following() == 7000


def test_nothing_is_saved_up_while_nobody_asks() -> None:
    world = World()
    bucket = TokenBucket(MB, clock=world.clock, sleep=world.sleep)
    world.sleep(3600)
    assert carried(bucket, world, 10) == pytest.approx(10 * MB, rel=0.1)


def test_a_throttled_storage_reads_and_writes_within_a_tenth_of_the_limit() -> None:
    world = World()
    storage = Throttled(MemoryStorage(), TokenBucket(MB, clock=world.clock, sleep=world.sleep))
    storage.put("one", [bytes(64 * 1024)] * 160)
    assert world.seconds == pytest.approx(160 * 64 * 1024 / MB, rel=0.1)
    for _ in storage.get("one"):
        pass
    assert world.seconds == pytest.approx(2 * 160 * 64 * 1024 / MB, rel=0.1)


# -- settings

OFFICE_TOML = """
[[repository.limits]]
days = ["mon", "tue", "wed", "thu", "fri"]
from = "08:00"
to = 18:00:00
time_zone = "Europe/Berlin"
bytes_per_second = 10_000_000
"""


def settings_of(*parts: str) -> Settings:
    import tomllib

    return parse(tomllib.loads("\n".join(parts)))


def write(file: Path, *parts: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text("\n".join(parts), encoding="utf-8")
    draft.replace(file)


def test_windows_are_read_from_the_settings_of_repository_source_and_location() -> None:
    settings = settings_of(
        '[repository]\nurl = "memory:"\nbandwidth_bytes_per_second = "20 MiB"',
        OFFICE_TOML.replace("10_000_000", '"10MB"'),
        '[locations.vault]\nrole = "secondary-offsite"\nurl = "memory:vault"\nconcurrency = 2',
        OFFICE_TOML.replace("repository", "locations.vault"),
        '[sources.shop]\nmirrors = ["vault"]\ncopies = 2',
        OFFICE_TOML.replace("repository", "sources.shop").replace("to = 18:00:00", 'to = "24:00"'),
    )
    assert settings.repository.limits == (OFFICE,)
    assert settings.repository.bandwidth_bytes_per_second == 20 * 2**20
    vault = settings.location("vault")
    assert (vault.role, vault.storage.concurrency) == (LocationRole.SECONDARY_OFFSITE, 2)
    assert vault.storage.limits == (OFFICE,)
    assert settings.source("shop").limits[0].to == time(0)
    assert settings.location("primary").storage is settings.repository


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ("[[repository.limits]]\nbytes_per_second = -1", "bytes_per_second"),
        ("[[repository.limits]]\nbytes_per_second = '10 lots'", "bytes_per_second"),
        ("[repository]\nquota_bytes = true", "quota_bytes"),
        ("[repository]\nquota_bytes = 1.5", "quota_bytes"),
        ("[[repository.limits]]\nfrom = 08:00:00", "bytes_per_second"),
        ('[[repository.limits]]\ndays = ["someday"]\nbytes_per_second = 1', "someday"),
        ('[[repository.limits]]\nfrom = "8 o\'clock"\nbytes_per_second = 1', "clock"),
        ('[[repository.limits]]\ntime_zone = "Europe/Atlantis"\nbytes_per_second = 1', "Atlantis"),
        ("[[repository.limits]]\nrate = 1", "rate"),
        ('[repository]\nlimits = "none"', "limits"),
        ('[locations.primary]\nurl = "memory:x"', "itself"),
        ('[locations.vault]\nrole = "offsite"', "no url"),
        ('[locations.vault]\nurl = "memory:x"\nrole = "primary"', "only"),
        ('[locations.vault]\nurl = "memory:x"\nrole = "elsewhere"', "elsewhere"),
        ('[sources.shop]\nmirrors = ["vault"]', "locations.vault"),
        ("[sources.shop]\ncopies = 2", "copies"),
        ("[sources.shop]\ncopies = 0", "copies"),
        ('[server]\ntime_zone = "Europe/Atlantis"', "Atlantis"),
    ],
)
def test_a_wrong_window_location_or_policy_is_refused_with_what_is_wrong(part: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_of(part)
