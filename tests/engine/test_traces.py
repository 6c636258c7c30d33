"""What is gone is told by others: the audit tells of holds and marks, backups and WAL of identities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from seawall import retention, traces
from seawall.audit import AuditLog
from seawall.errors import LeaseLost, ObjectMissing
from seawall.events import Observer
from seawall.model import BackupLabel, ClusterIdentity, Compression, SealingMode
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.repository.area import new_hold_id
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LABEL = BackupLabel.after(None, NOW)
PLAIN = Sealing(SealingMode.NONE, Compression.LZ4, 1, (), None)  # type: ignore[arg-type] # nothing is sealed
FIRST, LAST = Segment(1, 1).name, Segment(1, 3).name


class Kept:
    """A repository with a committed set in name, and what administrators did, each in the audit before."""

    def __init__(self) -> None:
        self.storage = MemoryStorage("here", clock=lambda: NOW)
        self.repository = Repository.create(self.storage, now=NOW)
        self.area = self.repository.source("shop")
        self.audit = AuditLog(self.storage)
        self.storage.put(self.area.layout.manifest(LABEL), [b"a manifest"])

    def told(self, action: str, subject: str, **details: str) -> None:
        self.audit.append("ada", action, f"shop {subject}", details, now=NOW)

    def hold(self, **details: str) -> str:
        hold_id = new_hold_id(NOW)
        self.told("hold", str(LABEL), **({"id": hold_id, "reason": "lawsuit"} | details))
        return self.area.place_hold(LABEL, reason="lawsuit", owner="ada", now=NOW, hold_id=hold_id).id

    def release(self, hold_id: str) -> None:
        self.told("release-hold", hold_id)
        self.area.release_hold(hold_id, owner="ada", now=NOW)

    def mark(self, **details: str) -> str:
        self.told("expire", str(LABEL), **details)
        name = self.area.layout.expiry(LABEL)
        documents.put(self.storage, name, {"label": str(LABEL)})
        return name

    def mark_wal(self) -> str:
        for number in range(1, 4):
            self.area.wal.put_segment(Segment(1, number).name, b"w", PLAIN)
        self.told("expire-wal", f"{FIRST}..{LAST}", location=self.storage.url)
        name = f"{self.area.layout.expired}wal-{FIRST}-{LAST}.json"
        documents.put(self.storage, name, {"first": FIRST, "last": LAST})
        return name

    def found(self, now: datetime = NOW) -> list[tuple[str, str]]:
        found = traces.examine(self.repository, "shop", now=now, observe=Observer())
        return [(finding.code, finding.subject) for finding in found if finding.code != "identity-lost"]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_hold_that_is_gone_is_missed_until_it_is_over_or_ended(kept: Kept) -> None:
    until = (NOW + timedelta(days=9)).isoformat()
    lost, other = kept.hold(until=until), kept.hold()
    assert kept.found() == []
    name = kept.area.layout.hold(lost)
    kept.storage.delete(name)
    assert kept.found() == [("hold-lost", name)]
    assert traces.forgotten_hold(kept.repository, "shop", lost, NOW)
    assert not traces.forgotten_hold(kept.repository, "shop", other, NOW)
    assert kept.found(NOW + timedelta(days=10)) == []
    kept.told("release-hold", lost)
    assert kept.found() == []


def test_a_hold_whose_end_is_gone_is_in_force_again_and_that_is_said(kept: Kept) -> None:
    hold_id = kept.hold()
    kept.release(hold_id)
    assert kept.found() == []
    kept.storage.delete(kept.area.layout.hold_release(hold_id))
    assert kept.found() == [("release-lost", kept.area.layout.hold_release(hold_id))]


def test_a_hold_of_an_older_version_is_missed_by_how_many_there_were(kept: Kept) -> None:
    for _ in range(2):
        kept.told("hold", str(LABEL), reason="lawsuit")
    placed = [kept.area.place_hold(LABEL, reason="lawsuit", owner="ada", now=NOW).id for _ in range(2)]
    kept.hold()
    assert kept.found() == []
    kept.storage.delete(kept.area.layout.hold(placed[0]))
    assert kept.found() == [("hold-lost", kept.area.layout.holds)]


def test_a_mark_that_is_gone_is_missed_where_it_lay_and_as_long_as_its_backup_is_there(kept: Kept) -> None:
    kept.told("expire", str(LABEL), location="elsewhere")
    assert kept.found() == []
    name = kept.mark(location=kept.storage.url)
    assert kept.found() == []
    kept.storage.delete(name)
    assert kept.found() == [("mark-lost", name)]
    kept.storage.delete(kept.area.layout.manifest(LABEL))
    assert kept.found() == []


def test_a_mark_that_is_gone_can_be_taken_back_in_the_audit_and_no_other(kept: Kept) -> None:
    with pytest.raises(ObjectMissing):
        retention.unexpire(kept.repository, "shop", LABEL, actor="ada", now=NOW)
    kept.storage.delete(kept.mark())
    assert kept.found()
    retention.unexpire(kept.repository, "shop", LABEL, actor="ada", now=NOW)
    assert kept.found() == []


def test_a_mark_that_was_taken_back_is_not_missed(kept: Kept) -> None:
    for name in (kept.mark(), kept.mark_wal()):
        kept.storage.delete(name)
    assert len(kept.found()) == 2
    kept.told("unexpire", str(LABEL))
    assert kept.found() == []


def test_a_mark_of_wal_is_missed_unless_a_larger_one_covers_it_or_its_wal_is_gone(kept: Kept) -> None:
    name = kept.mark_wal()
    assert kept.found() == []
    kept.storage.delete(name)
    assert kept.found() == [("mark-lost", name)]
    larger = f"{kept.area.layout.expired}wal-{FIRST}-{Segment(1, 9).name}.json"
    documents.put(kept.storage, larger, {})
    assert kept.found() == []
    kept.storage.delete(larger)
    for stat in list(kept.storage.list(kept.area.layout.wal)):
        kept.storage.delete(stat.name)
    assert kept.found() == []


def test_in_another_location_the_audit_of_the_primary_tells_what_should_be_there_by_now(kept: Kept) -> None:
    there = MemoryStorage("there", clock=lambda: NOW)
    copy = SourceArea(there, "shop")
    there.put(copy.layout.manifest(LABEL), [b"a manifest"])
    hold, hour = kept.hold(), timedelta(hours=1)

    def missed(until: datetime = NOW) -> list[tuple[str, str]]:
        found = traces.missed(copy, audit=kept.audit, until=until, now=NOW)
        return [(finding.code, finding.subject) for finding in found]

    # It may be on its way.
    assert missed(NOW - hour) == []
    assert missed() == [("hold-lost", copy.layout.hold(hold))]
    there.put(copy.layout.hold(hold), [b"".join(kept.storage.get(kept.area.layout.hold(hold)))])
    assert missed() == []
    # Marks are a location's own: those of the primary, which older records do not name, are not missed here.
    kept.mark()
    assert missed() == []
    kept.told("expire", str(LABEL), location=there.url)
    assert missed() == [("mark-lost", copy.layout.expiry(LABEL))]
    # It went, and was brought again when the rules there had changed.
    kept.told("collect", str(LABEL), location=there.url)
    assert missed() == []


@pytest.mark.parametrize("which", ["holds/", "leases/", "identity/", "expired/", "keys/", "seawall-copy"])
def test_a_damaged_document_of_any_kind_is_named(kept: Kept, which: str) -> None:
    kept.hold()
    kept.mark()
    kept.area.claim(ClusterIdentity(1, 18, (1,)), NOW)
    documents.put(kept.storage, kept.area.layout.key("wal-1", 1), {"key": 1})
    with kept.area.lease("ada", "backup"):
        pass
    assert kept.found() == []
    name = next(stat.name for stat in kept.storage.list() if which in stat.name)
    data = bytearray(b"".join(kept.storage.get(name)))
    data[len(data) // 2] ^= 1
    kept.storage.delete(name)
    kept.storage.put(name, [bytes(data)])
    assert ("document-damaged", name) in kept.found()


def test_a_broken_audit_is_a_finding_and_no_evidence(kept: Kept) -> None:
    kept.storage.delete(kept.area.layout.hold(kept.hold()))
    kept.hold()
    kept.storage.delete("audit/000000000001.json")
    assert kept.found() == [("audit-broken", "audit/")]


def test_an_identity_that_is_gone_is_missed_by_what_is_stored_of_its_timeline(kept: Kept) -> None:
    area = kept.area
    for timeline in (1, 2, 3):
        area.claim(ClusterIdentity(1, 18, (timeline,)), NOW)
        area.wal.put_segment(Segment(timeline, 1).name, b"w", PLAIN)
    assert traces.lost_identities(area) == []
    kept.storage.delete(area.layout.identity(3))
    (lost,) = traces.lost_identities(area)
    assert (lost.code, lost.subject) == ("identity-lost", area.layout.identity(3))
    area.claim(ClusterIdentity(1, 18, (3,)), NOW)
    assert traces.lost_identities(area) == []
    kept.storage.delete(area.layout.identity(2))
    assert [lost.subject for lost in traces.lost_identities(area)] == [area.layout.identity(2)]
    for number in (1, 3):
        kept.storage.delete(area.layout.identity(number))
    assert [lost.subject for lost in traces.lost_identities(area)] == [area.layout.identity(1)]


def test_a_writer_whose_lease_is_lost_stops_even_when_another_got_its_number(kept: Kept) -> None:
    with kept.area.lease("paused", "backup") as paused:
        kept.storage.delete(kept.area.layout.lease(paused.token))
        with pytest.raises(LeaseLost):
            paused.check()
        with kept.area.lease("other", "backup") as other:
            assert other.token == paused.token
            other.check()
            with pytest.raises(LeaseLost):
                paused.check()
