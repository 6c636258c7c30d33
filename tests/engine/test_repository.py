"""A repository: its identity, sources, backup sets, holds, and the order of writes that makes a set exist."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.codec import Entry, ExtentSource, run_bytes
from seawall.codec.envelope import read_envelope
from seawall.errors import (
    BackupMissing,
    ClusterMismatch,
    Damaged,
    FormatTooNew,
    KeyMissing,
    LeaseLost,
    NameRefused,
    NotARepository,
    ObjectExists,
    SeawallError,
    UsageError,
    WalConflict,
)
from seawall.keys import KeyRing
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    FileEntry,
    Head,
    SealingMode,
    StoredObject,
)
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
CLUSTER = ClusterIdentity(7_000_000_000_000_000_001, 18, (1,))
CONTENT = {"PG_VERSION": b"18\n", "base/1/1259": os.urandom(3 * 1024 * 1024 + 17), "global/pg_control": b"c" * 8192}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRing]:
    with KeyRing(tmp_path_factory.mktemp("ring"), lambda: "test passphrase") as made:
        for name in ("operations", "escrow"):
            made.generate(name, f"{name}@seawall.invalid", passphrase="test passphrase", stretched=False)
        yield made


@pytest.fixture
def repository() -> Repository:
    return Repository.create(MemoryStorage(), now=NOW)


def sealing(ring: KeyRing, mode: SealingMode = SealingMode.AES_256_GCM) -> Sealing:
    return Sealing(mode, Compression.ZSTD, 1, tuple(key.fingerprint for key in ring.list()), ring)


def a_head(label: BackupLabel) -> Head:
    return Head(
        label=label,
        source="shop",
        kind=BackupKind.FULL,
        mode=CopyMode.DIRECT,
        cluster=CLUSTER,
        server_version=180006,
        timeline=1,
        start_lsn=Lsn(1 << 24),
        stop_lsn=Lsn(3 << 24),
        segment_bytes=1 << 24,
        began_at=NOW,
        ended_at=NOW + timedelta(seconds=4),
        stopped_at=NOW + timedelta(seconds=3),
        plain_bytes=sum(map(len, CONTENT.values())),
        stored_bytes=0,
        file_count=len(CONTENT),
        object_count=1,
        compression=Compression.NONE,
        sealing=SealingMode.NONE,
        key_id="",
        manifest_sha256="",
        manifest_bytes=0,
    )


def feeding(path: str, data: bytes) -> ExtentSource:
    rest = memoryview(data)

    def readinto(view: memoryview) -> int:
        nonlocal rest
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return ExtentSource(path, 0, len(data), readinto, run_bytes(len(data)))


def written(area: SourceArea, how: Sealing, at: datetime = NOW) -> tuple[list[StoredObject], list[FileEntry], object]:
    label = BackupLabel.after(None, at)
    writer = area.begin(label, how, at)
    name, bundle = writer.bundle_writer(1)
    stored = writer.put_bundle(name, bundle, bundle.stream(feeding(path, data) for path, data in CONTENT.items()))
    extents = {path: extent for path, _, extent in bundle.extents(name)}
    files = [FileEntry(path, "file", 0o600, len(CONTENT[path]), 1.5, (extents[path],)) for path in sorted(CONTENT)]
    return [stored], files, writer


def a_backup(area: SourceArea, how: Sealing, at: datetime = NOW) -> Head:
    objects, files, writer = written(area, how, at)
    with area.lease("test", "backup") as held:
        label = BackupLabel.after(None, at)
        return writer.commit(
            replace(a_head(label), began_at=at, stopped_at=at, ended_at=at),
            objects=objects,
            specials={"backup_label": "START WAL LOCATION"},
            files=files,
            held=held,
        )


@pytest.mark.parametrize(
    ("bundles", "lines"), [(Compression.LZ4, "gzip"), (Compression.ZSTD, "zstd"), (Compression.NONE, "none")]
)
def test_manifest_and_block_map_have_a_codec_that_makes_hashes_shorter_and_are_read_by_their_own_header(
    repository: Repository, ring: KeyRing, bundles: Compression, lines: str
) -> None:
    area = repository.source("shop")
    head = a_backup(area, replace(sealing(ring, SealingMode.AES_256_GCM), compression=bundles, level=1))
    manifest = b"".join(repository.storage.get(area.layout.manifest(head.label)))
    assert read_envelope(manifest, "it").codec.value == lines
    assert [entry.path for entry in area.manifest(head.label, ring).files()] == sorted(CONTENT)
    assert area.head(head.label).compression is bundles


@pytest.mark.parametrize("mode", list(SealingMode))
def test_what_was_backed_up_comes_back_byte_for_byte(repository: Repository, ring: KeyRing, mode: SealingMode) -> None:
    area = repository.source("shop")
    head = a_backup(area, sealing(ring, mode))
    assert area.heads() == (head,)
    again = Repository.open(repository.storage).source("shop")
    manifest = again.manifest(head.label, ring)
    assert manifest.specials == {"backup_label": "START WAL LOCATION"}
    found = {}
    for entry in manifest.files():
        wanted = [Entry(entry.path, 0, e.offset, e.length, e.blake3, e.run_bytes) for e in entry.extents]
        pieces = again.bundle(head, entry.extents[0].object, ring, wanted)
        found[entry.path] = b"".join(piece for _, _, piece in pieces)
    assert found == CONTENT


@pytest.mark.parametrize("mode", [SealingMode.AES_256_GCM, SealingMode.OPENPGP])
def test_nothing_of_the_content_lies_in_the_storage_in_clear(
    repository: Repository, ring: KeyRing, mode: SealingMode
) -> None:
    a_backup(repository.source("shop"), sealing(ring, mode))
    stored = b"".join(b"".join(repository.storage.get(s.name)) for s in repository.storage.list())
    assert CONTENT["base/1/1259"][:64] not in stored
    assert b"base/1/1259" not in stored


def test_a_set_without_its_manifest_does_not_exist(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    written(area, sealing(ring))
    assert area.labels() == ()
    with pytest.raises(BackupMissing):
        area.head(BackupLabel.after(None, NOW))


def test_every_write_before_the_manifest_leaves_nothing_listed(ring: KeyRing) -> None:
    """Cut the history of writes at every place: a set is listed exactly when the last one was done."""
    recorder = MemoryStorage()
    names: list[str] = []
    put = recorder.put

    def recording(name: str, chunks: object) -> object:
        done = put(name, chunks)  # type: ignore[arg-type]
        names.append(name)
        return done

    recorder.put = recording  # type: ignore[method-assign,assignment]
    repository = Repository.create(recorder, now=NOW)
    head = a_backup(repository.source("shop"), sealing(ring))
    relevant = [n for n in names if n.startswith("sources/")]
    assert relevant[-1].endswith(f"{head.label}/manifest")
    assert relevant[-4].endswith("objects.json")
    assert relevant[-3].endswith("manifest.copy")
    assert relevant[-2].endswith("head.json")
    for cut in range(len(names)):
        partial = MemoryStorage()
        for name in names[:cut]:
            partial.put(name, [b"".join(recorder.get(name))])
        listed = [h.label for s in partial.children("sources/") for h in SourceArea(partial, s).heads()]
        assert listed == ([head.label] if relevant[-1] in names[:cut] else [])


def test_a_writer_that_lost_its_lease_commits_nothing(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    objects, files, writer = written(area, sealing(ring))
    label = BackupLabel.after(None, NOW)
    # Not entered: it is never renewed, as when its process was paused.
    slow = area.lease("slow", "backup", ttl=timedelta(milliseconds=1))
    time.sleep(0.01)
    with area.lease("other", "backup"), pytest.raises(LeaseLost):
        writer.commit(a_head(label), objects=objects, specials={}, files=files, held=slow)
    assert area.labels() == ()


def test_a_label_is_used_once(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    a_backup(area, sealing(ring))
    with pytest.raises(ObjectExists):
        area.begin(BackupLabel.after(None, NOW), sealing(ring), NOW)


def test_another_cluster_cannot_use_the_source(repository: Repository) -> None:
    area = repository.source("shop")
    area.claim(CLUSTER, NOW)
    area.claim(replace(CLUSTER, timelines=(2,)), NOW)
    area.claim(CLUSTER, NOW)
    assert area.identity() == replace(CLUSTER, timelines=(1, 2))
    with pytest.raises(ClusterMismatch, match="system identifier"):
        area.claim(replace(CLUSTER, system_identifier=1), NOW)
    with pytest.raises(ClusterMismatch, match="PostgreSQL 18"):
        area.claim(replace(CLUSTER, major_version=17), NOW)
    area.claim(replace(CLUSTER, major_version=19), NOW)


@pytest.mark.parametrize("name", ["..", "a/b", "", "Büro", "a b", ".hidden"])
def test_a_source_with_a_dangerous_name_is_refused(repository: Repository, name: str) -> None:
    with pytest.raises(NameRefused):
        repository.source(name)


def test_a_newer_repository_is_refused_and_left_alone() -> None:
    storage = MemoryStorage()
    documents.put(storage, "seawall.json", {"format": 2, "repository_id": "x", "created_at": NOW.isoformat()})
    with pytest.raises(FormatTooNew):
        Repository.open(storage)
    assert [s.name for s in storage.list()] == ["seawall.json"]


def test_what_is_no_repository_says_so() -> None:
    with pytest.raises(NotARepository):
        Repository.open(MemoryStorage())
    storage = MemoryStorage()
    storage.put("readme.txt", [b"mine"])
    with pytest.raises(UsageError, match="not empty"):
        Repository.create(storage, now=NOW)


def test_without_a_private_key_nothing_opens_and_the_error_names_the_keys(
    repository: Repository, ring: KeyRing, tmp_path: Path
) -> None:
    area = repository.source("shop")
    head = a_backup(area, sealing(ring))
    with KeyRing(tmp_path / "public") as public:
        for key in ring.list():
            public.import_keys(ring.export_public(key.fingerprint))
        other = SourceArea(repository.storage, "shop")
        assert other.heads() == (head,)
        with pytest.raises(KeyMissing):
            other.manifest(head.label, public)


def test_rotation_lets_new_recipients_in_and_retiring_locks_old_ones_out(
    repository: Repository, ring: KeyRing, tmp_path: Path
) -> None:
    area = repository.source("shop")
    head = a_backup(area, sealing(ring))
    data = {s.name: s.size_bytes for s in repository.storage.list("sources/shop/backups/")}
    with KeyRing(tmp_path / "new", lambda: "other") as fresh:
        fingerprints = [
            fresh.generate(n, f"{n}@seawall.invalid", passphrase="other", stretched=False) for n in ("new", "newer")
        ]
        for fingerprint in fingerprints:
            ring.import_keys(fresh.export_public(fingerprint))
        chain = area.keychain
        assert chain.rewrap(head.key_id, ring, fingerprints, NOW)
        assert not chain.rewrap(head.key_id, ring, fingerprints, NOW)
        assert chain.retire(head.key_id, fingerprints) == 1
        reader = SourceArea(repository.storage, "shop").manifest(head.label, fresh)
        assert [entry.path for entry in reader.files()] == sorted(CONTENT)
    assert {s.name: s.size_bytes for s in repository.storage.list("sources/shop/backups/")} == data
    with pytest.raises(KeyMissing):
        SourceArea(repository.storage, "shop").manifest(head.label, ring)


def test_a_damaged_newer_wrap_does_not_lock_out_the_older_ones(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    head = a_backup(area, sealing(ring))
    older, newer = area.layout.key(head.key_id, 1), area.layout.key(head.key_id, 2)
    repository.storage.put(newer, [b"".join(repository.storage.get(older))])
    reader = SourceArea(repository.storage, "shop").manifest(head.label, ring)
    assert [entry.path for entry in reader.files()] == sorted(CONTENT)
    repository.storage.delete(older)
    with pytest.raises(Damaged, match="belongs to"):
        SourceArea(repository.storage, "shop").manifest(head.label, ring)


def test_a_lost_identity_record_keeps_no_new_one_from_being_written(repository: Repository) -> None:
    area = repository.source("shop")
    for timeline in (1, 2):
        area.claim(ClusterIdentity(7, 18, (timeline,)), NOW)
    repository.storage.delete(area.layout.identity(1))
    area.claim(ClusterIdentity(7, 18, (3,)), NOW)
    found = area.identity()
    assert found is not None
    assert found.timelines == (1, 2, 3)


def test_a_history_in_another_timelines_place_is_refused(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    area.wal.put_history("00000002.history", b"1\t0/3000000\tno\n", sealing(ring, SealingMode.NONE))
    stray = area.layout.history(3)
    repository.storage.put(stray, [b"".join(repository.storage.get(area.layout.history(2)))])
    with pytest.raises(Damaged, match="belongs to"):
        area.wal.histories()


def test_a_hold_is_in_force_until_its_end_or_release(repository: Repository, ring: KeyRing) -> None:
    area = repository.source("shop")
    head = a_backup(area, sealing(ring, SealingMode.NONE))
    hold = area.place_hold(head.label, reason="lawsuit", owner="ada", now=NOW, until=NOW + timedelta(days=2))
    assert area.holds(NOW + timedelta(days=1)) == (hold,)
    assert area.holds(NOW + timedelta(days=3)) == ()
    area.release_hold(hold.id, owner="ada", now=NOW)
    assert area.holds(NOW) == ()
    with pytest.raises(BackupMissing):
        area.place_hold(BackupLabel.after(None, NOW + timedelta(days=9)), reason="r", owner="o", now=NOW)


def damaged_copies(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Flips over the whole length, cuts, and bytes too many."""
    for position in sorted({0, 1, len(data) // 3, len(data) // 2, len(data) - 1}):
        yield f"flip at {position}", data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
    for length in sorted({0, 1, len(data) // 2, len(data) - 1}):
        yield f"cut to {length}", data[:length]
    yield "one byte more", data + b"x"


# OpenPGP is a process for each of the hundred copies.
@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=pytest.mark.slow if m is SealingMode.OPENPGP else ()) for m in SealingMode]
)
def test_damage_in_any_object_of_a_set_is_detected_and_never_read_as_content(ring: KeyRing, mode: SealingMode) -> None:
    repository = Repository.create(MemoryStorage(), now=NOW)
    head = a_backup(repository.source("shop"), sealing(ring, mode))
    whole = {s.name: b"".join(repository.storage.get(s.name)) for s in repository.storage.list("sources/")}
    watched = [
        n for n in whole if "/bundles/" in n or n.endswith(("/manifest", "head.json", "objects.json")) or "/keys/" in n
    ]
    assert len(watched) == (5 if mode is SealingMode.AES_256_GCM else 4)
    for name in watched:
        for how, broken in damaged_copies(whole[name]):
            storage = MemoryStorage()
            for other, data in whole.items():
                storage.put(other, [broken if other == name else data])
            with pytest.raises(SeawallError) as caught:
                read_back(SourceArea(storage, "shop"), head, ring)
            assert isinstance(caught.value, Damaged | KeyMissing | FormatTooNew), (name, how, caught.value)


def read_back(area: SourceArea, head: Head, ring: KeyRing) -> None:
    """Read everything; what lies in the storage must also have the hash that refers to it.

    A flip in what only another recipient of an OpenPGP message reads changes no content: only hashes tell.
    """
    if area.head(head.label) != head:
        raise Damaged("the head differs")
    manifest = area.manifest(head.label, ring)
    refuse_other_hash(area, area.layout.manifest(head.label), head.manifest_sha256)
    for entry in manifest.files():
        wanted = [Entry(entry.path, 0, e.offset, e.length, e.blake3, e.run_bytes) for e in entry.extents]
        for _ in area.bundle(head, entry.extents[0].object, ring, wanted):
            pass
    if area.stored_objects(head.label) != manifest.objects:
        raise Damaged("the list of objects differs")
    for stored in manifest.objects:
        refuse_other_hash(area, stored.name, stored.stored_sha256)


def refuse_other_hash(area: SourceArea, name: str, sha256: str) -> None:
    if hashlib.sha256(b"".join(area.storage.get(name))).hexdigest() != sha256:
        raise Damaged(f"{name} has another hash")


def test_two_bundles_that_were_swapped_are_detected(ring: KeyRing) -> None:
    storage = MemoryStorage()
    repository = Repository.create(storage, now=NOW)
    area = repository.source("shop")
    one = a_backup(area, sealing(ring))
    two = a_backup(area, sealing(ring), NOW + timedelta(hours=1))
    swapped = MemoryStorage()
    bundles = [
        next(s.name for s in storage.list(area.layout.backup(h.label)) if "bundles" in s.name) for h in (one, two)
    ]
    trade = dict(zip(bundles, reversed(bundles), strict=True))
    for stat in storage.list():
        swapped.put(trade.get(stat.name, stat.name), [b"".join(storage.get(stat.name))])
    with pytest.raises(SeawallError):
        read_back(SourceArea(swapped, "shop"), one, ring)


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.integers(), st.booleans(), st.none())))
def test_a_document_survives_and_any_change_is_found(document: dict[str, object]) -> None:
    for member in ("sha256", "object"):
        document.pop(member, None)
    stored = documents.encode(document, name="x")
    assert documents.decode(stored, name="x") == document
    position = len(stored) // 2
    broken = stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :]
    with pytest.raises(Damaged):
        documents.decode(broken, name="x")
    with pytest.raises(Damaged, match="belongs to 'x'"):
        documents.decode(stored, name="y")


@given(st.binary())
def test_whatever_lies_there_a_document_reader_only_says_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        documents.decode(data, name="x")


@pytest.mark.parametrize("mode", list(SealingMode))
def test_the_same_wal_again_is_success_and_other_wal_under_its_name_a_conflict_in_every_mode(
    repository: Repository, ring: KeyRing, mode: SealingMode
) -> None:
    wal, name, history = repository.source("shop").wal, "000000010000000000000001", b"1\t0/3000000\tno reason\n"
    how = sealing(ring, mode)
    assert wal.put_segment(name, b"one", how) == "stored"
    assert wal.put_segment(name, b"one", how) == "identical"
    with pytest.raises(WalConflict):
        wal.put_segment(name, b"two", how)
    assert wal.put_history("00000002.history", history, how) == "stored"
    assert wal.put_history("00000002.history", history, how) == "identical"
    assert set(wal.histories()) == {2}
    assert wal.fetch(name, ring) == b"one"
