"""What a backup that was stopped had stored: its notes, what may be taken over, and what is known of each file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.backup.attempts import Attempt, AttemptLog, Attempts, Terms
from seawall.backup.changes import UNKNOWN, PriorFile, Span, complement, kept_extents
from seawall.backup.differences import changed_spans
from seawall.backup.ledger import StoredExtent
from seawall.backup.resume import RESUME_WITHIN, ResumePlan, Unfinished, overlaid, plan, prove
from seawall.codec import combined
from seawall.codec.runs import digests_of
from seawall.errors import StorageUnreachable
from seawall.events import Event, Noticed, Observer, silent
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Compression, Extent, FileEntry, SealingMode, StoredObject
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.repository.blocks import FileBlocks
from seawall.storage.base import Stat
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper

RUN = 8192
PATH = "base/5/16384"
BEGAN = datetime(2026, 11, 23, 2, tzinfo=UTC)
TERMS = Terms("shop", "full", "direct", "", "7", 18, 1, True, RUN, "none", "none", 0, ())


# ---- notes


def _noted(directory: Path, count: int = 3, terms: Terms = TERMS) -> Attempt:
    attempts = Attempts(directory)
    log = attempts.begin(BackupLabel(BEGAN), terms, silent())
    for number in range(count):
        digests = digests_of(bytes([number]) * 2 * RUN, RUN)
        extent = Extent(f"object-{number}", 0, 2 * RUN, combined(digests), RUN)
        log.note(
            StoredObject(f"object-{number}", 100, "ab" * 32, 2 * RUN), [(f"{PATH}.{number}", 0, extent)], [digests]
        )
    log.close()
    return attempts.found()[0]


def test_notes_say_what_was_written_and_belong_to_their_account_alone(tmp_path: Path) -> None:
    attempt = _noted(tmp_path / "attempts")
    assert (attempt.label, attempt.terms) == (BackupLabel(BEGAN), TERMS)
    assert [stored.name for stored in attempt.objects] == ["object-0", "object-1", "object-2"]
    found = [extent for _, extents in attempt.extents() for extent in extents]
    assert [(e.path, e.offset, e.digests) for e in found] == [
        (f"{PATH}.{n}", 0, digests_of(bytes([n]) * 2 * RUN, RUN)) for n in range(3)
    ]
    assert (attempt.path.stat().st_mode & 0o777, attempt.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_of_notes_that_were_cut_or_changed_only_what_lies_before_that_counts(tmp_path: Path) -> None:
    whole = _noted(tmp_path / "attempts")
    data = whole.path.read_bytes()
    begins = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    for at in range(0, len(data), 7):
        lines = sum(begin <= at for begin in begins)
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            whole.path.write_bytes(changed)
            found = Attempts(tmp_path / "attempts").found()
            assert [one.objects for one in found] == ([whole.objects[: lines - 1]] if lines else [])
            assert sum(len(list(one.extents())) for one in found) == max(lines - 1, 0)


def test_notes_that_cannot_be_written_are_said_and_cost_no_backup(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file where the directory should be")
    heard: list[Event] = []
    log = Attempts(tmp_path / "attempts").begin(BackupLabel(BEGAN), TERMS, Observer(heard.append))
    log.spoil(PATH)
    assert [event.code for event in heard if isinstance(event, Noticed)] == ["not-resumable"]
    heard.clear()
    with Path("/dev/full").open("wb") as nothing_fits, contextlib.suppress(OSError):
        full = AttemptLog(nothing_fits, Observer(heard.append))
        for _ in range(3):
            full.spoil(PATH)
    assert [event.code for event in heard if isinstance(event, Noticed)] == ["not-resumable"]


def test_without_a_place_for_them_there_are_no_notes() -> None:
    attempts = Attempts(None)
    attempts.begin(BackupLabel(BEGAN), TERMS, silent()).spoil(PATH)
    attempts.forget([BackupLabel(BEGAN)])
    assert attempts.found() == ()


def test_forgetting_removes_the_notes_that_are_named_and_what_is_none(tmp_path: Path) -> None:
    _noted(tmp_path)
    (tmp_path / "20261122T020000Z-full.attempt").write_bytes(b"no notes")
    Attempts(tmp_path).forget([])
    assert [path.name for path in tmp_path.iterdir()] == ["20261123T020000Z-full.attempt"]
    Attempts(tmp_path).forget([BackupLabel(BEGAN)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        {"system_identifier": "8"},
        {"major_version": 17},
        {"timeline": 2},
        {"checksums": False},
        {"block_bytes": 2 * RUN},
        {"kind": "incremental", "prior": "20261122T020000Z-full"},
        {"mode": "stream"},
        {"compression": "zstd"},
        {"level": 3},
        {"sealing": "openpgp"},
        {"recipients": ("AB",)},
    ],
    ids=min,
)
def test_an_attempt_under_other_terms_is_named_with_what_differs(other: dict[str, object]) -> None:
    assert TERMS.difference(TERMS) == ""
    assert min(other).replace("_", " ") in replace(TERMS, **other).difference(TERMS)  # type: ignore[arg-type]


# ---- what may be taken over


@dataclass
class House:
    """A repository with an attempt that stored two objects and was stopped."""

    place: Path
    now: datetime = BEGAN
    heard: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(clock=lambda: self.now)
        self.area = Repository.create(self.storage, now=self.now).source("shop")
        self.stop_one(BackupLabel(BEGAN))

    def stop_one(self, label: BackupLabel) -> None:
        log = Attempts(self.place).begin(label, TERMS, silent())
        for number in range(2):
            stored = self.store(label, number)
            log.note(stored, [], [])
        log.close()

    def store(self, label: BackupLabel, number: int) -> StoredObject:
        sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), cast(KeyRing, None))
        writer = self.area.begin(label, sealing, self.now)
        name, bundle = writer.bundle_writer(number)
        return writer.put_bundle(name, bundle, bundle.stream([]))

    def commit(self, label: BackupLabel, objects: list[StoredObject]) -> None:
        """As far as anybody looks here: a list of objects and a manifest."""
        rows = [[o.name, o.stored_bytes, o.stored_sha256, o.plain_bytes] for o in objects]
        documents.put(self.storage, self.area.layout.objects(label), {"objects": rows})
        self.storage.put(self.area.layout.manifest(label), [b"a manifest"])

    def plan(self, terms: Terms = TERMS) -> ResumePlan:
        return plan(self.area, Attempts(self.place), terms)

    def prove(self, storage: Wrapper | None = None) -> frozenset[str]:
        area = self.area if storage is None else SourceArea(storage, "shop")
        return prove(area, self.plan(), workers=2, observe=Observer(self.heard.append))

    def replace(self, name: str, data: bytes) -> None:
        self.storage.delete(name)
        self.storage.put(name, [data])


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


LATER = BackupLabel(BEGAN + timedelta(hours=1))


def test_an_attempt_with_the_same_terms_is_taken_over_and_one_with_others_is_kept_for_later(house: House) -> None:
    found = house.plan()
    assert (found.labels, len(found.objects), found.over, found.unfit) == ((BackupLabel(BEGAN),), 2, (), ())
    other = house.plan(replace(TERMS, compression="zstd"))
    assert (other.objects, other.over) == ((), ())
    assert [(label, "compression" in why) for label, why in other.unfit] == [(BackupLabel(BEGAN), True)]


def test_an_attempt_whose_garbage_might_be_collected_soon_is_over(house: House) -> None:
    house.now += RESUME_WITHIN
    assert house.plan().labels
    house.now += timedelta(seconds=1)
    assert [why for _, why in house.plan().over] == ["it was stopped more than 18 hours ago"]


def test_an_attempt_that_became_a_backup_or_is_marked_is_none(house: House) -> None:
    documents.put(house.storage, house.area.layout.expiry(BackupLabel(BEGAN)), {"label": "x"})
    assert [why for _, why in house.plan().over] == ["it is marked for removal"]
    house.commit(BackupLabel(BEGAN), [])
    assert [why for _, why in house.plan().over] == ["it became a backup"]


def test_no_two_backups_take_over_the_same_attempt(house: House) -> None:
    house.commit(LATER, list(house.plan().objects[:1]))
    assert [why for _, why in house.plan().over] == [f"{LATER} took it over"]


def test_a_later_backup_that_took_nothing_over_leaves_the_attempt_and_one_that_cannot_tell_does_not(
    house: House,
) -> None:
    house.commit(LATER, [house.store(LATER, 1)])
    assert house.plan().labels == (BackupLabel(BEGAN),)
    house.replace(house.area.layout.objects(LATER), b"no document")
    assert [why for _, why in house.plan().over] == [f"{LATER} took it over"]


def test_what_is_gone_has_another_size_or_lies_elsewhere_is_not_taken_over(house: House) -> None:
    first, second = house.plan().objects
    house.replace(first.name, b"short")
    assert house.plan().objects == (second,)
    house.storage.delete(second.name)
    assert [why for _, why in house.plan().over] == ["nothing of it is there"]


def test_an_object_of_another_name_than_the_attempts_own_is_not_taken_over(house: House) -> None:
    foreign = house.store(LATER, 1)
    log = Attempts(house.place).begin(BackupLabel(BEGAN + timedelta(minutes=1)), TERMS, silent())
    log.note(foreign, [], [])
    log.close()
    assert foreign not in house.plan().objects


def test_without_its_data_key_an_attempt_is_of_no_use(tmp_path: Path) -> None:
    house, sealed = House(tmp_path / "house"), replace(TERMS, sealing="aes-256-gcm", recipients=("A", "B"))
    attempt = BackupLabel(BEGAN + timedelta(minutes=1))
    log = Attempts(tmp_path / "sealed").begin(attempt, sealed, silent())
    log.note(house.store(attempt, 1), [], [])
    log.close()

    def unfit() -> list[str]:
        return [why for _, why in plan(house.area, Attempts(tmp_path / "sealed"), sealed).unfit]

    assert unfit() == ["its data key is not there, or is wrapped for others"]
    documents.put(house.storage, house.area.layout.key(str(attempt), 1), {"recipients": ["A", "C"]})
    assert unfit() == ["its data key is not there, or is wrapped for others"]
    documents.put(house.storage, house.area.layout.key(str(attempt), 2), {"recipients": ["B", "A"]})
    assert unfit() == []


class Parted(Wrapper):
    """A storage that says what it computed over the parts of each object, and counts what is read."""

    def __init__(self, inner: MemoryStorage, told: str) -> None:
        super().__init__(inner)
        self.told, self.read = told, []  # type: ignore[var-annotated] # names

    def stat(self, name: str) -> Stat:
        return replace(self.inner.stat(name), parts_sha256=self.told)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.read.append(name)
        return self.inner.get(name, offset, length)


@pytest.mark.parametrize(("told", "is_read"), [("aGFzaA==-2", False), ("b3RoZXI=-2", True), ("", True)])
def test_an_object_is_read_back_only_where_the_storage_does_not_say_of_its_parts_what_was_noted(
    house: House, told: str, is_read: bool
) -> None:
    label = BackupLabel(BEGAN + timedelta(minutes=1))
    log = Attempts(house.place).begin(label, TERMS, silent())
    stored = house.store(label, 1)
    log.note(stored, [], [], parts_sha256="aGFzaA==-2")
    log.close()
    storage = Parted(house.storage, told)
    assert stored.name in house.prove(storage)
    assert (stored.name in storage.read) is is_read
    # The two objects of the other attempt were noted without, and nothing is believed of them.
    assert len(set(storage.read) - {stored.name}) == 2


def test_each_object_is_proved_by_its_hash_and_a_flipped_byte_costs_that_object_alone(house: House) -> None:
    first, second = house.plan().objects
    assert house.prove() == {first.name, second.name}
    data = bytearray(b"".join(house.storage.get(first.name)))
    data[len(data) // 2] ^= 1
    house.replace(first.name, bytes(data))
    assert house.prove() == {second.name}
    notices = [event.message for event in house.heard if isinstance(event, Noticed)]
    assert len(notices) == 1
    assert first.name in notices[0]


class Telling(Wrapper):
    """A storage that computed hashes itself, and is not read."""

    def __init__(self, inner: MemoryStorage, sha256: str) -> None:
        super().__init__(inner)
        self._sha256 = sha256

    def stat(self, name: str) -> Stat:
        return replace(self.inner.stat(name), sha256=self._sha256)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        raise AssertionError(f"{name} was read")


def test_where_the_storage_computed_a_hash_nothing_is_read_back(house: House) -> None:
    first, _ = house.plan().objects
    assert house.prove(Telling(house.storage, first.stored_sha256)) == {first.name}
    assert house.prove(Telling(house.storage, "00" * 32)) == frozenset()


def test_an_outage_is_no_proof_of_damage(house: House) -> None:
    with pytest.raises(StorageUnreachable):
        house.prove(Faulty(house.storage, [Fault(Trouble.FAIL_BEFORE, "stat")]))


# ---- what is known of a file


contents = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ends = st.integers(1, RUN)


@dataclass
class Shelf:
    """Objects as plain bytes."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def rows(self, content: bytes, begins: list[int]) -> list[StoredExtent]:
        """Extents of two runs, of which those that begin at these runs were finished."""
        rows = []
        for begin in sorted(set(begins)):
            piece = content[begin * RUN : (begin + 2) * RUN]
            if piece and begin % 2 == 0:
                name, digests = f"object-{len(self.objects)}", digests_of(piece, RUN)
                self.objects[name] = piece
                rows.append(StoredExtent(begin * RUN, Extent(name, 0, len(piece), combined(digests), RUN), digests))
        return rows

    def content(self, known: PriorFile) -> bytes:
        """What is known, and something else in the holes."""
        return b"".join(
            self.objects[e.object][e.offset : e.offset + e.length] if e.object else b"?" * e.length
            for e in known.entry.extents
        )


def _content(runs: list[int], end: int) -> bytes:
    return b"".join(bytes([number]) * RUN for number in runs)[: (len(runs) - 1) * RUN + end]


@given(st.lists(st.tuples(contents, ends, st.lists(st.integers(0, 11))), min_size=1, max_size=3))
def test_of_whatever_was_stored_in_whatever_order_what_is_known_is_what_was_stored(
    attempts: list[tuple[list[int], int, list[int]]],
) -> None:
    shelf, known = Shelf(), None
    stored: list[set[bytes]] = [set() for _ in range(12)]
    for runs, end, finished in attempts:
        rows = shelf.rows(_content(runs, end), finished)
        for row in rows:
            piece = shelf.objects[row.extent.object]
            for at in range(0, len(piece), RUN):
                stored[(row.offset + at) // RUN].add(piece[at : at + RUN])
        known = overlaid(known, PATH, rows)
        if known is None:
            continue
        assert known.blocks.describes(known.entry)
        assert known.blocks.proves(known.entry)
        content = shelf.content(known)
        for number in range(known.blocks.runs):
            digest, run = known.blocks.digests[number * 16 : (number + 1) * 16], content[number * RUN :][:RUN]
            if digest == UNKNOWN:
                assert not any(row.offset <= number * RUN < row.offset + row.extent.length for row in rows)
            else:
                assert digest == digests_of(run, RUN)
                assert run in stored[number]
        _prove_kept(shelf, known, content)


def _prove_kept(shelf: Shelf, known: PriorFile, content: bytes) -> None:
    """Whatever lies in the holes, it is stored, and what is kept of the rest is what was stored."""
    for size in (len(content), len(content) + RUN, max(len(content) - RUN, 1)):
        now = content.ljust(size, b"x")[:size]
        spans = changed_spans(known, digests_of(now, RUN), size)
        kept = [(at, extent) for at, extent in kept_extents(known, complement(spans, size))]
        for at, extent in kept:
            assert shelf.objects[extent.object][extent.offset :][: extent.length] == now[at : at + extent.length]
        assert sum(span.length for span in spans) + sum(extent.length for _, extent in kept) == size


def test_a_newer_attempt_goes_over_an_older_one_and_over_the_prior() -> None:
    shelf = Shelf()
    old = overlaid(None, PATH, shelf.rows(_content([0] * 6, RUN), [0, 2, 4]))
    new = overlaid(old, PATH, shelf.rows(_content([1] * 6, RUN), [2]))
    assert new is not None
    assert shelf.content(new) == _content([0, 0, 1, 1, 0, 0], RUN)


def test_a_hole_is_stored_and_what_lies_behind_it_is_kept() -> None:
    shelf, content = Shelf(), _content([0] * 8, RUN)
    known = overlaid(None, PATH, shelf.rows(content, [0, 6]))
    assert known is not None
    assert changed_spans(known, digests_of(content, RUN), 8 * RUN) == (Span(2 * RUN, 4 * RUN),)
    assert changed_spans(known, UNKNOWN * 8, 8 * RUN) == (Span(0, 8 * RUN),), "not even what looks the same"


def test_runs_of_another_length_are_not_mixed() -> None:
    rows = Shelf().rows(_content([0] * 8, RUN), [0])
    longer = FileBlocks(PATH, 2 * RUN, 0, 0, 0, 2 * RUN, digests_of(bytes(2 * RUN), 2 * RUN))
    prior = PriorFile(FileEntry(PATH, "file", 0, 2 * RUN), longer)
    assert overlaid(prior, PATH, rows) is prior
    assert overlaid(None, PATH, []) is None


def test_a_file_with_a_page_that_was_torn_or_corrupt_is_read_anew(tmp_path: Path) -> None:
    attempts, label = Attempts(tmp_path), BackupLabel(BEGAN)
    log = attempts.begin(label, TERMS, silent())
    shelf = Shelf()
    (row,) = shelf.rows(_content([1, 1], RUN), [0])
    stored = StoredObject(row.extent.object, 1, "", 1)
    log.spoil("base/5/1")
    log.note(stored, [("base/5/1", 0, row.extent), ("base/5/2", 0, row.extent)], [row.digests, row.digests])
    log.close()
    with Unfinished(None, ResumePlan(attempts.found(), (stored,)), frozenset({stored.name})) as known:
        assert known.get("base/5/1") is None
        assert known.get("base/5/2") is not None
        assert known.blocks("base/5/2").digests == row.digests
        with pytest.raises(KeyError):
            known.blocks("base/5/1")
    with Unfinished(None, ResumePlan(attempts.found(), (stored,)), frozenset()) as known:
        assert known.get("base/5/2") is None, "nothing of an object that was not proved"
