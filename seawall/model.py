"""The nouns of backup and recovery as frozen values.

Pure data: nothing here reads a clock, a file or a network. Enum values are their wire form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from seawall.errors import ClockWentBackwards, NameRefused, TargetUnreachable
from seawall.wal import Lsn

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LABEL = re.compile(r"(\d{8}T\d{6}Z)-(full|diff|incr)(?:-on-(\d{8}T\d{6}Z))?")
_LABEL_TIME = "%Y%m%dT%H%M%SZ"


def checked_name(name: str, *, what: str = "name") -> str:
    """`name` itself, if storage paths, SQL and URLs can carry it safely.

    Args:
        name: 1 to 63 characters of a-z, 0-9, `-` and `_`, beginning with a letter or digit.
        what: what the name is of, for the message.

    Raises:
        NameRefused: it has other characters or another length.
    """
    if _NAME.fullmatch(name) is None:
        raise NameRefused(f"{what} {name!r} is refused")
    return name


class BackupKind(StrEnum):
    FULL = "full"
    DIFFERENTIAL = "differential"
    INCREMENTAL = "incremental"


class SealingMode(StrEnum):
    AES_256_GCM = "aes-256-gcm"
    OPENPGP = "openpgp"
    NONE = "none"


class Compression(StrEnum):
    NONE = "none"
    GZIP = "gzip"
    LZ4 = "lz4"
    ZSTD = "zstd"


class CopyMode(StrEnum):
    """How a cluster is read: its files on the host itself, or `BASE_BACKUP` over the replication protocol."""

    DIRECT = "direct"
    STREAM = "stream"


class LockMode(StrEnum):
    """How firmly an immutable object is locked: against everybody, or against all but those who may lift it."""

    COMPLIANCE = "compliance"
    GOVERNANCE = "governance"


class WalMode(StrEnum):
    """How WAL comes into the repository: streamed on a slot, pushed by archive_command, or by somebody else."""

    RECEIVE = "receive"
    ARCHIVE_COMMAND = "archive-command"
    EXTERNAL = "external"


class Health(StrEnum):
    """`DEGRADED`: complete, but pages with wrong checksums were in it when it was taken."""

    GOOD = "good"
    DEGRADED = "degraded"


_KIND_TOKENS = {BackupKind.FULL: "full", BackupKind.DIFFERENTIAL: "diff", BackupKind.INCREMENTAL: "incr"}


@dataclass(frozen=True, slots=True, order=True)
class BackupLabel:
    """The name of a backup set: when it began, its kind, and the full backup that it builds on.

    Sorts by time. Seconds are enough because one source has one writer and labels never repeat.
    """

    begun_at: datetime
    kind: BackupKind = BackupKind.FULL
    base_begun_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.begun_at.tzinfo is None or self.begun_at.microsecond:
            raise ValueError("a label's time is aware and of whole seconds")
        if (self.kind is BackupKind.FULL) != (self.base_begun_at is None):
            raise ValueError("a full backup has no base, the other kinds have one")

    @classmethod
    def parse(cls, text: str) -> BackupLabel:
        """Read a label such as `20261123T020000Z-full`.

        Raises:
            NameRefused: the text is no label.
        """
        match = _LABEL.fullmatch(text)
        if match is None:
            raise NameRefused(
                f"{text!r} is no backup label",
                hint="A label looks like 20261123T020000Z-full; `seawall list` shows them.",
            )
        kind = next(k for k, token in _KIND_TOKENS.items() if token == match[2])
        try:
            return cls(_label_time(match[1]), kind, _label_time(match[3]) if match[3] else None)
        except ValueError as error:
            raise NameRefused(f"{text!r} is no backup label: {error}") from error

    @classmethod
    def after(
        cls,
        newest: BackupLabel | None,
        now: datetime,
        kind: BackupKind = BackupKind.FULL,
        base: BackupLabel | None = None,
    ) -> BackupLabel:
        """The label of a backup that begins at `now`, which must be later than the newest one.

        Raises:
            ClockWentBackwards: `now` is not after `newest`.
        """
        begun_at = now.astimezone(UTC).replace(microsecond=0)
        if newest is not None and begun_at <= newest.begun_at:
            raise ClockWentBackwards(
                f"this host says it is {begun_at.isoformat()}, but backup {newest} already exists",
            )
        return cls(begun_at, kind, base.begun_at if base else None)

    def __str__(self) -> str:
        text = f"{self.begun_at.strftime(_LABEL_TIME)}-{_KIND_TOKENS[self.kind]}"
        return text if self.base_begun_at is None else f"{text}-on-{self.base_begun_at.strftime(_LABEL_TIME)}"


def _label_time(text: str) -> datetime:
    # Not strptime: labels are read by the hundred, it takes fifty times as long, and its import 15 ms.
    return datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class Tablespace:
    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """What makes a cluster this one and no other; must equal the repository's record."""

    system_identifier: int
    major_version: int
    timelines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A live cluster as `postgres.inspect` found it.

    `wal_position` is where it writes, or replays, just now; `summarizes_wal` whether it can tell what changed.
    """

    system_identifier: int
    server_version: int
    timeline: int
    segment_bytes: int
    block_bytes: int
    checksums: bool
    in_recovery: bool
    data_directory: str
    tablespaces: tuple[Tablespace, ...] = ()
    databases: Mapping[str, int] = field(default_factory=dict)
    extensions: tuple[tuple[str, str, str], ...] = ()
    configuration_files: tuple[str, ...] = ()
    total_bytes: int = 0
    wal_position: Lsn | None = None
    summarizes_wal: bool = False

    @property
    def major_version(self) -> int:
        return self.server_version // 10000

    @property
    def identity(self) -> ClusterIdentity:
        return ClusterIdentity(self.system_identifier, self.major_version, (self.timeline,))


class Extent(NamedTuple):
    """Where a part of a file's bytes lies: `length` plain bytes at plain offset `offset` of an object.

    `blake3` is their hash by runs of `run_bytes` (`seawall.codec.runs`), 32 bytes in hex. A tuple, because the
    manifest of a long chain has hundreds of thousands, and a frozen dataclass takes four times as long to make.
    """

    object: str
    offset: int
    length: int
    blake3: str
    run_bytes: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file, directory or link of a backup set.

    `path` is relative to the data directory and may begin with `pg_tblspc/<oid>/`; `kind` is file, directory
    or link. A file of no bytes has no extents.
    """

    path: str
    kind: str
    mode: int
    size_bytes: int = 0
    modified_at: float = 0.0
    extents: tuple[Extent, ...] = ()
    link: str = ""
    bad_pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as its manifest refers to it; both hashes are SHA-256/BLAKE3 in hex."""

    name: str
    stored_bytes: int
    stored_sha256: str
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """What can be known of a backup set without any key."""

    label: BackupLabel
    source: str
    kind: BackupKind
    mode: CopyMode
    cluster: ClusterIdentity
    server_version: int
    timeline: int
    start_lsn: Lsn
    stop_lsn: Lsn
    segment_bytes: int
    began_at: datetime
    ended_at: datetime
    stopped_at: datetime
    plain_bytes: int
    stored_bytes: int
    file_count: int
    object_count: int
    compression: Compression
    sealing: SealingMode
    key_id: str
    manifest_sha256: str
    manifest_bytes: int
    health: Health = Health.GOOD
    prior: str = ""
    reason: str = ""
    checksums: bool = False
    tablespaces: tuple[Tablespace, ...] = ()


class TargetKind(StrEnum):
    LATEST = "latest"
    IMMEDIATE = "immediate"
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"


class TargetAction(StrEnum):
    """What a server does when its recovery reaches the target."""

    PROMOTE = "promote"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """Where recovery stops.

    Args:
        kind: see `TargetKind`; `LATEST` replays everything there is.
        value: the target in PostgreSQL's notation, empty for latest and immediate; a time carries its offset.
        inclusive: whether the target itself is still replayed.
        timeline: a number, `latest` or `current`.
    """

    kind: TargetKind = TargetKind.LATEST
    value: str = ""
    inclusive: bool = True
    timeline: str = "latest"

    @classmethod
    def at_time(cls, text: str, *, inclusive: bool = True, timeline: str = "latest") -> RecoveryTarget:
        """A target at a time that states its offset, such as `2026-11-23 14:05:00+01:00` or `…Z`.

        Raises:
            TargetUnreachable: the text is no time, or has no offset (whose noon would be meant?).
        """
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise TargetUnreachable(
                f"{text!r} is no time", hint="Write it as 2026-11-23T14:05:00+01:00 or 2026-11-23T13:05:00Z."
            ) from error
        if moment.tzinfo is None:
            raise TargetUnreachable(
                f"the time {text!r} has no offset from UTC", hint="Add one: Z for UTC, or such as +01:00."
            )
        return cls(TargetKind.TIME, moment.astimezone(UTC).isoformat(sep=" "), inclusive, timeline)

    @property
    def moment(self) -> datetime | None:
        """The target time in UTC, or None if the target is of another kind."""
        return datetime.fromisoformat(self.value) if self.kind is TargetKind.TIME else None

    @property
    def lsn(self) -> Lsn | None:
        return Lsn.parse(self.value) if self.kind is TargetKind.LSN else None


class Proof(StrEnum):
    """How far a backup set was proved, each level including those before it."""

    PRESENT = "present"
    HASH_GOOD = "hash-good"
    DECRYPTABLE = "decryptable"
    WAL_CONTINUOUS = "wal-continuous"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a stable code, the object or file concerned, and a sentence."""

    code: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification proved of one backup set; `proved` says how far each object that was read is."""

    label: BackupLabel
    reached: Proof | None
    findings: tuple[Finding, ...]
    objects: int
    stored_bytes: int
    plain_bytes: int
    took: timedelta
    checked_at: datetime
    proved: Mapping[str, Proof] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class Hold:
    """A backup kept without regard to policy, by someone, for a reason, perhaps until an end.

    `through` is the last segment of WAL that is kept with it, so that the moments after the backup's own end stay
    restorable too; empty for the WAL that makes the backup consistent and no more.
    """

    id: str
    label: BackupLabel
    reason: str
    owner: str
    placed_at: datetime
    until: datetime | None = None
    through: str = ""
