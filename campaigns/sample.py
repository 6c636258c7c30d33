"""Small repositories with every kind of object that there is, made in a second and without a server.

Three backups (one of them marked as expired, one with a key that was wrapped again), WAL over two timelines with a
partial, a history and a tail, holds, leases, marks, probes and an audit. Content is random, so that no two objects
are equal by chance; `expected` says what a restore of each backup must give.
"""

from __future__ import annotations

import random
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from seawall.audit import AuditLog
from seawall.codec import BundleWriter, ExtentSource, run_bytes
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
    Tablespace,
)
from seawall.repository import BackupSetWriter, Repository, Sealing, SourceArea, documents
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
        ring.generate(name, f"{name}@seawall.invalid", passphrase=PASSPHRASE)
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


def make(ring: KeyRing, mode: SealingMode, compression: Compression, seed: int, noon: datetime = NOON) -> Sample:
    """A repository sealed in `mode`, whose backups began at `noon` and in the two hours after it.

    The same seed gives the same plain content.
    """
    randomness, clock = random.Random(seed), _Clock(noon)
    storage = MemoryStorage(clock=clock.now)
    sample = Sample(storage, Sealing(mode, compression, 1, recipients(ring), ring))
    repository = Repository.create(storage, now=clock.now())
    repository.install_recovery_script(f"# stands for recover.py {randomness.random()}\n")
    area = repository.source(SOURCE)
    for timeline in (1, 2):
        area.claim(ClusterIdentity(SYSTEM_IDENTIFIER, 18, (timeline,)), clock.now())
    for minute, start in ((0, 1), (60, 3), (120, 5)):
        clock.minute = minute
        label, content = back_up(sample.sealing, area, clock.now(), start, randomness)
        sample.labels.append(label)
        sample.expected[label] = content
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


def back_up(
    sealing: Sealing, area: SourceArea, now: datetime, start: int, randomness: random.Random
) -> tuple[BackupLabel, dict[str, bytes]]:
    """One backup set written as the engine does, but of files that exist only here; its label and its content.

    Args:
        start: number of the segment that it begins in; it ends in the next one.
    """
    label = BackupLabel.after(None, now)
    content = _files(randomness)
    with area.lease("campaign", "backup") as held:
        writer = area.begin(label, sealing, now)
        paths = sorted(content)
        stored, files = _bundles(writer, {p: content[p] for p in paths}, parts=3)
        files += [FileEntry(path, "directory", 0o700) for path in ("base", "base/1", "global", "pg_tblspc")]
        files.append(FileEntry("pg_tblspc/16400", "link", 0o777, link="/old/place"))
        head = _facts(label, now, start, content, files=len(files), objects=len(stored))
        specials = {"backup_label": f"START WAL LOCATION {start}\n", "tablespace_map": "16400 /old/place\n"}
        writer.commit(
            head, objects=stored, specials=specials, files=sorted(files, key=lambda file: file.path), held=held
        )
    return label, content


def _files(randomness: random.Random) -> dict[str, bytes]:
    sizes = {"base/1/1259": 40_000, "base/1/1260": 24_576, "base/1/2619": 0, "global/pg_control": 8192}
    content = {path: randomness.randbytes(size) for path, size in sizes.items()}
    # Something that every codec makes shorter, so that compressed frames are among what is damaged.
    content["base/1/1249"] = b"".join(b"%08d the same row again\n" % number for number in range(1500))
    return {**content, "PG_VERSION": b"18\n", "pg_tblspc/16400/PG_18_1/5/1": randomness.randbytes(9000)}


def _bundles(
    writer: BackupSetWriter, content: Mapping[str, bytes], parts: int
) -> tuple[list[StoredObject], list[FileEntry]]:
    stored, files, paths = [], [], list(content)
    for number in range(parts):
        mine = paths[number::parts]
        name, bundle = writer.bundle_writer(number + 1)
        stored.append(writer.put_bundle(name, bundle, bundle.stream([_source(p, content[p]) for p in mine])))
        files += list(_entries(bundle, name, {path: content[path] for path in mine}))
    return stored, files


def _entries(bundle: BundleWriter, name: str, content: Mapping[str, bytes]) -> Iterator[FileEntry]:
    extents = {path: extent for path, _, extent in bundle.extents(name)}
    for path, data in content.items():
        found = (extents[path],) if path in extents else ()
        yield FileEntry(path, "file", 0o600, len(data), 1.5, found)


def _source(path: str, data: bytes) -> ExtentSource:
    rest = memoryview(data)

    def readinto(view: memoryview) -> int:
        nonlocal rest
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return ExtentSource(path, 0, len(data), readinto, run_bytes(len(data)))


def _facts(
    label: BackupLabel, now: datetime, start: int, content: Mapping[str, bytes], *, files: int, objects: int
) -> Head:
    return Head(
        label=label, source=SOURCE, kind=BackupKind.FULL, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(SYSTEM_IDENTIFIER, 18, (1,)), server_version=180006, timeline=1,
        start_lsn=Lsn(start * SEGMENT_BYTES + 40), stop_lsn=Lsn((start + 1) * SEGMENT_BYTES + 999),
        segment_bytes=SEGMENT_BYTES, began_at=now, ended_at=now, stopped_at=now,
        plain_bytes=sum(map(len, content.values())), stored_bytes=0, file_count=files, object_count=objects,
        compression=Compression.NONE, sealing=SealingMode.NONE, key_id="", manifest_sha256="", manifest_bytes=0,
        tablespaces=(Tablespace(16400, "/old/place"),),
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
    open_one = Segment(2, 11, SEGMENT_BYTES)
    sample.wal[f"{open_one.name}.tail"] = wal_bytes(open_one, randomness)
    area.wal.put_tail(open_one, open_one.start + _WAL_BYTES, sample.wal[f"{open_one.name}.tail"], sample.sealing)


def _mark(sample: Sample, repository: Repository, ring: KeyRing, now: datetime) -> None:
    """What administrators leave: holds, a rotated key, marks, a probe, and the audit of all that."""
    area, audit = repository.source(SOURCE), AuditLog(repository.storage)
    oldest, middle, _ = sample.labels
    for reason in ("released again", "lawsuit"):
        audit.append("campaign", "hold", f"{SOURCE} {middle}", {"reason": reason}, now=now)
        hold = area.place_hold(middle, reason=reason, owner="campaign", now=now)
        if reason == "released again":
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
