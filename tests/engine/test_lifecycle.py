"""Lifecycle rules move old data, never delete what a backup needs, and say when somebody else's rule would."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.errors import SettingsError, UsageError
from seawall.lifecycle import Action, LifecyclePlan, Rule, SourcePolicy, Vendor, compare, document, merged, parsed, plan
from seawall.lifecycle.bucket import plan_for
from seawall.lifecycle.classes import CLASSES, ladder
from seawall.lifecycle.rules import moves
from seawall.model import BackupKind
from seawall.retention import RetentionPolicy
from seawall.retention import plan as retention_plan
from seawall.retention.simulate import Schedule, _backups
from seawall.settings import RepositorySettings, parse

DAY = timedelta(days=1)
USUAL = RetentionPolicy(30 * DAY, dict.fromkeys(BackupKind, 7 * DAY), daily=30 * DAY, weekly_months=12, monthly_years=7)
ONLINE = {vendor: tuple(one for one in classes[1:] if one.online) for vendor, classes in CLASSES.items()}


def planned(vendor: Vendor = Vendor.S3, root: str = "shop/", policy: RetentionPolicy = USUAL) -> LifecyclePlan:
    classes = ladder(vendor, RepositorySettings())
    return plan(vendor, root, classes, [SourcePolicy("main", policy, 7)])


def test_data_moves_one_class_colder_when_daily_backups_are_gone_and_again_when_weekly_ones_are() -> None:
    found = moves(SourcePolicy("main", USUAL, 7), ladder(Vendor.S3, RepositorySettings()))
    # 30 days of window and dailies, 7 of a chain, 4 until a cleanup is done; 12 months and as much for weeklies.
    assert [(move.days, move.to.name) for move in found] == [(41, "STANDARD_IA"), (387, "GLACIER_IR")]


def test_nothing_moves_that_expires_before_the_class_stops_charging_for_it() -> None:
    short = replace(USUAL, weekly_months=3, monthly_years=0)
    # Of three months at least 81 days are certain; 40 of them are left, enough for a class that charges for 30.
    for vendor, kind in ((Vendor.S3, "STANDARD_IA"), (Vendor.GCS, "NEARLINE")):
        found = moves(SourcePolicy("main", short, 7), ladder(vendor, RepositorySettings()))
        assert [move.to.name for move in found] == [kind]
    shorter = replace(USUAL, weekly_months=2, monthly_years=0)
    assert moves(SourcePolicy("main", shorter, 7), ladder(Vendor.GCS, RepositorySettings())) == ()
    only_days = replace(USUAL, weekly_months=0, monthly_years=0)
    assert moves(SourcePolicy("main", only_days, 7), ONLINE[Vendor.AZURE]) == ()


@st.composite
def policies(draw: st.DrawFn) -> RetentionPolicy:
    kept = {kind: draw(st.integers(0, 40)) * DAY for kind in BackupKind}
    return RetentionPolicy(
        draw(st.integers(1, 60)) * DAY,
        kept,
        daily=draw(st.integers(0, 90)) * DAY,
        weekly_months=draw(st.integers(0, 14)),
        monthly_years=draw(st.integers(0, 2)),
        time_zone=draw(st.sampled_from(["UTC", "Pacific/Auckland"])),
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(policy=policies(), every=st.integers(1, 10), offset=st.integers(0, 400), vendor=st.sampled_from(list(Vendor)))
def test_what_was_moved_stays_for_as_long_as_the_class_charges(
    policy: RetentionPolicy, every: int, offset: int, vendor: Vendor
) -> None:
    """The rules count days; that they are right is shown by retention itself, on the sets that just reached the age."""
    schedule = Schedule(full_every=every * DAY, incremental_every=DAY)
    for move in moves(SourcePolicy("main", policy, every), ONLINE[vendor]):
        moved_at = datetime(2026, 3, 1, 12, tzinfo=UTC) + offset * DAY
        begin = moved_at - (move.days + 45) * DAY
        later = moved_at + (move.to.least_days - 1) * DAY
        heads = []
        for head in _backups(schedule, begin):
            if head.stopped_at > later:
                break
            heads.append(head)

        def stored(now: datetime, there: list = heads) -> set[datetime]:  # type: ignore[type-arg]
            past = [head for head in there if head.stopped_at <= now]
            kept = {one.label for one in retention_plan("s", past, (), policy, now=now, at_rest=True).keep}
            return {label.begun_at for label in kept} | {label.base_begun_at for label in kept if label.base_begun_at}

        just_moved = {at for at in stored(moved_at) if move.days * DAY <= moved_at - at < (move.days + 1) * DAY}
        assert just_moved <= stored(later)


@given(policy=policies(), chain=st.integers(1, 30), vendor=st.sampled_from(list(Vendor)))
def test_moves_get_colder_and_older_and_never_leave_a_class_early(
    policy: RetentionPolicy, chain: int, vendor: Vendor
) -> None:
    found = moves(SourcePolicy("main", policy, chain), ONLINE[vendor])
    for earlier, later in pairwise(found):
        assert ONLINE[vendor].index(earlier.to) < ONLINE[vendor].index(later.to)
        assert later.days - earlier.days >= earlier.to.least_days
    assert all(move.days >= move.to.earliest_days for move in found)


@given(policy=policies(), vendor=st.sampled_from(list(Vendor)), root=st.sampled_from(["", "a/", "a/b/"]))
def test_a_plan_survives_the_vendors_form_and_never_deletes(policy: RetentionPolicy, vendor: Vendor, root: str) -> None:
    made = planned(vendor, root, policy)
    assert all(rule.action is not Action.DELETE for rule in made.rules)
    back = parsed(vendor, document(vendor, made.rules))
    assert len(back) == len(made.rules)
    assert all(rule.same_as(other) for rule, other in zip(back, made.rules, strict=True))
    assert compare(made, back) == ()


@pytest.mark.parametrize("vendor", Vendor)
def test_only_backups_are_moved_and_not_what_must_be_quick_to_reach(vendor: Vendor) -> None:
    moving = [rule for rule in planned(vendor).rules if rule.action is Action.MOVE]
    assert {rule.prefix for rule in moving} == {"shop/sources/main/backups/"}
    if vendor is Vendor.GCS:
        quick = ("head.json", "objects.json", "manifest", "manifest.copy", "blocks")
        assert not any(name.endswith(suffix) for rule in moving for name in quick for suffix in rule.suffixes)
    if vendor is Vendor.S3:
        assert all(rule.larger_than >= 4 * 1024 * 1024 for rule in moving)


@pytest.mark.parametrize(
    "vendor, raw",
    [
        (Vendor.S3, {"Rules": [{"ID": "tidy", "Status": "Enabled", "Prefix": "", "Expiration": {"Days": 3650}}]}),
        (Vendor.S3, {"Rules": [{"ID": "t", "Status": "Enabled", "Filter": {"Prefix": "shop/sources/main/wal/"},
                                "Expiration": {"Date": "2030-01-01"}}]}),
        (Vendor.GCS, {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 400}}]}),
        (Vendor.AZURE, {"rules": [{"name": "tidy", "enabled": True, "type": "Lifecycle", "definition": {
            "filters": {"blobTypes": ["blockBlob"], "prefixMatch": ["shop"]},
            "actions": {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": 400}}}}}]}),
    ],
)  # fmt: skip
def test_a_rule_that_would_delete_backups_is_critical(vendor: Vendor, raw: dict[str, object]) -> None:
    worst = compare(planned(vendor), parsed(vendor, raw))[0]
    assert worst.severity == "critical"
    assert "deletes what the retention policy keeps" in worst.message


@pytest.mark.parametrize(
    "raw",
    [
        {"ID": "x", "Status": "Disabled", "Prefix": "", "Expiration": {"Days": 1}},
        {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}},
        {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": "shop/probes/"}, "Expiration": {"Days": 1}},
        {"ID": "x", "Status": "Enabled", "Filter": {"Tag": {"Key": "a", "Value": "b"}}, "Expiration": {"Days": 1}},
    ],
)
def test_rules_that_cannot_touch_backups_are_nobodys_business(raw: dict[str, object]) -> None:
    ours = document(Vendor.S3, planned().rules)
    assert compare(planned(), parsed(Vendor.S3, {"Rules": [raw, *ours["Rules"]]})) == ()


def test_moving_to_a_class_that_must_be_thawed_is_grave_and_a_missing_rule_is_not() -> None:
    thaw = Rule("cold", Action.MOVE, 30, "", "DEEP_ARCHIVE")
    found = compare(planned(), [thaw])
    assert (found[0].severity, found[0].rule) == ("high", "cold")
    assert {one.severity for one in found[1:]} == {"low"}
    hasty = Rule("hasty", Action.DELETE_NONCURRENT, 1, "shop/")
    assert compare(planned(), [hasty])[0].severity == "high"


@pytest.mark.parametrize("vendor", [Vendor.S3, Vendor.GCS])
def test_applying_keeps_the_rules_of_others_and_replaces_earlier_ones_of_its_own(vendor: Vendor) -> None:
    foreign = Rule("logs", Action.DELETE, 30, "logs/")
    earlier = planned(vendor, policy=replace(USUAL, weekly_months=24)).rules
    found = document(vendor, [foreign, *earlier])
    after = parsed(vendor, merged(planned(vendor), found))
    assert len(after) == 1 + len(planned(vendor).rules)
    assert after[0].same_as(foreign)
    assert compare(planned(vendor), after) == ()
    with pytest.raises(UsageError, match="credential for blobs"):
        merged(planned(Vendor.AZURE), {})


def test_classes_that_cannot_be_read_at_once_are_refused_and_unknown_services_get_none() -> None:
    with pytest.raises(SettingsError, match="thawed"):
        ladder(Vendor.S3, RepositorySettings(cold_classes=("DEEP_ARCHIVE",)))
    with pytest.raises(SettingsError, match="no colder class 'WARM'"):
        ladder(Vendor.GCS, RepositorySettings(cold_classes=("WARM",)))
    with pytest.raises(SettingsError, match="warmest first"):
        ladder(Vendor.GCS, RepositorySettings(cold_classes=("COLDLINE", "NEARLINE")))
    assert ladder(Vendor.S3, RepositorySettings(endpoint="https://minio.example.com")) == ()
    assert ladder(Vendor.AZURE, RepositorySettings(cold_classes=("none",))) == ()


def test_a_locations_plan_follows_its_own_retention_and_the_sources_that_use_it() -> None:
    settings_ = parse(
        {
            "repository": {"url": "/backups"},
            "locations": {"offsite": {"url": "azure://vault/site"}, "other": {"url": "s3://b/x"}},
            "sources": {
                "shop": {"mirrors": ["offsite"], "retention": {"locations": {"offsite": {"weekly_months": 24}}}},
                "till": {"mirrors": ["offsite"], "full_after_days": 0},
                "else": {},
            },
        }
    )
    assert plan_for(settings_, "primary") is None
    found = plan_for(settings_, "offsite")
    assert found is not None
    # An Azure prefix begins with the container. Twice the usual weeklies, so the second move is a year later.
    assert [(rule.prefix, rule.days, rule.storage_class) for rule in found.rules] == [
        ("vault/site/sources/shop/backups/", 41, "Cool"),
        ("vault/site/sources/shop/backups/", 752, "Cold"),
    ]
    assert any(note.startswith("till: nothing is moved") for note in found.notes)
    other = plan_for(settings_, "other")
    assert other is not None
    assert not any(rule.action is Action.MOVE for rule in other.rules)
