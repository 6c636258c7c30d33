"""Small repositories with every kind of object that there is, made in a second and without a server.

Three backups (a full one marked as expired, a full one whose key was wrapped again, and an incremental on that),
WAL over two timelines with a partial, a history and a tail, holds, leases, marks, probes and an audit. Content is
random, so that no two objects are equal by chance; `expected` says what a restore of each backup must give.
"""

from __future__ import annotations

import io
import random
import secrets
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from seawall.audit import AuditLog
from seawall.codec import ExtentSource, run_bytes
from seawall.codec.runs import combined, digests_of
from seawall.keys import KeyRing
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Extent,
    FileEntry,
    Head,
    SealingMode,
    StoredObject,
    Tablespace,
)
from seawall.repository import BackupSetWriter, Repository, Sealing, SourceArea, blocks, documents
from seawall.repository.area import new_hold_id
from seawall.storage.base import Bytes
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

SOURCE = "shop"
SYSTEM_IDENTIFIER = 7_000_000_000_000_000_001
SEGMENT_BYTES = 1 << 20
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
PASSPHRASE = "a passphrase of the campaigns"
NAMES = ("operations", "escrow", "successor")
_WAL_BYTES = 4096
_PARTLY_CHANGED = "base/1/1259"
# Three runs of a file of this size.
_KEPT_BYTES = 24_576
_BUNDLES = 3


class QuickRing(KeyRing):
    """A key ring that asks gpg once for each message: what one opens to does not depend on when.

    Only messages that opened are remembered, by all of their bytes. A damaged one goes to gpg each time.
    """

    def __init__(self, home: Path) -> None:
        super().__init__(home, lambda: PASSPHRASE)
        self._known: dict[bytes, list[bytes]] = {}

    def decrypt_stream(self, chunks: Iterable[Bytes]) -> Iterator[bytes]:
        message = b"".join(chunks)
        if message not in self._known:
            opened = []
            for piece in super().decrypt_stream([message]):
                opened.append(piece)
                yield piece
            self._known[message] = opened
            return
        yield from self._known[message]


def make_ring(home: Path) -> QuickRing:
    """Three keys: operations, escrow, and one that keys are wrapped for later."""
    ring = QuickRing(home)
    for name in NAMES:
        ring.generate(name, f"{name}@seawall.invalid", passphrase=PASSPHRASE, stretched=False)
    return ring


def recipients(ring: KeyRing, *names: str) -> tuple[str, ...]:
    return tuple(key.fingerprint for key in ring.list() if key.user_id.startswith(names or ("operations", "escrow")))


@dataclass
class Sample:
    """A repository, and what is in it."""

    storage: MemoryStorage
    sealing: Sealing
    labels: list[BackupLabel] = field(default_factory=list)
    expected: dict[BackupLabel, dict[str, bytes]] = field(default_factory=dict)
    wal: dict[str, bytes] = field(default_factory=dict)
    audited: tuple[int, str] = (0, "")

    @property
    def mode(self) -> SealingMode:
        return self.sealing.mode

    def content(self) -> dict[str, bytes]:
        """Every object's bytes by its name."""
        return {stat.name: b"".join(self.storage.get(stat.name)) for stat in self.storage.list()}


def wal_bytes(segment: Segment, randomness: random.Random) -> bytes:
    """The beginning of a segment as PostgreSQL 18 writes it: a long page header, and something behind it."""
    header = struct.pack(
        "=HHIQI4xQII", 0xD118, 2, segment.timeline, segment.start.value, 0, SYSTEM_IDENTIFIER, SEGMENT_BYTES, 8192
    )
    return header + randomness.randbytes(_WAL_BYTES - len(header))


def make(
    ring: KeyRing,
    mode: SealingMode,
    compression: Compression,
    seed: int,
    *,
    noon: datetime = NOON,
    randomness: random.Random | None = None,
) -> Sample:
    """A repository sealed in `mode`, whose backups began at `noon` and in the two hours after it.

    Args:
        seed: the same one gives the same plain content.
        randomness: instead of a seeded one of Python's own kind.
    """
    randomness, clock = randomness or random.Random(seed), _Clock(noon)
    storage = MemoryStorage(clock=clock.now)
    sample = Sample(storage, Sealing(mode, compression, 1, recipients(ring), ring))
    repository = Repository.create(storage, now=clock.now())
    repository.install_recovery_script(f"# stands for recover.py {randomness.random()}\n")
    area = repository.source(SOURCE)
    for timeline in (1, 2):
        area.claim(ClusterIdentity(SYSTEM_IDENTIFIER, 18, (timeline,)), clock.now())
    prior: Taken | None = None
    for minute, start in ((0, 1), (60, 3), (120, 5)):
        clock.minute = minute
        # Full, full, and an incremental on the second.
        prior = back_up(sample.sealing, area, clock.now(), start, randomness, prior=prior if minute == 120 else None)
        sample.labels.append(prior.label)
        sample.expected[prior.label] = prior.content
    clock.minute = 130
    _fill_archive(sample, area, randomness)
    _mark(sample, repository, ring, clock.now())
    sample.audited = AuditLog(storage).verify()
    return sample


@dataclass
class _Clock:
    noon: datetime
    minute: int = 0

    def now(self) -> datetime:
        return self.noon + timedelta(minutes=self.minute)


@dataclass(frozen=True)
class Taken:
    """A set that was written: what a later one needs to build on it, and the bytes that a restore must give."""

    label: BackupLabel
    content: dict[str, bytes]
    files: Sequence[FileEntry]
    objects: Sequence[StoredObject]


def back_up(
    sealing: Sealing,
    area: SourceArea,
    now: datetime,
    start: int,
    randomness: random.Random,
    *,
    prior: Taken | None = None,
    about: Callable[[Taken], None] = lambda _taken: None,
) -> Taken:
    """One backup set written as the engine does, but of files that exist only here.

    Args:
        start: number of the segment that it begins in; it ends in the next one.
        prior: what an incremental builds on; None for a full backup.
        about: hears of it right before it is committed.
    """
    content = _files(randomness) if prior is None else _later(prior.content, randomness)
    if prior is None:
        label = BackupLabel.after(None, now)
    else:
        label = BackupLabel.after(prior.label, now, BackupKind.INCREMENTAL, prior.label)
    with area.lease("campaign", "backup") as held:
        writer = area.begin(label, sealing, now)
        objects, files = _bundles(writer, _parts(content, prior), content)
        if prior is not None:
            files = [_with_kept(entry, content[entry.path], prior) for entry in files]
            needed = {extent.object for entry in files for extent in entry.extents}
            objects += [known for known in prior.objects if known.name in needed]
        about(Taken(label, content, files, objects))
        mapped = [_blocks(entry.path, content[entry.path]) for entry in sorted(files, key=_path)]
        files += [FileEntry(path, "directory", 0o700) for path in ("base", "base/1", "global", "pg_tblspc")]
        files.append(FileEntry("pg_tblspc/16400", "link", 0o777, link="/old/place"))
        files.sort(key=_path)
        writer.commit(
            _facts(label, now, start, content, files=len(files), objects=len(objects), prior=prior),
            objects=objects,
            specials={"backup_label": f"START WAL LOCATION {start}\n", "tablespace_map": "16400 /old/place\n"},
            files=files,
            held=held,
            block_map=blocks.encode(str(label), 1, mapped),
        )
    return Taken(label, content, files, objects)


def _path(entry: FileEntry) -> str:
    return entry.path


def _files(randomness: random.Random) -> dict[str, bytes]:
    sizes = {_PARTLY_CHANGED: 40_000, "base/1/1260": 24_576, "base/1/2619": 0, "global/pg_control": 8192}
    content = {path: randomness.randbytes(size) for path, size in sizes.items()}
    # Something that every codec makes shorter, so that compressed frames are among what is damaged.
    content["base/1/1249"] = b"".join(b"%08d the same row again\n" % number for number in range(1500))
    return {**content, "PG_VERSION": b"18\n", "pg_tblspc/16400/PG_18_1/5/1": randomness.randbytes(9000)}


def _later(content: Mapping[str, bytes], randomness: random.Random) -> dict[str, bytes]:
    """The same files later: some as they were, one changed from its fourth run on, one new."""
    begin = content[_PARTLY_CHANGED][:_KEPT_BYTES]
    changed = begin + randomness.randbytes(len(content[_PARTLY_CHANGED]) - _KEPT_BYTES)
    return {
        **content,
        _PARTLY_CHANGED: changed,
        "base/1/1261": randomness.randbytes(8192),
        "global/pg_control": randomness.randbytes(8192),
    }


def _parts(content: Mapping[str, bytes], prior: Taken | None) -> list[tuple[str, int]]:
    """What is stored: path, and from which offset on."""
    if prior is None:
        return [(path, 0) for path in sorted(content)]
    changed = [path for path in sorted(content) if content[path] != prior.content.get(path)]
    return [(path, _KEPT_BYTES if path == _PARTLY_CHANGED else 0) for path in changed]


def _bundles(
    writer: BackupSetWriter, parts: Sequence[tuple[str, int]], content: Mapping[str, bytes]
) -> tuple[list[StoredObject], list[FileEntry]]:
    """Three bundles, and an entry for each file with the extents that lie in them."""
    stored, extents = [], defaultdict(list)
    for number in range(_BUNDLES):
        name, bundle = writer.bundle_writer(number + 1)
        sources = [_source(path, content[path], at) for path, at in parts[number::_BUNDLES]]
        stored.append(writer.put_bundle(name, bundle, bundle.stream(sources)))
        for path, _, extent in bundle.extents(name):
            extents[path].append(extent)
    files = [FileEntry(path, "file", 0o600, len(data), 1.5, tuple(extents[path])) for path, data in content.items()]
    return stored, files


def _with_kept(entry: FileEntry, data: bytes, prior: Taken) -> FileEntry:
    """An entry of an incremental, with what it takes from the prior set before what is its own."""
    known = next((old for old in prior.files if old.path == entry.path), None)
    own = sum(extent.length for extent in entry.extents)
    if known is None or own == len(data):
        return entry
    return replace(entry, extents=(*_up_to(len(data) - own, known.extents, data), *entry.extents))


def _up_to(kept: int, extents: Iterable[Extent], data: bytes) -> Iterator[Extent]:
    """The extents of a file's first bytes, the last of them cut."""
    at = 0
    for old in extents:
        length = min(old.length, kept - at)
        if length <= 0:
            return
        whole = length == old.length
        digest = old.blake3 if whole else combined(digests_of(data[at : at + length], old.run_bytes))
        yield old._replace(length=length, blake3=digest)
        at += length


def _blocks(path: str, data: bytes) -> blocks.FileBlocks:
    runs = run_bytes(len(data))
    return blocks.FileBlocks(path, len(data), 1, 1, 1, runs, digests_of(data, runs))


def _source(path: str, data: bytes, at: int) -> ExtentSource:
    return ExtentSource(path, at, len(data) - at, io.BytesIO(data[at:]).readinto, run_bytes(len(data)))


def _facts(
    label: BackupLabel,
    now: datetime,
    start: int,
    content: Mapping[str, bytes],
    *,
    files: int,
    objects: int,
    prior: Taken | None,
) -> Head:
    return Head(
        label=label, source=SOURCE, kind=label.kind, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(SYSTEM_IDENTIFIER, 18, (1,)), server_version=180006, timeline=1,
        start_lsn=Lsn(start * SEGMENT_BYTES + 40), stop_lsn=Lsn((start + 1) * SEGMENT_BYTES + 999),
        segment_bytes=SEGMENT_BYTES, began_at=now, ended_at=now, stopped_at=now,
        plain_bytes=sum(map(len, content.values())), stored_bytes=0, file_count=files, object_count=objects,
        compression=Compression.NONE, sealing=SealingMode.NONE, key_id="", manifest_sha256="", manifest_bytes=0,
        prior=str(prior.label) if prior else "", tablespaces=(Tablespace(16400, "/old/place"),),
    )  # fmt: skip


def _fill_archive(sample: Sample, area: SourceArea, randomness: random.Random) -> None:
    """Timeline 1 from the first backup to where it was left, in segment 8; timeline 2 from there, its end a tail."""
    for timeline, first, last in ((1, 1, 7), (2, 8, 10)):
        for number in range(first, last + 1):
            segment = Segment(timeline, number, SEGMENT_BYTES)
            sample.wal[segment.name] = wal_bytes(segment, randomness)
            area.wal.put_segment(segment.name, sample.wal[segment.name], sample.sealing)
    left = Segment(1, 8, SEGMENT_BYTES)
    sample.wal[f"{left.name}.partial"] = wal_bytes(left, randomness)
    area.wal.put_partial(f"{left.name}.partial", sample.wal[f"{left.name}.partial"], sample.sealing)
    history = f"1\t{left.start + 700}\tno recovery target specified\n".encode()
    sample.wal["00000002.history"] = history
    area.wal.put_history("00000002.history", history, sample.sealing)
    area.wal.write_list()
    open_one = Segment(2, 11, SEGMENT_BYTES)
    sample.wal[f"{open_one.name}.tail"] = wal_bytes(open_one, randomness)
    area.wal.put_tail(open_one, open_one.start + _WAL_BYTES, sample.wal[f"{open_one.name}.tail"], sample.sealing)


def _mark(sample: Sample, repository: Repository, ring: KeyRing, now: datetime) -> None:
    """What administrators leave: holds, a rotated key, marks, a probe, and the audit of all that."""
    area, audit = repository.source(SOURCE), AuditLog(repository.storage)
    oldest, middle, _ = sample.labels
    for reason in ("released again", "lawsuit"):
        hold_id = new_hold_id(now)
        audit.append("campaign", "hold", f"{SOURCE} {middle}", {"id": hold_id, "reason": reason}, now=now)
        hold = area.place_hold(middle, reason=reason, owner="campaign", now=now, hold_id=hold_id)
        if reason == "released again":
            audit.append("campaign", "release-hold", f"{SOURCE} {hold.id}", {}, now=now)
            area.release_hold(hold.id, owner="campaign", now=now)
    if sample.mode is SealingMode.AES_256_GCM:
        audit.append("campaign", "rewrap", str(middle), {}, now=now)
        area.keychain.rewrap(str(middle), ring, recipients(ring, "operations", "successor"), now)
    audit.append("campaign", "expire", f"{SOURCE} {oldest}", {"why": "old"}, now=now)
    marked = {"actor": "campaign", "marked_at": now.isoformat()}
    documents.put(repository.storage, area.layout.expiry(oldest), {"label": str(oldest), **marked})
    first, last = (Segment(1, number, SEGMENT_BYTES).name for number in (1, 2))
    audit.append("campaign", "expire-wal", f"{SOURCE} {first}..{last}", {"count": "2"}, now=now)
    details = {"timeline": 1, "first": first, "last": last, "count": 2}
    documents.put(repository.storage, f"{area.layout.expired}wal-{first}-{last}.json", {**details, **marked})
    repository.storage.put(f"probes/{secrets.token_hex(16)}", [b"left behind"])
