"""The budget of verification: the oldest proof first, everything in turn, nothing proved that was not read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import proofs
from seawall.errors import StorageUnreachable, UsageError
from seawall.events import Observer
from seawall.model import Head, Proof, SealingMode
from seawall.proofs import Budget, ProofReport, Provable
from seawall.repository import Repository
from seawall.repository.wal_lists import How
from seawall.storage.faulty import Fault, Faulty, Trouble

NOW = datetime(2026, 11, 23, 4, 30, tzinfo=UTC)
DAY = timedelta(days=1)
Known = dict[str, tuple[Proof | None, datetime]]


@pytest.fixture(params=[SealingMode.AES_256_GCM, SealingMode.NONE])
def taken(fresh_site: Callable[[], Any], request: pytest.FixtureRequest) -> tuple[Any, Head, Head]:
    site = fresh_site()
    site.mode = request.param
    site.wal(1, 3)
    first = site.backup(0, 1, 3.5)
    site.wal(4, 8)
    return site, first, site.backup(10, 5, 7.5)


def night(site: Any, known: Known, budget: Budget, now: datetime = NOW, **more: Any) -> ProofReport:
    """One night's run; what it proved and found is remembered."""
    plan = proofs.plan(list(proofs.objects_of(site.area, known)), budget, now)
    report = proofs.run(plan, site.area, site.ring, now=now, observe=Observer(), **more)
    known |= {name: (proof, now) for name, proof in report.proved.items()}
    known |= dict.fromkeys(report.wrong, (None, now))
    return report


# -- planning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50GB", Budget(stored_bytes=50 * 10**9)),
        ("1.5 GiB", Budget(stored_bytes=3 << 29)),
        ("30m", Budget(time=timedelta(minutes=30))),
        ("2h", Budget(time=timedelta(hours=2))),
    ],
)
def test_a_budget_is_an_amount_or_a_time(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "50", "GB", "-1GB", "5 apples", "1h30m"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Budget.parse(text)


provables = st.builds(
    Provable,
    st.sampled_from(["shop", "files"]),
    st.none(),
    st.text("abcdef", min_size=1, max_size=4),
    st.integers(0, 1000),
    st.none() | st.sampled_from(Proof),
    st.none() | st.timedeltas(-400 * DAY, 40 * DAY).map(lambda age: NOW + age),
)


@given(st.lists(provables, unique_by=lambda one: (one.source, one.name)), st.none() | st.integers(0, 3000))
def test_a_plan_takes_the_oldest_proofs_within_its_budget_and_says_what_waits(
    objects: list[Provable], limit: int | None
) -> None:
    plan = proofs.plan(objects, Budget(stored_bytes=limit), NOW)
    assert len(plan.chosen) + plan.left == len(objects)
    assert plan.stored_bytes + plan.left_bytes == sum(one.stored_bytes for one in objects)
    if limit is not None and len(plan.chosen) > 1:
        assert plan.stored_bytes <= limit
    assert bool(plan.chosen) is bool(objects)
    ages = [proofs._age_key(one, NOW) for one in plan.chosen]
    assert ages == sorted(ages)
    waiting = [proofs._age_key(one, NOW) for one in objects if one not in plan.chosen]
    assert not waiting or not ages or max(ages) <= min(waiting)


def test_what_was_proved_a_moment_ago_waits_for_another_night() -> None:
    young = Provable("shop", None, "a", 1, Proof.DECRYPTABLE, NOW - timedelta(hours=1))
    old = Provable("shop", None, "b", 1, Proof.DECRYPTABLE, NOW - 8 * DAY)
    assert proofs.plan([young, old], Budget(), NOW, fresh=DAY).chosen == (old,)


def test_a_proof_from_the_future_does_not_keep_an_object_from_being_read() -> None:
    future = Provable("shop", None, "a", 1, Proof.DECRYPTABLE, NOW + 900 * DAY)
    recent = Provable("shop", None, "b", 1, Proof.DECRYPTABLE, NOW - timedelta(minutes=1))
    assert proofs.plan([future, recent], Budget(), NOW).chosen == (recent, future)


# -- reading


def test_nights_with_a_small_budget_get_round_everything_and_begin_again_with_the_oldest(
    taken: tuple[Any, Head, Head],
) -> None:
    site, *_ = taken
    known: Known = {}
    everything = {one.name for one in proofs.objects_of(site.area, {})}
    # Two sets of a bundle and two manifests each, and eight segments.
    assert len(everything) == 14
    nights = 0
    while set(known) != everything:
        nights += 1
        report = night(site, known, Budget(stored_bytes=60_000), NOW + nights * DAY)
        assert report.good
        assert nights < 20
    assert nights >= 3
    oldest = min(at for _, at in known.values())
    report = night(site, known, Budget(stored_bytes=1), NOW + 30 * DAY)
    (name,) = report.proved
    assert oldest == NOW + DAY
    assert known[name][1] == NOW + 30 * DAY


def test_what_is_proved_is_what_was_read_and_how_far(taken: tuple[Any, Head, Head]) -> None:
    site, first, _ = taken
    report = night(site, {}, Budget())
    assert (report.good, report.skipped) == (True, 0)
    bundles = {name: proof for name, proof in report.proved.items() if "/bundles/" in name or "/wal/" in name}
    assert set(bundles.values()) == {Proof.DECRYPTABLE}
    assert report.proved[site.area.layout.manifest(first.label)] is Proof.HASH_GOOD
    assert report.stored_bytes == sum(one.stored_bytes for one in proofs.objects_of(site.area, {}))
    hashes = night(site, {}, Budget(), up_to=Proof.HASH_GOOD)
    assert set(hashes.proved.values()) == {Proof.HASH_GOOD}
    assert not [name for name in hashes.proved if "/wal/" in name]


def test_wal_that_was_opened_is_listed_and_then_proved_without_a_key(taken: tuple[Any, Head, Head]) -> None:
    site, *_ = taken
    report = night(site, {}, Budget())
    segments = {stat.name for stat in site.storage.list(site.area.layout.wal)}
    assert {one.name for one in report.unlisted} == segments
    site.area.wal.lists.write(report.unlisted, How.OPENED)
    assert night(site, {}, Budget()).unlisted == ()
    hashes = night(site, {}, Budget(), up_to=Proof.HASH_GOOD)
    assert {name for name in hashes.proved if "/wal/" in name} == segments
    name = min(segments)
    data = bytearray(site.read(name))
    data[-1] ^= 1
    site.overwrite(name, bytes(data))
    assert set(night(site, {}, Budget(), up_to=Proof.HASH_GOOD).wrong) == {name}


@pytest.mark.parametrize("which", ["/bundles/", "/manifest.copy", "0000000008"])
def test_damage_is_found_with_its_name_and_looked_at_again_first(taken: tuple[Any, Head, Head], which: str) -> None:
    site, *_ = taken
    known: Known = {}
    night(site, known, Budget())
    name = next(stat.name for stat in site.storage.list("sources/") if which in stat.name)
    data = bytearray(site.read(name))
    data[len(data) // 2] ^= 1
    site.overwrite(name, bytes(data))
    report = night(site, known, Budget(), NOW + DAY)
    assert (set(report.wrong), report.good) == ({name}, False)
    assert name not in report.proved
    again = proofs.plan(list(proofs.objects_of(site.area, known)), Budget(stored_bytes=1), NOW + 2 * DAY)
    assert [one.name for one in again.chosen] == [name]


def test_a_missing_object_is_wrong_and_an_outage_says_nothing(taken: tuple[Any, Head, Head]) -> None:
    site, *_ = taken
    name = next(stat.name for stat in site.storage.list("sources/") if "/bundles/" in stat.name)
    faulty = Faulty(site.storage, [Fault(Trouble.FAIL_BEFORE, "get", "*/bundles/*", times=0)])
    area = Repository.open(faulty).source("shop")
    plan = proofs.plan(list(proofs.objects_of(area, {})), Budget(), NOW)
    with pytest.raises(StorageUnreachable):
        proofs.run(plan, area, site.ring, now=NOW, observe=Observer())
    site.storage.delete(name)
    assert set(night(site, {}, Budget()).wrong) == {name}


def test_a_budget_of_time_that_is_spent_begins_no_further_object(taken: tuple[Any, Head, Head]) -> None:
    site, *_ = taken
    seconds = iter(range(1000))
    report = night(site, {}, Budget(), until=6.0, clock=lambda: float(next(seconds)), workers=1)
    assert 0 < len(report.proved) < 14
    assert report.skipped == 14 - len(report.proved)
    assert night(site, {}, Budget(), until=-1.0, clock=lambda: 0.0).proved == {}


def test_a_backup_is_proved_as_far_as_the_least_of_its_objects() -> None:
    known: Known = {"a": (Proof.DECRYPTABLE, NOW), "b": (Proof.HASH_GOOD, NOW - DAY), "c": (None, NOW)}
    assert proofs.state_of({"a", "b"}, known) == (Proof.HASH_GOOD, NOW - DAY)
    assert proofs.state_of({"a", "c"}, known) == (None, None)
    assert proofs.state_of({"a", "unknown"}, known) == (None, None)
    assert proofs.state_of(set(), known) == (None, None)


# -- where a restore test stops


def test_a_random_position_lies_inside_the_window_and_every_part_of_it_is_drawn(fresh_site: Callable[[], Any]) -> None:
    import random

    from seawall.model import TargetKind
    from seawall.restoretest import random_target
    from seawall.wal import Lsn

    site = fresh_site()
    site.wal(1, 12)
    # No segment 13: what comes after it is only reached from the third backup.
    site.wal(14, 18)
    site.backup(0, 1, 3.5)
    site.backup(10, 5, 7.5)
    site.backup(20, 14, 14.5)
    drawn = [random_target(site.repository, "shop", random.Random(seed)) for seed in range(200)]
    assert {target.kind for target in drawn} == {TargetKind.LSN}
    places = [Lsn.parse(target.value) for target in drawn]
    within = [(site.lsn(3.5), site.lsn(12)), (site.lsn(14.5), site.lsn(18))]
    assert all(any(begin <= place < end for begin, end in within) for place in places)
    for begin, end in ((3.5, 7.5), (7.5, 12), (14.5, 18)):
        assert [place for place in places if site.lsn(begin) <= place < site.lsn(end)]
    assert drawn == [random_target(site.repository, "shop", random.Random(seed)) for seed in range(200)]
