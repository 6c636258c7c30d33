"""Mirrors: a copy of a repository in another place, whole or not listed, and healed from the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import healing, mirror, verify
from seawall.audit import AuditLog
from seawall.capacity import room_in
from seawall.errors import (
    ClusterMismatch,
    Damaged,
    ObjectMissing,
    StorageDenied,
    StorageUnreachable,
)
from seawall.events import Event, Noticed, Observer
from seawall.keys import KeyRing
from seawall.mirror import MirrorPolicy, MirrorReport, SetAtOrigin
from seawall.model import Head, Proof, SealingMode
from seawall.nearest import Copy, Nearest
from seawall.repository import Repository, documents
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS
from seawall.storage.base import Storage
from seawall.storage.faulty import Fault, Faulty, Killed, KillPoint, Trouble
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper


class Locked(Wrapper):
    """A storage that lets nothing go."""

    def delete(self, name: str) -> None:
        raise StorageDenied(f"{name} is locked")


class LockedButRepairs(Locked):
    def delete(self, name: str) -> None:
        if not name.startswith(REPAIRS):
            super().delete(name)
        self.inner.delete(name)


class Gone(Wrapper):
    """A storage that does not answer while `down`."""

    down = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("get", "put", "stat", "list", "children", "delete", "now") and object.__getattribute__(
            self, "down"
        ):
            raise StorageUnreachable("no route to host")
        return object.__getattribute__(self, name)


def mirrored(site: Any, there: Storage, *, ring: bool = True, origin: Storage | None = None) -> MirrorReport:
    origin = origin or site.storage
    repository = Repository.open(origin)
    evidence = Evidence([origin], site.ring if ring else None)
    mirror.begin(repository, there)
    plan = mirror.survey(repository, "shop", there, evidence)
    return mirror.run(plan, origin, there, evidence, observe=Observer(), workers=2)


def proved(site: Any, storage: Storage, head: Head) -> bool:
    area = Repository.open(storage).source("shop")
    return verify.check(area, head.label, site.ring, now=site.at(60), observe=Observer()).good


def content(storage: Storage) -> dict[str, bytes]:
    return {stat.name: b"".join(storage.get(stat.name)) for stat in storage.list()}


def damage(storage: Storage, name: str, *, at: float = 0.5) -> None:
    data = bytearray(b"".join(storage.get(name)))
    data[int((len(data) - 1) * at)] ^= 1
    storage.delete(name)
    storage.put(name, [bytes(data)])


def healed(site: Any, at: str, places: dict[str, Storage], names: list[str] | None = None) -> healing.HealReport:
    copies = [Copy(name, storage) for name, storage in places.items()]
    (place,) = [copy for copy in copies if copy.name == at]
    evidence = Evidence([copy.storage for copy in copies], site.ring)
    wanted = names or sorted({stat.name for copy in copies for stat in copy.storage.list("sources/")})
    return healing.heal(
        place, copies, wanted, evidence, AuditLog(site.storage), actor="test", now=site.at(90), observe=Observer()
    )


# Every object of mode openpgp takes a process of gpg: seconds for each of these tests.
@pytest.fixture(params=[pytest.param(m, marks=[pytest.mark.slow] * (m is SealingMode.OPENPGP)) for m in SealingMode])
def taken(fresh_site: Callable[[], Any], request: pytest.FixtureRequest) -> Iterator[tuple[Any, Head, Head]]:
    """A site with two backups and WAL, in every sealing mode."""
    site = fresh_site()
    site.mode = request.param
    site.wal(1, 3)
    first = site.backup(0, 1, 3.5)
    site.wal(4, 8)
    second = site.backup(10, 5, 7.5)
    yield site, first, second


@pytest.fixture
def small(fresh_site: Callable[[], Any]) -> tuple[Any, Head, Head]:
    site = fresh_site()
    site.wal(1, 3)
    first = site.backup(0, 1, 3.5)
    site.wal(4, 8)
    return site, first, site.backup(10, 5, 7.5)


# -- copying


def test_a_mirror_is_a_whole_repository_with_the_same_bytes_but_leases(taken: tuple[Any, Head, Head]) -> None:
    site, first, second = taken
    there = MemoryStorage("there")
    report = mirrored(site, there)
    assert report.left == {}
    assert set(report.committed) == {str(first.label), str(second.label)}
    expected = {name: data for name, data in content(site.storage).items() if not name.startswith("leases/")}
    assert content(there) == expected
    assert proved(site, there, first)
    assert proved(site, there, second)


def test_a_second_run_copies_only_what_came_since(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    mirrored(site, there)
    assert mirrored(site, there).objects == 0
    site.wal(9, 9)
    third = site.backup(20, 9, 9.5)
    report = mirrored(site, there)
    assert report.committed == (str(third.label),)
    # The segment, its set's bundle, list, head, manifest and the manifest's copy.
    assert report.objects == 6


def test_wherever_a_run_is_killed_what_is_listed_there_is_whole_and_the_next_run_finishes(
    small: tuple[Any, Head, Head],
) -> None:
    site, *_ = small
    counting = KillPoint(1 << 30)
    mirrored(site, Faulty(MemoryStorage(), at=counting))
    boundaries = len(counting.passed)
    assert boundaries > 60
    for number in range(1, boundaries + 1, 5):
        inner = MemoryStorage()
        with pytest.raises(Killed):
            mirrored(site, Faulty(inner, at=KillPoint(number)))
        if "seawall.json" in content(inner):
            area = Repository.open(inner).source("shop")
            for label in area.labels():
                assert proved(site, inner, area.head(label)), number
        assert mirrored(site, inner).left == {}
        assert len(Repository.open(inner).source("shop").labels()) == 2


def test_damage_at_the_origin_is_not_copied_and_keeps_its_set_from_being_listed(
    taken: tuple[Any, Head, Head],
) -> None:
    site, first, second = taken
    bundle = next(name for name in content(site.storage) if str(first.label) in name and "/bundles/" in name)
    damage(site.storage, bundle)
    there = MemoryStorage()
    report = mirrored(site, there)
    assert list(report.left) == [bundle]
    assert bundle not in content(there)
    assert Repository.open(there).source("shop").labels() == (second.label,)
    assert proved(site, there, second)


@pytest.mark.parametrize("which", ["head.json", "manifest", "manifest.copy", "objects.json"])
def test_a_damaged_document_of_a_set_keeps_that_set_from_being_listed_and_no_other(
    small: tuple[Any, Head, Head], which: str
) -> None:
    site, first, second = small
    damage(site.storage, f"sources/shop/backups/{first.label}/{which}")
    there = MemoryStorage()
    mirrored(site, there)
    assert Repository.open(there).source("shop").labels() == (second.label,)


def test_damaged_wal_is_not_copied_where_a_key_can_tell(taken: tuple[Any, Head, Head]) -> None:
    site, _, second = taken
    segment = next(name for name in content(site.storage) if name.endswith("000000010000000000000002"))
    damage(site.storage, segment)
    there = MemoryStorage()
    report = mirrored(site, there)
    assert list(report.left) == [segment]
    # The first backup needs that segment to be consistent.
    assert Repository.open(there).source("shop").labels() == (second.label,)
    assert proved(site, there, second)


def test_a_tail_that_is_superseded_goes_there_too(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    site.tail(9.25)
    mirrored(site, there)
    assert [name for name in content(there) if ".tail-" in name]
    site.tail(9.75)
    mirrored(site, there)
    assert [name for name in content(there) if ".tail-" in name] == [
        name for name in content(site.storage) if ".tail-" in name
    ]


class Superseding(Wrapper):
    """A storage in which a receiver replaces a tail at the moment at which somebody wants to read it."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if ".tail-" in name:
            self.inner.delete(name)
        return super().get(name, offset, length)


def test_a_tail_that_is_superseded_while_a_mirror_runs_is_nothing_that_is_left(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    site.tail(9.25)
    report = mirrored(site, MemoryStorage(), origin=Superseding(site.storage))
    assert (dict(report.left), report.objects > 0) == ({}, True)


def test_a_location_that_holds_something_else_is_refused(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    other = MemoryStorage()
    Repository.create(other, now=site.now)
    strange = MemoryStorage()
    strange.put("photos/one.jpeg", [b"1"])
    for storage in (other, strange):
        before = content(storage)
        with pytest.raises(ClusterMismatch):
            mirrored(site, storage)
        assert content(storage) == before


def test_marks_of_expiry_are_each_locations_own(small: tuple[Any, Head, Head]) -> None:
    site, first, second = small
    there = MemoryStorage()
    mirrored(site, there)
    documents.put(site.storage, site.area.layout.expiry(first.label), {"label": str(first.label), "actor": "a"})
    mirrored(site, there)
    assert site.area.labels() == (second.label,)
    assert Repository.open(there).source("shop").labels() == (first.label, second.label)


def test_a_set_of_which_something_is_lost_here_is_not_listed_there(small: tuple[Any, Head, Head]) -> None:
    site, first, second = small
    bundle = next(name for name in content(site.storage) if "/bundles/" in name and str(first.label) in name)
    site.storage.delete(bundle)
    there = MemoryStorage()
    report = mirrored(site, there)
    assert list(report.left) == [bundle]
    assert Repository.open(there).source("shop").labels() == (second.label,)


def test_an_outage_in_the_middle_leaves_what_was_copied_and_the_next_run_goes_on(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    inner = MemoryStorage()
    with pytest.raises(StorageUnreachable):
        mirrored(site, Faulty(inner, [Fault(Trouble.FAIL_BEFORE, "put", skip=12, times=0)]))
    begun = len(content(inner))
    assert begun == 12
    assert mirrored(site, inner).left == {}


def test_an_object_of_another_size_there_is_reported_and_its_set_not_listed(small: tuple[Any, Head, Head]) -> None:
    site, first, second = small
    there = MemoryStorage()
    bundle = next(name for name in content(site.storage) if str(first.label) in name and "/bundles/" in name)
    documents.put(there, "seawall.json", documents.get(site.storage, "seawall.json"))
    there.put(bundle, [b"half"])
    report = mirrored(site, there)
    assert list(report.left) == [bundle]
    assert Repository.open(there).source("shop").labels() == (second.label,)
    assert healed(site, "there", {"primary": site.storage, "there": there}, [bundle]).left == {}
    assert mirrored(site, there).committed == (str(first.label),)
    assert proved(site, there, first)


@given(
    there=st.sets(st.integers(0, 40)),
    odd=st.sets(st.integers(0, 40)),
    lost=st.sets(st.integers(0, 40), max_size=3),
    shared=st.lists(st.sampled_from(["seawall.json", "audit/1", "recover-1"]), unique=True),
)
def test_a_plan_names_each_missing_object_and_every_manifest_after_all_that_its_set_needs(
    there: set[int], odd: set[int], lost: set[int], shared: list[str]
) -> None:
    heads = [PLAN_HEAD, replace(PLAN_HEAD, label=mirror.BackupLabel.parse("20261123T130000Z-full"))]
    layout = mirror.SourceLayout("shop")
    names = sorted({*PLAN_NAMES, *(layout.segment(name) for name in mirror.own_wal(PLAN_HEAD))})
    here = dict.fromkeys((name for n, name in enumerate(names) if n not in lost), 10)
    present = {name: (11 if n in odd else 10) for n, name in enumerate(names) if n in there}
    needs = [frozenset(n for n in names if "/bundles/" in n and str(head.label) in n) for head in heads]
    needs[1] |= needs[0]
    sets = [SetAtOrigin(head, need) for head, need in zip(heads, needs, strict=True)]
    plan = mirror.plan("shop", sets, here, present, shared)
    order = [name for group in plan.groups for wave in group.waves for name in sorted(wave)]
    nowhere = {name for one in sets for name in needed(layout, one)} - set(here) - set(present)
    assert set(plan.absent) == nowhere
    unfit = nowhere | set(plan.other_size)
    held_back = {layout.manifest(one.label) for one in sets if needed(layout, one) & unfit}
    assert set(order) == (set(here) - set(present) - held_back) | set(shared)
    for one in sets:
        for group in plan.groups:
            if layout.manifest(one.label) in group.names:
                # Within the very group, so that a failure of any of them keeps the manifest away.
                assert group.names[-1] == layout.manifest(one.label)
                assert needed(layout, one) - set(present) <= set(group.names[:-1])


def needed(layout: mirror.SourceLayout, one: SetAtOrigin) -> set[str]:
    documents = (layout.objects(one.label), layout.head(one.label))
    return {*one.needs, *documents, *(layout.segment(name) for name in mirror.own_wal(one.head))}


# -- policy


def test_a_backup_is_protected_with_enough_copies_and_a_location_late_after_its_time(
    small: tuple[Any, Head, Head],
) -> None:
    site, first, second = small
    policy = MirrorPolicy(("offsite", "vault"), copies=2, within=timedelta(minutes=30))
    held = {"primary": frozenset({first.label, second.label}), "offsite": frozenset({first.label})}
    one, two = mirror.protection(policy, (first, second), held, now=site.at(35))
    assert (one.locations, one.protected, one.late) == (("offsite", "primary"), True, ("vault",))
    assert (two.locations, two.protected, two.late) == (("primary",), False, ())


# -- reading from the nearest sound copy


def nearest(site: Any, *places: Storage, hear: Callable[[Event], None] = lambda _event: None) -> Nearest:
    copies = [Copy(f"place{number}", storage) for number, storage in enumerate(places)]
    return Nearest(copies, Evidence(places, site.ring), Observer(hear=hear))


def test_damage_spread_over_both_copies_is_never_read_as_long_as_each_object_is_sound_somewhere(
    taken: tuple[Any, Head, Head],
) -> None:
    site, first, _ = taken
    there = MemoryStorage()
    mirrored(site, there)
    names = sorted(name for name in content(there) if name.startswith("sources/"))
    for number, name in enumerate(names):
        damage((site.storage, there)[number % 2], name, at=number % 7 / 7)
    heard: list[Event] = []
    both = nearest(site, site.storage, there, hear=heard.append)
    assert proved(site, both, first)
    assert {event.code for event in heard if isinstance(event, Noticed)} == {"copy-damaged"}


def test_what_is_damaged_everywhere_is_damage_and_not_absence(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    mirrored(site, there)
    bundle = next(name for name in content(there) if "/bundles/" in name)
    damage(site.storage, bundle)
    there.delete(bundle)
    with pytest.raises(Damaged, match="place0"):
        b"".join(nearest(site, site.storage, there).get(bundle))


def test_a_location_that_never_answered_is_left_out_with_a_notice(small: tuple[Any, Head, Head]) -> None:
    site, first, _ = small
    there, dead = MemoryStorage(), Gone(MemoryStorage())
    mirrored(site, there)
    dead.down = True
    heard: list[Event] = []
    both = nearest(site, dead, there, hear=heard.append)
    assert proved(site, both, first)
    with pytest.raises(ObjectMissing):
        both.stat("sources/shop/wal/00000001/0000000100000000/0000000100000000000000FF")
    assert [event.code for event in heard if isinstance(event, Noticed)] == ["location-silent"]


def test_what_only_a_location_that_went_away_could_hold_is_not_called_absent(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there, dying = MemoryStorage(), Gone(site.storage)
    mirrored(site, there)
    site.wal(9, 9)
    segment = next(name for name in content(site.storage) if name.endswith("000000010000000000000009"))
    both = nearest(site, dying, there)
    assert both.stat(segment).size_bytes > 0
    dying.down = True
    with pytest.raises(StorageUnreachable):
        both.stat(segment)


def test_a_set_marked_in_one_location_is_offered_as_long_as_another_keeps_it(small: tuple[Any, Head, Head]) -> None:
    site, first, second = small
    there = MemoryStorage()
    mirrored(site, there)
    mark = site.area.layout.expiry(first.label)
    documents.put(site.storage, mark, {"label": str(first.label), "actor": "a"})
    both = Repository.open(nearest(site, site.storage, there)).source("shop")
    assert both.labels() == (first.label, second.label)
    documents.put(there, mark, {"label": str(first.label), "actor": "a"})
    assert both.labels() == (second.label,)


def test_ranges_come_from_a_copy_that_was_proved_as_a_whole(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    mirrored(site, there)
    bundle = next(name for name in content(there) if "/bundles/" in name)
    sound = content(there)[bundle]
    damage(site.storage, bundle, at=1.0)
    both = nearest(site, site.storage, there)
    assert b"".join(both.get(bundle, 10, 50)) == sound[10:60]
    assert b"".join(both.get(bundle, len(sound) - 5)) == sound[-5:]


# -- healing


def test_one_flip_in_each_location_at_different_objects_is_healed_everywhere(taken: tuple[Any, Head, Head]) -> None:
    site, first, second = taken
    places = {"primary": site.storage, "offsite": MemoryStorage("offsite"), "vault": MemoryStorage("vault")}
    if site.mode is SealingMode.OPENPGP:
        # Opening WAL takes a process of gpg for each object and copy; with its list the same is told by hashes.
        site.area.wal.write_list()
    for name in ("offsite", "vault"):
        mirrored(site, places[name])
    sound = content(places["vault"])
    names = [name for name in sound if name.startswith("sources/")]
    for number, name in enumerate(names):
        damage(places[list(places)[number % 3]], name, at=number % 7 / 6)
    for at in places:
        report = healed(site, at, places)
        assert report.left == {}
        assert len(report.healed) == len(names[list(places).index(at) :: 3])
    for storage in places.values():
        assert {name: data for name, data in content(storage).items() if name in names} == {n: sound[n] for n in names}
        assert proved(site, storage, first)
        assert proved(site, storage, second)
    records = [record for record in AuditLog(site.storage).records() if record.action == "heal"]
    assert sorted(one.subject for one in records if one.details["location"] == "offsite") == sorted(names[1::3])


def test_a_missing_object_is_healed_and_a_sound_one_left_alone(small: tuple[Any, Head, Head]) -> None:
    site, first, _ = small
    there = MemoryStorage()
    mirrored(site, there)
    manifest = site.area.layout.manifest(first.label)
    site.storage.delete(manifest)
    report = healed(site, "primary", {"primary": site.storage, "there": there})
    assert [(one.name, one.donor) for one in report.healed] == [(manifest, "there")]
    assert proved(site, site.storage, first)


def test_a_locked_object_gets_a_sound_copy_beside_it_that_readers_find(small: tuple[Any, Head, Head]) -> None:
    site, first, _ = small
    inner = MemoryStorage()
    mirrored(site, inner)
    bundle = next(name for name in content(inner) if "/bundles/" in name and str(first.label) in name)
    sound = content(inner)[bundle]
    damage(inner, bundle)
    places = {"primary": site.storage, "vault": Locked(inner)}
    report = healed(site, "vault", places)
    assert [(one.name, one.beside) for one in report.healed] == [(bundle, True)]
    assert content(inner)[f"{REPAIRS}{bundle}"] == sound
    assert proved(site, nearest(site, Locked(inner)), first)
    # The second look finds it repaired.
    assert healed(site, "vault", places) == healing.HealReport()
    # A repair that is damaged and locked as well is told, and keeps nothing else from being healed.
    damage(inner, f"{REPAIRS}{bundle}")
    manifest = site.area.layout.manifest(first.label)
    inner.delete(manifest)
    report = healed(site, "vault", places)
    assert ([one.name for one in report.healed], list(report.left)) == ([manifest], [bundle])
    # Where only the object itself is locked, the repair is made again.
    report = healed(site, "vault", {**places, "vault": LockedButRepairs(inner)})
    assert [(one.name, one.beside) for one in report.healed] == [(bundle, True)]
    assert content(inner)[f"{REPAIRS}{bundle}"] == sound


def test_a_manifest_is_not_put_back_where_an_object_of_its_set_could_not_be(small: tuple[Any, Head, Head]) -> None:
    site, first, second = small
    there = MemoryStorage()
    mirrored(site, there)
    bundle = next(name for name in content(there) if "/bundles/" in name and str(first.label) in name)
    for name in [name for name in content(there) if str(first.label) in name]:
        there.delete(name)
    site.storage.delete(bundle)
    report = healed(site, "there", {"primary": site.storage, "there": there})
    assert set(report.left) == {site.area.layout.manifest(first.label)}
    assert Repository.open(there).source("shop").labels() == (second.label,)


def test_what_no_location_has_sound_stays_as_it_is(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    mirrored(site, there)
    bundle = next(name for name in content(there) if "/bundles/" in name)
    for storage in (site.storage, there):
        damage(storage, bundle)
    before = content(there)
    report = healed(site, "there", {"primary": site.storage, "there": there}, [bundle])
    assert (list(report.left), report.healed) == ([bundle], ())
    assert content(there) == before


def test_wal_is_left_alone_where_no_key_can_tell_which_copy_is_sound(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    there = MemoryStorage()
    mirrored(site, there)
    segment = next(name for name in content(there) if name.endswith("000000010000000000000002"))
    there.delete(segment)
    copies = [Copy("primary", site.storage), Copy("there", there)]
    report = healing.heal(
        copies[1], copies, [segment], Evidence([site.storage, there]), AuditLog(site.storage),
        actor="test", now=site.at(90), observe=Observer(),
    )  # fmt: skip
    assert list(report.left) == [segment]


def test_listed_wal_is_proved_and_healed_without_any_key_in_every_mode(taken: tuple[Any, Head, Head]) -> None:
    site, first, _ = taken
    site.area.wal.write_list()
    there = MemoryStorage("there")
    segment = site.area.layout.segment("000000010000000000000002")
    sound = content(site.storage)[segment]
    # In an OpenPGP message this byte belongs to one recipient's packet: another one's key would open it all the same.
    damage(site.storage, segment, at=60 / len(sound))
    report = mirrored(site, there, ring=False)
    assert segment in report.left
    assert str(first.label) not in report.committed
    site.overwrite(segment, sound)
    assert mirrored(site, there, ring=False).left == {}
    damage(there, segment, at=60 / len(sound))
    elsewhere = Repository.open(there).source("shop")
    verdict = verify.check(
        elsewhere, first.label, site.ring, up_to=Proof.HASH_GOOD, now=site.at(60), observe=Observer()
    )
    assert [(finding.code, finding.subject) for finding in verdict.findings] == [
        ("wal-damaged", "000000010000000000000002")
    ]
    copies = [Copy("primary", site.storage), Copy("there", there)]
    done = healing.heal(
        copies[1], copies, healing.suspects(elsewhere, verdict), Evidence([there, site.storage]),
        AuditLog(site.storage), actor="test", now=site.at(90), observe=Observer(),
    )  # fmt: skip
    assert [(one.name, one.donor) for one in done.healed] == [(segment, "primary")]
    assert content(there)[segment] == sound


def test_wal_that_was_only_read_back_is_still_opened_where_a_key_is_at_hand(small: tuple[Any, Head, Head]) -> None:
    site, *_ = small
    segment = site.area.layout.segment("000000010000000000000002")
    damage(site.storage, segment)
    # Whoever lists what lies there cannot know that it was damaged before.
    site.area.wal.list_unlisted(["000000010000000000000002"])
    assert segment in mirrored(site, MemoryStorage()).left
    assert segment not in mirrored(site, MemoryStorage(), ring=False).left


def test_a_ring_without_a_private_key_copies_what_no_list_names_as_it_is(
    sealed_site: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = sealed_site
    site.wal(1, 3)
    first = site.backup(0, 1, 3.5)
    there = MemoryStorage()
    with KeyRing(tmp_path_factory.mktemp("public")) as public:
        public.import_keys(site.ring.export_public(site.ring.list()[0].fingerprint))
        evidence = Evidence([site.storage], public)
        mirror.begin(site.repository, there)
        plan = mirror.survey(site.repository, "shop", there, evidence)
        report = mirror.run(plan, site.storage, there, evidence, observe=Observer())
    assert (report.left, report.committed) == ({}, (str(first.label),))


def test_a_kill_at_any_moment_of_a_repair_loses_nothing_and_the_next_run_finishes_it(
    small: tuple[Any, Head, Head],
) -> None:
    site, first, _ = small
    for number in range(1, 30):
        inner = MemoryStorage()
        mirrored(site, inner)
        sound = content(inner)
        bundle = next(name for name in sound if "/bundles/" in name and str(first.label) in name)
        damage(inner, bundle)
        places = {"primary": site.storage, "there": Faulty(inner, at=KillPoint(number))}
        try:
            healed(site, "there", places, [bundle])
        except Killed:
            assert proved(site, nearest(site, inner, site.storage), first)
            healed(site, "there", {"primary": site.storage, "there": inner}, [bundle])
        else:
            assert number > 5
            break
        assert content(inner) == sound


def test_verification_names_what_healing_looks_at(taken: tuple[Any, Head, Head]) -> None:
    site, first, _ = taken
    there = MemoryStorage()
    mirrored(site, there)
    bundle = next(name for name in content(there) if "/bundles/" in name and str(first.label) in name)
    segment = next(name for name in content(there) if name.endswith("000000010000000000000002"))
    head = site.area.layout.head(first.label)
    for name in (bundle, segment, head):
        damage(there, name)
    area = Repository.open(there).source("shop")
    for _ in range(3):
        verdict = verify.check(
            area, first.label, site.ring, up_to=Proof.WAL_CONTINUOUS, now=site.at(60), observe=Observer()
        )
        if verdict.good:
            break
        names = list(healing.suspects(area, verdict))
        assert healed(site, "there", {"primary": site.storage, "there": there}, names).left == {}
        area = Repository.open(there).source("shop")
    assert verdict.good


def _plan_head() -> Head:
    from datetime import UTC, datetime

    from seawall.model import BackupKind, BackupLabel, ClusterIdentity, Compression, CopyMode
    from seawall.wal import Lsn

    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    return Head(
        label=BackupLabel(noon), source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(1, 18, (1,)), server_version=180006, timeline=1, start_lsn=Lsn(1 << 20),
        stop_lsn=Lsn(3 << 20), segment_bytes=1 << 20, began_at=noon, ended_at=noon, stopped_at=noon, plain_bytes=0,
        stored_bytes=0, file_count=0, object_count=0, compression=Compression.NONE, sealing=SealingMode.NONE,
        key_id="", manifest_sha256="", manifest_bytes=0,
    )  # fmt: skip


PLAN_HEAD = _plan_head()
PLAN_NAMES = [
    *(
        f"sources/shop/backups/2026112{day}T{hour}0000Z-full/{leaf}"
        for day, hour in ((3, 12), (3, 13))
        for leaf in ("bundles/00000001-00000000", "bundles/00000002-00000000", "objects.json", "head.json", "manifest")
    ),
    *(f"sources/shop/backups/20261123T{hour}0000Z-full/manifest.copy" for hour in (12, 13)),
    "sources/shop/identity/0001.json",
    "sources/shop/keys/20261123T120000Z-full/0001.json",
    "sources/shop/keys/wal-1/0001.json",
    "sources/shop/holds/1.json",
    "sources/shop/wal/00000001/0000000100000000/000000010000000000000009",
]


# -- what is unusual


def test_a_backup_that_shrank_beside_those_before_it_is_suspect(small: tuple[Any, Head, Head]) -> None:
    from seawall.anomaly import Measure, judged, suspicions

    site, *_ = small
    large = {"base/1/1259": bytes(80 << 20)}
    for number in range(5):
        site.backup(20 + number, 9, 9.5, content=large)
    shrunk = site.backup(30, 9, 9.5)
    (mark,) = [one for one in judged(site.area, shrunk.label) if one.measure is Measure.SIZE]
    assert mark.usual > mark.value * 100
    found = suspicions(site.area.heads())
    assert [label for label, marks in found.items() if marks] == [str(shrunk.label)]


# -- room


def test_a_set_that_a_quota_has_no_room_for_is_not_begun_and_a_smaller_one_and_wal_come_all_the_same(site: Any) -> None:
    site.wal(1, 9)
    small = site.backup(1, 1, 3.5)
    large = site.backup(20, 4, 6.5, content={"base/1/1259": random.Random(1).randbytes(1 << 20)})
    there = MemoryStorage()
    mirror.begin(site.repository, there)
    evidence = Evidence([site.storage], site.ring)
    plan = mirror.survey(site.repository, "shop", there, evidence)

    def run(quota: int) -> MirrorReport:
        room = room_in(there, quota)
        return mirror.run(plan, site.storage, there, evidence, observe=Observer(), workers=2, room=room)

    report = run(1 << 20)
    assert report.committed == (str(small.label),)
    assert set(report.left) == {str(large.label)}
    assert "bytes are missing of it" in report.left[str(large.label)]
    assert "left of a quota of 1,048,576" in report.left[str(large.label)]
    assert Repository.open(there).source("shop").labels() == (small.label,)
    assert not list(there.list(site.area.layout.backup(large.label))), "nothing of it was begun"
    assert len(Repository.open(there).source("shop").wal.segments()) == 9
    plan = mirror.survey(site.repository, "shop", there, evidence)
    assert run(1 << 22).committed == (str(large.label),)


# -- real services


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["s3", "sftp", "azure", "gs"])
def test_a_mirror_on_a_real_service_is_whole_found_damaged_and_healed(
    sealed_site: Any, request: pytest.FixtureRequest, kind: str
) -> None:
    site = sealed_site
    site.wal(1, 4)
    head = site.backup(0, 1, 3.5)
    there = request.getfixturevalue("servers")[kind].storage()
    try:
        assert mirrored(site, there).left == {}
        assert mirrored(site, there).objects == 0
        assert proved(site, there, head)
        names = [stat.name for stat in there.list("sources/") if "/bundles/" in stat.name or "/wal/" in stat.name]
        damage(there, names[0])
        there.delete(names[-1])
        assert not proved(site, there, head)
        assert proved(site, nearest(site, there, site.storage), head)
        report = healed(site, "cloud", {"cloud": there, "primary": site.storage}, names)
        assert [one.name for one in report.healed] == [names[0], names[-1]]
        assert proved(site, there, head)
    finally:
        there.close()
