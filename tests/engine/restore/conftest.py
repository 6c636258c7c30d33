"""Repositories made by hand, without a server: backups of chosen times, positions and timelines, and WAL to match."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import mirror, upkeep
from seawall.catalog import Catalog
from seawall.codec import ExtentSource, run_bytes
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    FileEntry,
    Head,
    Health,
    SealingMode,
    Tablespace,
)
from seawall.proofs import Budget
from seawall.repository import Repository, Sealing
from seawall.repository.evidence import Evidence
from seawall.settings import PRIMARY, Settings, load
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

SYSTEM_IDENTIFIER = 7_000_000_000_000_000_001
SEGMENT_BYTES = 1 << 20
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
CONTENT: Mapping[str, bytes] = {
    "PG_VERSION": b"18\n",
    "base/1/1259": os.urandom(100_000),
    "base/1/2619": b"",
    "global/pg_control": b"c" * 8192,
    "postgresql.auto.conf": b"# nothing\n",
}


def wal_bytes(segment: Segment, system_identifier: int = SYSTEM_IDENTIFIER) -> bytes:
    """The beginning of a segment as PostgreSQL 18 writes it: a long page header."""
    header = struct.pack(
        "=HHIQI4xQII",
        0xD118,
        2,
        segment.timeline,
        segment.start.value,
        0,
        system_identifier,
        segment.segment_bytes,
        8192,
    )
    return header + bytes(4096 - len(header))


@dataclass
class Site:
    """A repository with one source, `shop`, and a clock that tests set."""

    ring: KeyRing
    now: datetime = NOON
    mode: SealingMode = SealingMode.NONE
    storage: MemoryStorage = field(init=False)
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(clock=lambda: self.now)
        self.repository = Repository.create(self.storage, now=self.now)
        self.area = self.repository.source("shop")

    @property
    def sealing(self) -> Sealing:
        return Sealing(self.mode, Compression.ZSTD, 1, tuple(key.fingerprint for key in self.ring.list()), self.ring)

    def at(self, minutes: float) -> datetime:
        return NOON + timedelta(minutes=minutes)

    def lsn(self, segment: float) -> Lsn:
        """A position within a segment: 3.5 is the middle of number 3."""
        return Lsn(int(segment * SEGMENT_BYTES))

    def backup(
        self,
        minute: float,
        start: float,
        stop: float,
        *,
        timeline: int = 1,
        health: Health = Health.GOOD,
        content: Mapping[str, bytes] = CONTENT,
        directories: Sequence[str] = ("base", "base/1", "global", "pg_tblspc"),
        links: Mapping[str, str] | None = None,
        tablespaces: tuple[Tablespace, ...] = (),
        wrong_size: str = "",
    ) -> Head:
        """A backup set that stopped at that minute after noon."""
        self.now = self.at(minute)
        label = BackupLabel.after(None, self.now)
        writer = self.area.begin(label, self.sealing, self.now)
        name, bundle = writer.bundle_writer(1)
        sources = [feeding(path, data) for path, data in content.items()]
        stored = writer.put_bundle(name, bundle, bundle.stream(sources))
        extents = {path: extent for path, _, extent in bundle.extents(name)}
        files = [FileEntry(path, "directory", 0o700) for path in directories]
        files += [FileEntry(path, "link", 0o777, link=target) for path, target in (links or {}).items()]
        for path, data in content.items():
            size = len(data) + (1 if path == wrong_size else 0)
            files.append(FileEntry(path, "file", 0o600, size, 1.5, (extents[path],) if path in extents else ()))
        specials = {"backup_label": "START WAL LOCATION\n"}
        if tablespaces:
            specials["tablespace_map"] = "16384 /old\n"
        facts = Head(
            label=label, source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT,
            cluster=ClusterIdentity(SYSTEM_IDENTIFIER, 18, (timeline,)), server_version=180006, timeline=timeline,
            start_lsn=self.lsn(start), stop_lsn=self.lsn(stop), segment_bytes=SEGMENT_BYTES, began_at=self.now,
            ended_at=self.now, stopped_at=self.now, plain_bytes=sum(map(len, content.values())), stored_bytes=0,
            file_count=len(files), object_count=1, compression=Compression.NONE, sealing=SealingMode.NONE, key_id="",
            manifest_sha256="", manifest_bytes=0, health=health, tablespaces=tablespaces,
        )  # fmt: skip
        with self.area.lease("test", "backup") as held:
            return writer.commit(
                facts, objects=[stored], specials=specials, files=sorted(files, key=lambda f: f.path), held=held
            )

    def wal(self, first: int, last: int, *, timeline: int = 1, minute: float | None = None) -> None:
        """Store segments first to last, inclusive, at that minute."""
        if minute is not None:
            self.now = self.at(minute)
        for number in range(first, last + 1):
            segment = Segment(timeline, number, SEGMENT_BYTES)
            self.area.wal.put_segment(segment.name, wal_bytes(segment), self.sealing)

    def tail(self, end: float, *, timeline: int = 1, minute: float | None = None) -> None:
        if minute is not None:
            self.now = self.at(minute)
        lsn = self.lsn(end)
        segment = Segment.containing(lsn, timeline, SEGMENT_BYTES)
        self.area.wal.put_tail(segment, lsn, wal_bytes(segment), self.sealing)

    def history(self, timeline: int, *left: tuple[int, float]) -> None:
        """The history file of a timeline: (timeline, segment position where it was left)."""
        text = "".join(f"{parent}\t{self.lsn(at)}\tno recovery target specified\n" for parent, at in left)
        self.area.wal.put_history(f"{timeline:08X}.history", text.encode(), self.sealing)

    def overwrite(self, name: str, data: bytes) -> None:
        """Damage an object as a bad disk does."""
        self.storage.delete(name)
        self.storage.put(name, [data])

    def read(self, name: str) -> bytes:
        return b"".join(self.storage.get(name))


def feeding(path: str, data: bytes) -> ExtentSource:
    rest = memoryview(data)

    def readinto(view: memoryview) -> int:
        nonlocal rest
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return ExtentSource(path, 0, len(data), readinto, run_bytes(len(data)))


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRing]:
    with KeyRing(tmp_path_factory.mktemp("ring"), lambda: "test passphrase") as made:
        for name in ("operations", "escrow"):
            made.generate(name, f"{name}@seawall.invalid", passphrase="test passphrase", stretched=False)
        yield made


@pytest.fixture
def site(ring: KeyRing) -> Site:
    return Site(ring)


@pytest.fixture
def fresh_site(ring: KeyRing) -> Callable[[], Site]:
    """Makes sites for tests that need many of them."""
    return lambda: Site(ring)


@pytest.fixture
def sealed_site(ring: KeyRing) -> Site:
    return Site(ring, mode=SealingMode.AES_256_GCM)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "restored"


@pytest.fixture
def content() -> Mapping[str, bytes]:
    return CONTENT


@pytest.fixture
def noon() -> datetime:
    return NOON


@pytest.fixture
def wal_of() -> Callable[[Segment, int], bytes]:
    """Makes the beginning of a segment of any cluster."""
    return wal_bytes


# -- with copies in other locations


@dataclass
class Place:
    """A repository in a directory with two backups, its settings, catalog, and room for locations."""

    site: Site
    root: Path
    first: Head
    second: Head

    @property
    def file(self) -> Path:
        return self.root / "seawall.toml"

    @property
    def settings(self) -> Settings:
        return load(self.file, {})

    def catalog(self) -> Catalog:
        return Catalog.open(self.settings.catalog.url)

    def repository(self, name: str = PRIMARY) -> Repository:
        return Repository.open(LocalStorage(self.root / name))

    def mirrored(self, catalog: Catalog | None, **more: Any) -> upkeep.Mirrored:
        return upkeep.mirror_source(
            self.settings, self.repository(), "shop", self.site.ring, catalog,
            **{"now": self.site.at(60), **more}, observe=Observer(),
        )  # fmt: skip

    def proved(self, catalog: Catalog, location: str, budget: Budget | None = None, **more: Any) -> upkeep.Proved:
        return upkeep.prove(
            self.settings, "shop", self.site.ring, catalog, budget or Budget(), location=location, actor="test",
            **{"now": self.site.at(120), **more}, observe=Observer(),
        )  # fmt: skip

    def objects(self, location: str = PRIMARY) -> list[Path]:
        return sorted(path for path in (self.root / location / "sources").rglob("*") if path.is_file())

    def flip(self, path: Path) -> None:
        """One bit in the middle of a file of any location."""
        file = self.root / path
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.chmod(0o644)
        file.write_bytes(bytes(data))


@pytest.fixture
def place(fresh_site: Callable[[], Any], tmp_path: Path) -> Place:
    site = fresh_site()
    site.wal(1, 3)
    first = site.backup(0, 1, 3.5)
    site.wal(4, 8)
    second = site.backup(10, 5, 7.5)
    site.area.claim(second.cluster, site.at(10))
    for name in (PRIMARY, "offsite", "vault"):
        (tmp_path / name).mkdir()
        mirror.begin(site.repository, LocalStorage(tmp_path / name))
    here = LocalStorage(tmp_path / PRIMARY)
    evidence = Evidence([site.storage], site.ring)
    plan = mirror.survey(site.repository, "shop", here, evidence)
    mirror.run(plan, site.storage, here, evidence, observe=Observer())
    (tmp_path / "seawall.toml").write_text(
        f"""
[repository]
url = "{tmp_path}/{PRIMARY}"
[sealing]
mode = "none"
keyring = "{site.ring.home if hasattr(site.ring, "home") else tmp_path / "keyring"}"
[catalog]
url = "sqlite:///{tmp_path}/catalog.db"
[server]
work_directory = "{tmp_path}/work"

# copies
[locations.offsite]
url = "{tmp_path}/offsite"

[[locations.offsite.limits]]
bytes_per_second = 900_000_000

[locations.vault]
role = "secondary-offsite"
url = "{tmp_path}/vault"

[sources.shop]
mirrors = ["offsite", "vault"]
copies = 2
copy_within_hours = 1
""",
        encoding="utf-8",
    )
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True):
        pass
    return Place(site, tmp_path, first, second)
