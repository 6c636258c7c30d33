"""TOML and environment to frozen settings.

One file describes repository, further locations, sealing, catalog and sources. Secrets are never values in it: a
passphrase or password is a file's path (mode 0600) or the name of an environment variable. `SEAWALL_CONFIG` names the
file; `SEAWALL_<SECTION>_<KEY>` overrides one value of the sections `repository`, `sealing`, `catalog` and `server`.
Amounts of bytes are whole numbers, or text with a unit such as `"500GB"` or `"64MiB"`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from seawall import limits
from seawall.errors import SettingsError
from seawall.limits import LimitWindow
from seawall.model import Compression, CopyMode, LockMode, SealingMode, WalMode, checked_name

DEFAULT_FILE = Path("/etc/seawall/seawall.toml")
_OVERRIDABLE = ("repository", "sealing", "catalog", "server")


class Confirm(StrEnum):
    """By what each new object is confirmed where the storage computes no checksum itself."""

    SIZE = "size"
    HASH = "hash"


class Locking(StrEnum):
    """Whether backups are locked in a location."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """Where backups lie.

    Args:
        url: an absolute path, `s3://bucket/prefix`, `azure://container/prefix`, `gs://bucket/prefix`,
            `sftp://user@host/path`, or `memory:`; never with a secret in it.
        bandwidth_bytes_per_second: the most that is sent to and read from the storage; 0 is no limit.
        concurrency: how many requests to the storage may be under way at once.
        attempts: how often a request that may succeed later is made in all.
        confirm: `size` compares the size of each object that was written; `hash` reads it back whole, where the storage
            computes no SHA-256 itself.
        endpoint: the service's address where it is not the vendor's own, such as `https://minio.example.com`; for Azure
            the account's, `https://ACCOUNT.blob.core.windows.net`.
        region: of an S3 bucket, such as `eu-central-1`.
        credentials_file: a file (mode 0600) with what the storage asks for (see the how-to of each); without it, the
            vendor's usual places are searched.
        deleting_credentials_file: the same of an account that may delete, which only `seawall expire`, healing,
            `seawall keys rotate` and the flows that do the same use; without it, one account does everything.
        ca_file: certificates (PEM) of your own authority, where the storage's is not one that the system knows.
        known_hosts_file: public keys of SFTP servers, as OpenSSH writes them; the account's own when omitted.
        lock: whether backups are locked there, in the primary as in copies, for as long as the location's retention
            keeps them: `auto` where the place says that it locks, or `off`.
        lock_at_most_days: locks of backups reach at most so many days ahead (and up to a week, so that they are made
            longer once a week); each run of the flow `mirror` moves them on. 0 is as far as the retention.
        lock_mode: how objects are locked where they are: `compliance` (nobody can shorten it) or `governance`.
        limits: windows with a bandwidth of their own, each a section `[[….limits]]` as below.
        cold_classes: the storage classes that lifecycle rules may move old backups to, the warmest first, such as
            `["STANDARD_IA", "GLACIER_IR"]`; the vendor's usual ones when omitted, and `["none"]` for none.
        quota_bytes: how much may lie there, where the storage itself has no end or is shared; 0 is no limit. Warnings
            count with it, and a backup or copy that does not fit is refused before it begins. WAL is never refused.
        prices: the table of `price_file` that says what this location costs.
    """

    url: str = ""
    bandwidth_bytes_per_second: int = 0
    concurrency: int = 8
    attempts: int = 5
    confirm: Confirm = Confirm.SIZE
    endpoint: str = ""
    region: str = ""
    credentials_file: Path | None = None
    deleting_credentials_file: Path | None = None
    ca_file: Path | None = None
    known_hosts_file: Path | None = None
    lock: Locking = Locking.AUTO
    lock_at_most_days: int = 0
    lock_mode: LockMode = LockMode.COMPLIANCE
    limits: tuple[LimitWindow, ...] = ()
    cold_classes: tuple[str, ...] = ()
    quota_bytes: int = 0
    prices: str = ""

    @property
    def deleting(self) -> RepositorySettings:
        """The same place, reached with the credentials that may delete where these are others."""
        return replace(self, credentials_file=self.deleting_credentials_file or self.credentials_file)


class LocationRole(StrEnum):
    """What a storage location is for; the primary is the one of `[repository]`."""

    PRIMARY = "primary"
    OFFSITE = "offsite"
    SECONDARY_OFFSITE = "secondary-offsite"


PRIMARY = "primary"


@dataclass(frozen=True, slots=True)
class LocationSettings:
    """A further place that holds copies of the repository. It takes every setting of `[repository]` too.

    Args:
        name: the section's own, `[locations.NAME]`; `primary` is the name of `[repository]` itself.
        role: `offsite` or `secondary-offsite`.
    """

    name: str
    role: LocationRole = LocationRole.OFFSITE
    storage: RepositorySettings = field(default_factory=RepositorySettings)


@dataclass(frozen=True, slots=True)
class SealingSettings:
    """How objects are compressed and sealed, and for whom.

    The key ring needs the recipients' public keys to take backups, and one of the private keys to read them.

    Args:
        mode: `aes-256-gcm` (data keys wrapped by OpenPGP), `openpgp` (each object is what `gpg -d` opens), or `none`.
        compression: `zstd`, `lz4`, `gzip`, or `none`.
        level: the codec's own level; higher is smaller and slower (of lz4, 0 and 1 are faster than its usual one).
        keyring: the GnuPG home that holds the keys, mode 0700.
        operations: the full OpenPGP fingerprint of the key for everyday restores.
        escrow: the full OpenPGP fingerprint of the key that is kept offline.
        recipients: full OpenPGP fingerprints of further keys.
        passphrase_file: a file (mode 0600) with the passphrase of the private key, only where backups are read.
        wal_key_hours: how many hours one data key seals WAL before the next is made.
    """

    mode: SealingMode = SealingMode.AES_256_GCM
    compression: Compression = Compression.ZSTD
    level: int = 1
    keyring: Path = Path("/var/lib/seawall/keyring")
    operations: str = ""
    escrow: str = ""
    recipients: tuple[str, ...] = ()
    passphrase_file: Path | None = None
    wal_key_hours: int = 24

    @property
    def all_recipients(self) -> tuple[str, ...]:
        named = (self.operations, self.escrow, *self.recipients)
        return tuple(dict.fromkeys(fingerprint for fingerprint in named if fingerprint))


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Where the catalog lies.

    Args:
        url: an SQLAlchemy URL for SQLite or PostgreSQL, without a password (libpq's passfile supplies that).
    """

    url: str = "sqlite:////var/lib/seawall/catalog.db"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """This host.

    Args:
        account: who runs the servers that root starts; `postgres`, else `nobody`, when omitted.
        work_directory: where spools, sockets and scratch instances lie; must be enterable for that account.
        time_zone: the site's, in which backup windows are meant, such as `Europe/Berlin`.
        rpo_minutes: how many minutes of changes may be lost.
        rto_hours: how many hours a restore may take.
        verify_budget: how much of the nightly verification is read at most, such as `50GB` or `30m`.
        notification_channel: the Prefect block (`seawall-notification-channel`) that alerts go to; nowhere when empty.
        price_file: what storage costs, a TOML file (see the how-to on costs); without it nothing is estimated.
    """

    account: str = ""
    work_directory: Path = Path("/var/lib/seawall/work")
    time_zone: str = "UTC"
    rpo_minutes: int = 15
    rto_hours: int = 4
    verify_budget: str = "1h"
    notification_channel: str = ""
    price_file: Path | None = None


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """Which backups are kept, besides what the point-in-time window needs; a 0 switches a rule off.

    `[retention]` holds for every source, `[sources.NAME.retention]` replaces what it names for one, and
    `[sources.NAME.retention.locations.LOCATION]` for that source's copies in one storage location.

    Args:
        window_days: every moment of so many days stays restorable; 0 is the source's `retention_days`.
        daily_days: for how many days the last backup of each day is kept; 0 is the source's `retention_days`.
        weekly_months: for how many months the last backup of each ISO week is kept.
        monthly_years: for how many years the last backup of each month is kept.
        full_days: for how many days every full backup is kept.
        differential_days: for how many days every differential backup is kept.
        incremental_days: for how many days every incremental backup is kept.
        keep_last: how many of the newest backups are kept whatever their age.
        minimum_redundancy: how many of the newest good full backups are kept whatever their age; at least 1 is.
        locations: other rules for single storage locations, as sections of their own.
    """

    window_days: int = 0
    daily_days: int = 0
    weekly_months: int = 12
    monthly_years: int = 7
    full_days: int = 7
    differential_days: int = 7
    incremental_days: int = 7
    keep_last: int = 0
    minimum_redundancy: int = 1
    locations: Mapping[str, RetentionSettings] = field(default_factory=dict)


# 0 is written `auto`.
WorkerCount: TypeAlias = int


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """One PostgreSQL cluster.

    Args:
        name: the section's own, `[sources.NAME]`: 1 to 63 characters of a-z, 0-9, `-` and `_`.
        conninfo: libpq keywords or URI without a password; `passfile` holds that.
        primary_conninfo: only where `conninfo` is a standby's: its primary, which alone can close the WAL segment that
            the end of a backup waits for. Without it a backup waits until the primary closes that by itself.
        passfile: libpq's password file (mode 0600).
        data_directory: only where the server's own answer is not the path on this host.
        bin_directory: where this major version's `postgres` and `pg_ctl` lie; searched for when omitted.
        mode: `direct` reads the files on this host, `stream` asks for them over the replication protocol.
        stream_compression: how the server compresses what mode `stream` sends, to spare the network: `gzip`, `lz4`,
            `zstd`, or `none`. It costs one of the server's processors, so it slows a fast network down.
        workers: how many readers compress and seal side by side; `auto`, or 0, is as many as there are processors for
            this process, and in mode `direct` a few more writers while these wait for the storage.
        slot: the replication slot of the WAL receiver; `seawall_<name>` when omitted.
        max_rate_bytes_per_second: the most that is read from the cluster; 0 is no limit.
        full_after_days: how old the full backup may be that incrementals build on; 0 is no limit.
        retention_days: every moment of so many days stays restorable, and the last backup of each of them is kept.
        wal: what `seawall up` runs for it: a receiver on a slot, an agent for archive_command, or nothing.
        wal_timeout: how many seconds the end of a backup waits for the WAL that makes it consistent.
        limits: windows in which another number of bytes per second is read, each a section `[[….limits]]` as below.
        mirrors: the locations that hold copies of this source's backups, such as `["offsite"]`; none when omitted.
        copies: in how many locations, the primary among them, a backup must lie before it counts as protected.
        copy_within_hours: how many hours after a backup's end its copies may be missing without an alert.
        notification_channel: the Prefect block that alerts of this source's jobs go to; the site's when empty.
        retention: which backups are kept besides, see `[retention]`.
    """

    name: str
    conninfo: str = ""
    primary_conninfo: str = ""
    passfile: Path | None = None
    data_directory: Path | None = None
    bin_directory: Path | None = None
    mode: CopyMode = CopyMode.DIRECT
    stream_compression: Compression = Compression.NONE
    workers: WorkerCount = 0
    slot: str = ""
    max_rate_bytes_per_second: int = 0
    full_after_days: int = 7
    retention_days: int = 30
    wal: WalMode = WalMode.RECEIVE
    wal_timeout: timedelta = timedelta(seconds=120)
    limits: tuple[LimitWindow, ...] = ()
    mirrors: tuple[str, ...] = ()
    copies: int = 1
    copy_within_hours: int = 24
    notification_channel: str = ""
    retention: RetentionSettings = field(default_factory=RetentionSettings)

    @property
    def slot_name(self) -> str:
        return self.slot or f"seawall_{self.name.replace('-', '_')}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a command or task needs to know; `file` is where it was read, so that it can be read again."""

    repository: RepositorySettings = field(default_factory=RepositorySettings)
    sealing: SealingSettings = field(default_factory=SealingSettings)
    catalog: CatalogSettings = field(default_factory=CatalogSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)
    locations: Mapping[str, LocationSettings] = field(default_factory=dict)
    file: Path | None = None

    def location(self, name: str) -> LocationSettings:
        """The settings of one location; `primary` is the repository's own.

        Raises:
            SettingsError: none of that name is configured.
        """
        if name == PRIMARY:
            return LocationSettings(PRIMARY, LocationRole.PRIMARY, self.repository)
        try:
            return self.locations[name]
        except KeyError as error:
            known = ", ".join((PRIMARY, *sorted(self.locations)))
            raise SettingsError(f"no location {name!r} is configured (known: {known})") from error

    def source(self, name: str) -> SourceSettings:
        """The settings of one source.

        Raises:
            SettingsError: none of that name is configured.
        """
        try:
            return self.sources[name]
        except KeyError as error:
            known = ", ".join(sorted(self.sources)) or "none"
            raise SettingsError(f"no source {name!r} is configured (known: {known})") from error

    @property
    def keeper_beat(self) -> Path:
        """What the keeper of the stack on this host touches as long as it lives; away where none runs."""
        return self.server.work_directory / "keeper.beat"

    def spool(self, source: str) -> Path:
        """Where WAL of a source waits on this host, readable for the server's account."""
        return self.server.work_directory / "spool" / source

    def block_maps(self, source: str) -> Path:
        """Where this host keeps what the next incremental backup of a source builds on."""
        return self.server.work_directory / "blocks" / source

    def agent_socket(self, source: str) -> Path:
        """Where the WAL agent of a source listens, reachable for the server's account."""
        return self.server.work_directory / "agent" / f"{source}.sock"


_S = TypeVar(
    "_S",
    RepositorySettings,
    SealingSettings,
    CatalogSettings,
    ServerSettings,
    RetentionSettings,
    SourceSettings,
)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from a TOML file and the environment.

    Args:
        path: the file; else `SEAWALL_CONFIG`, else `/etc/seawall/seawall.toml`.
        environ: the environment; the process's own when omitted.

    Raises:
        SettingsError: the file is missing or malformed, or a key or value in it is wrong.
    """
    environ = os.environ if environ is None else environ
    chosen = path or Path(environ.get("SEAWALL_CONFIG", DEFAULT_FILE))
    document = _read(chosen)
    for section in _OVERRIDABLE:
        prefix = f"SEAWALL_{section.upper()}_"
        for variable, value in environ.items():
            if variable.startswith(prefix):
                document.setdefault(section, {})[variable.removeprefix(prefix).lower()] = value
    return replace(parse(document, origin=str(chosen)), file=chosen)


def parse(document: Mapping[str, Any], *, origin: str = "settings") -> Settings:
    """Settings from an already decoded TOML document; `origin` names it in messages.

    Raises:
        SettingsError: a section, key or value is wrong.
    """
    known = {f.name for f in fields(Settings)} - {"file"}
    for section in document:
        if section not in known:
            raise SettingsError(f"{origin}: unknown section [{section}]; known are {', '.join(sorted(known))}")
    sources = _named(document, "sources", origin)
    retention = _retention(RetentionSettings(), document.get("retention", {}), f"{origin}: [retention]")
    settings = Settings(
        repository=_section(RepositorySettings(), document.get("repository", {}), f"{origin}: [repository]"),
        sealing=_section(SealingSettings(), document.get("sealing", {}), f"{origin}: [sealing]"),
        catalog=_section(CatalogSettings(), document.get("catalog", {}), f"{origin}: [catalog]"),
        server=_section(ServerSettings(), document.get("server", {}), f"{origin}: [server]"),
        retention=retention,
        sources={
            name: _source(name, values, retention, f"{origin}: [sources.{name}") for name, values in sources.items()
        },
        locations={
            name: _location(name, values, f"{origin}: [locations.{name}]")
            for name, values in _named(document, "locations", origin).items()
        },
    )
    _refuse_contradictions(settings, origin)
    return settings


def _named(document: Mapping[str, Any], section: str, origin: str) -> Mapping[str, Any]:
    found = document.get(section, {})
    if not isinstance(found, Mapping):
        raise SettingsError(f"{origin}: write each of [{section}] as a section of its own, [{section}.NAME]")
    return found


def _source(name: str, values: object, site: RetentionSettings, where: str) -> SourceSettings:
    """A source; its rules of retention replace what they name of the site's."""
    checked_name(name, what="source name")
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where}] must be a section")
    rest = {key: value for key, value in values.items() if key != "retention"}
    source = _section(SourceSettings(name=name), rest, f"{where}]")
    return replace(source, retention=_retention(site, values.get("retention", {}), f"{where}.retention]"))


def _retention(default: RetentionSettings, values: object, where: str) -> RetentionSettings:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be a section")
    own = _section(default, {key: value for key, value in values.items() if key != "locations"}, where)
    # What is said of one location rests on what the same section says of all of them.
    base = replace(own, locations={})
    found = {
        name: _section(base, rules, f"{where} {name}") for name, rules in _named(values, "locations", where).items()
    }
    return replace(own, locations={**own.locations, **found})


def _location(name: str, values: object, where: str) -> LocationSettings:
    """A location: its role, and everything else as `[repository]` has it."""
    if checked_name(name, what="location name") == PRIMARY:
        raise SettingsError(f"{where}: {PRIMARY!r} is the name of [repository] itself")
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be a section")
    try:
        role = LocationRole(values.get("role", LocationRole.OFFSITE))
    except ValueError as error:
        raise SettingsError(f"{where} role: {error}") from error
    if role is LocationRole.PRIMARY:
        raise SettingsError(f"{where}: only [repository] is the primary location")
    rest = {key: value for key, value in values.items() if key != "role"}
    storage = _section(RepositorySettings(), rest, where)
    if not storage.url:
        raise SettingsError(f"{where} has no url")
    return LocationSettings(name, role, storage)


def _refuse_contradictions(settings: Settings, origin: str) -> None:
    limits.refuse_unknown_zone(settings.server.time_zone)
    for source in settings.sources.values():
        where = f"{origin}: [sources.{source.name}]"
        for name in source.retention.locations:
            if name not in (PRIMARY, *settings.locations):
                raise SettingsError(f"{where} retention: there is no [locations.{name}]")
        for name in source.mirrors:
            if name not in settings.locations:
                raise SettingsError(f"{where} mirrors: there is no [locations.{name}]")
        if not 1 <= source.copies <= 1 + len(source.mirrors):
            raise SettingsError(
                f"{where} copies = {source.copies}: the primary and {len(source.mirrors)} mirrors are all there are"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"no settings file at {path}",
            hint="Make one with `seawall init`, or name it with --config or SEAWALL_CONFIG.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def _section(default: _S, values: object, where: str) -> _S:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be a section")
    known = {f.name for f in fields(default)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known or key == "name":
            raise SettingsError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known - {'name'}))}")
        changes[key] = _converted(getattr(default, key), value, _hint_of(default, key), f"{where} {key}")
    return replace(default, **changes)


def _hint_of(default: object, key: str) -> str:
    return str(next(f.type for f in fields(default) if f.name == key))  # type: ignore[arg-type]


def _converted(default: object, value: Any, hint: str, where: str) -> object:
    """`value` in the type that the setting has; the environment gives text for everything."""
    try:
        if isinstance(default, StrEnum):
            return type(default)(value)
        if hint.startswith("Path"):
            return _absolute(value, where)
        if hint == "timedelta":
            return timedelta(seconds=float(value))
        if hint in ("int", "WorkerCount"):
            return 0 if (hint, value) == ("WorkerCount", "auto") else _count(value, where.rpartition(" ")[2])
        if hint.startswith("tuple"):
            return limits.parsed(value) if "LimitWindow" in hint else _texts(value)
        if not isinstance(value, str):
            raise ValueError("text is wanted")
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{where} = {value!r}: {error}") from error
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(str(v) for v in value)


# Dates end with the year 9999, and begin with 1.
_MOST = {"_hours": 876_600, "_days": 36_525, "_months": 1_200, "_years": 100}


def _count(value: object, key: str) -> int:
    if "_bytes" in key:
        return limits.amount(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number is wanted")
    text = str(value).strip()
    if not text.isdecimal():
        raise ValueError("a whole number of at least 0 is wanted")
    most = next((number for suffix, number in _MOST.items() if key.endswith(suffix)), None)
    if most is not None and int(text) > most:
        raise ValueError(f"at most {most}, a hundred years, are possible")
    return int(text)


def _absolute(value: object, where: str) -> Path:
    path = Path(str(value)).expanduser()
    if not path.is_absolute():
        raise SettingsError(f"{where} = {value!r}: an absolute path is wanted")
    return path
