"""Names, labels and targets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import ClockWentBackwards, NameRefused, TargetUnreachable
from seawall.model import BackupKind, BackupLabel, RecoveryTarget, checked_name

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("name", ["shop", "shop-1", "a", "0_x", "a" * 63])
def test_a_plain_name_is_taken(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "../a", "a b", "Shop", "büro", "-a", "a" * 64, "a\n", "a\0", "a.b", "店"]
)
def test_a_name_that_storage_or_sql_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(NameRefused) as caught:
        checked_name(name, what="source name")
    assert repr(name) in caught.value.message
    assert caught.value.hint


MOMENTS = st.integers(946_684_800, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(MOMENTS, st.sampled_from(list(BackupKind)), MOMENTS)
def test_a_label_survives_its_notation(begun_at: datetime, kind: BackupKind, base: datetime) -> None:
    label = BackupLabel(begun_at, kind, None if kind is BackupKind.FULL else base)
    assert BackupLabel.parse(str(label)) == label


@given(MOMENTS, MOMENTS)
def test_labels_sort_by_time_as_text_and_as_values(one: datetime, other: datetime) -> None:
    assert (str(BackupLabel(one)) < str(BackupLabel(other))) == (one < other)


@pytest.mark.parametrize(
    "text", ["", "20261123T020000Z", "20261323T020000Z-full", "20261123T020000Z-full/..", "x-full"]
)
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(NameRefused):
        BackupLabel.parse(text)


def test_a_clock_that_went_backwards_gets_no_label() -> None:
    newest = BackupLabel(NOON)
    with pytest.raises(ClockWentBackwards):
        BackupLabel.after(newest, NOON - timedelta(seconds=1))
    with pytest.raises(ClockWentBackwards):
        BackupLabel.after(newest, NOON + timedelta(milliseconds=900))
    assert BackupLabel.after(newest, NOON + timedelta(seconds=1)).begun_at == NOON + timedelta(seconds=1)


def test_a_target_time_without_an_offset_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="no offset"):
        RecoveryTarget.at_time("2026-11-23 14:05:00")
    with pytest.raises(TargetUnreachable, match="no time"):
        RecoveryTarget.at_time("yesterday")


def test_a_target_time_is_kept_in_utc() -> None:
    target = RecoveryTarget.at_time("2026-11-23T14:05:00+01:00")
    assert target.value == "2026-11-23 13:05:00+00:00"
    assert target.moment == datetime(2026, 11, 23, 14, 5, tzinfo=timezone(timedelta(hours=1)))
