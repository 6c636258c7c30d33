"""Whole sites for scenarios: a live cluster, its repository on disk, keys, and a receiver that carries its WAL.

`initdb` runs once for each version and is copied; keys are made once. Whatever a site starts ends with it, by pid.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from seawall import backup, restore, verify
from seawall.archive.continuity import switch_wal
from seawall.archive.receiver import Receiver
from seawall.errors import SeawallError
from seawall.events import Observer, silent
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, Compression, Head, Proof, RecoveryTarget, SealingMode, Verdict
from seawall.postgres.binaries import Account, Binaries, available
from seawall.postgres.instance import Instance
from seawall.repository import Repository, Sealing, SourceArea
from seawall.settings import SourceSettings
from seawall.storage.base import Storage
from seawall.storage.local import LocalStorage
from seawall.wal import Segment

PASSPHRASE = "a passphrase of the tests"
# Small and fast; what is asked of durability is asked of Seawall's own files, never of the servers of a test.
_CONFIGURATION = """
fsync = off
autovacuum = off
bgwriter_lru_maxpages = 0
checkpoint_timeout = '1h'
shared_buffers = '16MB'
max_connections = 20
track_commit_timestamp = on
log_line_prefix = '%m [%p] '
"""
# Segments of 1 MiB on one version: nothing may take 16 MiB for granted.
_INITDB = {17: ["--wal-segsize=1"]}


@pytest.fixture(scope="session")
def account() -> Account:
    return Account.for_servers()


@pytest.fixture(scope="session")
def ring() -> Iterator[KeyRing]:
    """An operations and an escrow key; its home is `ring.home`, its passphrase beside that in `passphrase`."""
    place = Path(tempfile.mkdtemp(prefix="seawall-keys-"))
    (place / "passphrase").write_text(PASSPHRASE)
    (place / "passphrase").chmod(0o600)
    try:
        with KeyRing(place / "ring", lambda: PASSPHRASE) as made:
            for name in ("operations", "escrow"):
                made.generate(name, f"{name}@seawall.invalid", passphrase=PASSPHRASE, stretched=False)
            yield made
    finally:
        shutil.rmtree(place)


def sealing_with(
    ring: KeyRing, mode: SealingMode = SealingMode.AES_256_GCM, compression: Compression = Compression.LZ4
) -> Sealing:
    return Sealing(mode, compression, 1, tuple(key.fingerprint for key in ring.list()), ring)


@dataclass
class Site:
    """One protected cluster. `close` ends everything that it started."""

    home: Path
    binaries: Binaries
    account: Account
    ring: KeyRing
    sealing: Sealing
    instance: Instance
    storage: Storage
    repository: Repository
    receiver: Receiver | None = None
    slot: str = ""
    _names: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    # ---- the live cluster

    @property
    def major(self) -> int:
        return self.binaries.major

    @property
    def source(self) -> SourceSettings:
        return SourceSettings(
            "shop", conninfo=self.instance.conninfo, workers=2, slot=self.slot, wal_timeout=timedelta(seconds=60)
        )

    @property
    def area(self) -> SourceArea:
        return self.repository.source("shop")

    @property
    def data(self) -> Path:
        return self.instance.data_directory

    def query(self, *statements: str, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Run statements one by one, each its own transaction; the rows of the last."""
        return rows_of(self.instance, *statements, dbname=dbname)

    def value(self, statement: str, dbname: str = "postgres") -> str:
        return str(self.query(statement, dbname=dbname)[0][0])

    def place(self, name: str) -> Path:
        """A new path that the servers' account can enter."""
        made = self.home / f"{name}-{next(self._names)}"
        made.mkdir(mode=0o755)
        return made / "data"

    # ---- WAL

    def receive(self) -> None:
        spool = self.home / f"spool-{self.slot or 'own'}"
        self.receiver = Receiver(
            self.source, self.area, self.sealing, spool, create_slot=True, tail_seconds=0.5, workers=2
        )
        self.receiver.start()
        self.until(lambda: self.receiver is not None and self.receiver.status().connected, "the receiver's connection")

    def stop_receiving(self) -> None:
        if self.receiver is not None:
            self.receiver.stop()
            self.receiver = None

    def ship(self) -> Segment:
        """Close the open segment; returns it when it is stored."""
        with self.instance.connect() as session:
            session.execute("SELECT pg_logical_emit_message(false, 'scenario', 'so that there is something')")
            segment = switch_wal(session)
        self.until(lambda: self.area.wal.stored(segment.name), f"{segment.name} in the repository")
        return segment

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            status = self.receiver.status() if self.receiver else "no receiver"
            assert time.monotonic() < give_up_at, f"{what} did not come within {seconds} s: {status}"
            time.sleep(0.02)

    def beside_wal(self) -> set[str]:
        """Names of what is stored but for WAL, of which the receiver may bring more at any time."""
        return {stat.name for stat in self.storage.list() if "/wal" not in stat.name}

    # ---- backups

    def now(self) -> datetime:
        """Now, or the first second that is free for another label."""
        labels = self.area.begun()
        newest = max((label.begun_at for label in labels), default=datetime.min.replace(tzinfo=UTC))
        return max(datetime.now(UTC), newest + timedelta(seconds=1))

    @property
    def block_maps(self) -> Path:
        """Where this site's host keeps what the next incremental builds on."""
        return self.home / "blocks"

    def backup(
        self,
        kind: BackupKind = BackupKind.FULL,
        *,
        observe: Observer | None = None,
        sealing: Sealing | None = None,
        reread: bool = False,
        resume: bool = True,
        **changes: object,
    ) -> Head:
        return backup.take(
            replace(self.source, **changes),  # type: ignore[arg-type]
            self.repository,
            sealing or self.sealing,
            kind=kind,
            block_maps=self.block_maps,
            reread=reread,
            resume=resume,
            now=self.now(),
            observe=observe or silent(),
        )

    def verify(self, label: BackupLabel, up_to: Proof = Proof.WAL_CONTINUOUS, ring: KeyRing | None = None) -> Verdict:
        return verify.check(self.area, label, ring or self.ring, up_to=up_to, now=datetime.now(UTC), observe=silent())

    # ---- restores

    def plan(
        self, target: RecoveryTarget | None = None, into: Path | None = None, **more: object
    ) -> restore.RestorePlan:
        return restore.plan(
            self.repository,
            "shop",
            target or RecoveryTarget(),
            into or self.place("restored"),
            now=datetime.now(UTC),
            **more,  # type: ignore[arg-type]
        )

    def run(
        self,
        plan: restore.RestorePlan,
        *,
        start: bool = True,
        ring: KeyRing | None = None,
        observe: Observer | None = None,
    ) -> restore.RestoreReport:
        return restore.run(
            plan,
            self.repository,
            ring=ring or self.ring,
            binaries=self.binaries,
            account=self.account,
            actor="scenario",
            now=datetime.now(UTC),
            observe=observe or silent(),
            start=start,
        )

    @contextmanager
    def restored(self, target: RecoveryTarget | None = None, **more: object) -> Iterator[Instance]:
        """The cluster restored, recovered, stopped, and started again as an administrator would."""
        plan = self.plan(target, **more)
        self.run(plan)
        with self.running(plan.destination) as instance:
            yield instance

    @contextmanager
    def running(self, directory: Path) -> Iterator[Instance]:
        instance = Instance(directory, self.binaries, self.account)
        try:
            instance.start()
            yield instance
        finally:
            instance.stop("immediate")

    def close(self) -> None:
        with suppress(SeawallError):
            self.stop_receiving()
        self.instance.stop("immediate")


def rows_of(instance: Instance, *statements: str, dbname: str = "postgres") -> list[tuple[object, ...]]:
    with instance.connect(dbname) as session:
        for statement in statements:
            cursor = session.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def copied(origin: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(origin), str(target)], check=True)


class Sites:
    """Makes sites; templates are made once for each version."""

    def __init__(self, account: Account, ring: KeyRing, home: Path) -> None:
        self._account, self._ring, self._home = account, ring, home
        self._templates: dict[tuple[int, str], Path] = {}
        self._number = 0

    def binaries(self, major: int) -> Binaries:
        found = next((b for b in available() if b.major == major), None)
        if found is None:
            pytest.fail(f"PostgreSQL {major} is not on this host; `make test` installs what tests need", pytrace=False)
        found.usable_by(self._account)
        return found

    def template(self, major: int, which: str = "own") -> Path:
        if (major, which) not in self._templates:
            place = self._home / f"template-{major}-{which}"
            place.mkdir(mode=0o755)
            self._account.own(place)
            instance = Instance(place / "data", self.binaries(major), self._account)
            instance.initdb(_INITDB.get(major, []))
            with (place / "data" / "postgresql.conf").open("a") as file:
                file.write(_CONFIGURATION)
            self._templates[major, which] = place / "data"
        return self._templates[major, which]

    def cluster(self, major: int, which: str = "own") -> Instance:
        """A started cluster; `which` names a template, and each has a system identifier of its own."""
        self._number += 1
        home = self._home / f"cluster-{self._number}"
        home.mkdir(mode=0o755)
        self._account.own(home)
        copied(self.template(major, which), home / "data")
        instance = Instance(home / "data", self.binaries(major), self._account)
        instance.start()
        return instance

    @contextmanager
    def site(self, major: int, sealing: Sealing | None = None, storage: Storage | None = None) -> Iterator[Site]:
        instance = self.cluster(major)
        try:
            home = instance.data_directory.parent / "site"
            home.mkdir(mode=0o755)
            site = self.beside(instance, home, sealing, storage)
        except BaseException:
            instance.stop("immediate")
            raise
        try:
            site.receive()
            yield site
        finally:
            site.close()
            shutil.rmtree(instance.data_directory.parent)

    def beside(
        self, instance: Instance, home: Path, sealing: Sealing | None = None, storage: Storage | None = None
    ) -> Site:
        """A site with a new repository for a cluster that runs already; nothing receives yet."""
        (home / "repository").mkdir(exist_ok=True)
        storage = storage or LocalStorage(home / "repository")
        repository = Repository.create(storage, now=datetime.now(UTC))
        how = sealing or sealing_with(self._ring)
        return Site(home, instance.binaries, self._account, self._ring, how, instance, storage, repository)


@pytest.fixture(scope="session")
def sites(account: Account, ring: KeyRing) -> Iterator[Sites]:
    home = Path(tempfile.mkdtemp(prefix="seawall-sites-"))
    home.chmod(0o755)
    try:
        yield Sites(account, ring, home)
    finally:
        shutil.rmtree(home)


@pytest.fixture(
    scope="module", params=[15, pytest.param(17, marks=pytest.mark.repeats), 18], ids=lambda major: f"pg{major}"
)
def site(request: pytest.FixtureRequest, sites: Sites) -> Iterator[Site]:
    """A site of the oldest version and of the newest, shared by a module's tests."""
    with sites.site(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def site18(sites: Sites) -> Iterator[Site]:
    with sites.site(18) as made:
        yield made


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """Every file, link and directory below a path, with what it holds; pg_wal and the recovery's own files left out."""

    def look(root: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for folder, directories, files in os.walk(root, followlinks=False):
            for name in [*directories, *files]:
                path = Path(folder, name)
                relative = str(path.relative_to(root))
                if relative.startswith("pg_wal/") or relative in _OWN_OF_RECOVERY:
                    continue
                found[relative] = _content(path)
        return found

    return look


_OWN_OF_RECOVERY = ("postgresql.auto.conf", "recovery.signal", "tablespace_map")


def _content(path: Path) -> str:
    if path.is_symlink():
        return "link"
    if path.is_dir():
        return "directory"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[tuple[object, ...]]]:
    return rows_of


@pytest.fixture(scope="session")
def sealed_with(ring: KeyRing) -> Callable[..., Sealing]:
    """`sealed_with(mode, compression)`."""
    return lambda mode, compression=Compression.LZ4: sealing_with(ring, mode, compression)


@pytest.fixture
def everything() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def now() -> Callable[[], datetime]:
    """The time in 40 days, when what is old enough may be let go."""
    return lambda: datetime.now(UTC) + timedelta(days=40)


@pytest.fixture
def randomness() -> random.Random:
    return random.Random(20261123)
