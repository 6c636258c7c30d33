"""Chains of backups of a cluster that lives on between them: each restores exactly what was there at its time."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall.backup import changes, compare
from seawall.errors import Damaged, ObjectMissing, StorageFull
from seawall.events import Began, Event, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import BackupKind, CopyMode, Head, Health, Proof, RecoveryTarget, SealingMode, TargetKind
from seawall.storage.base import read
from tests.scenarios.test_forced_full import stopped

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
FULL, DIFFERENTIAL, INCREMENTAL = BackupKind.FULL, BackupKind.DIFFERENTIAL, BackupKind.INCREMENTAL
DIRECT, STREAM = CopyMode.DIRECT, CopyMode.STREAM
CHAIN = ((FULL, DIRECT), (INCREMENTAL, DIRECT), (INCREMENTAL, STREAM), (DIFFERENTIAL, DIRECT), (INCREMENTAL, STREAM))
OTHER_MODE = {DIRECT: STREAM, STREAM: DIRECT}
# Of these no version says the same twice, or only a restore makes them.
OWN = {"global/pg_control", "postgresql.auto.conf"}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times count after a moment, not a minute: what is not read must be met in these tests, too."""
    monkeypatch.setattr(changes, "SETTLE_NS", 200_000_000)


class Workload:
    """A seeded life of a cluster: rows, tables, databases and tablespaces come, change and go."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.random = site, random.Random(seed)
        self.databases: list[str] = []
        self.spaces: list[str] = []
        self.number = 0
        self.tables = ["rows"]
        site.query(
            "CREATE TABLE rows AS SELECT n, repeat(md5(n::text), 6) AS x FROM generate_series(1, 60000) AS n",
            "CREATE UNIQUE INDEX rows_n ON rows (n)",
            # Never rewritten: what changes in it changes in place, and is far from whole.
            "CREATE TABLE steady AS SELECT n, repeat(md5(n::text), 6) AS x FROM generate_series(1, 50000) AS n",
            "CREATE UNLOGGED TABLE unlogged AS SELECT n FROM generate_series(1, 1000) AS n",
            "VACUUM rows",
        )

    def live(self, steps: int = 6) -> None:
        self.site.query(f"UPDATE steady SET x = md5(x) WHERE n % 4999 = {self.random.randrange(4999)}")
        for _ in range(steps):
            self.random.choice(self._steps())()

    def _steps(self) -> list[Callable[[], None]]:
        return [
            self.insert, self.update, self.update, self.delete, self.truncate, self.rewrite, self.vacuum, self.table,
            self.drop_table, self.database, self.drop_database, self.tablespace, self.drop_tablespace, self.move,
            self.unlogged,
        ]  # fmt: skip

    def _new(self, what: str) -> str:
        self.number += 1
        return f"{what}_{self.number}"

    def _table(self) -> str:
        return self.random.choice(self.tables)

    def insert(self) -> None:
        count = self.random.choice([1, 50, 5000])
        rows = f"SELECT 1000000 + n, md5(n::text) FROM generate_series(1, {count}) n"
        self.site.query(f"INSERT INTO {self._table()} {rows} ON CONFLICT DO NOTHING")

    def update(self) -> None:
        modulus = self.random.choice([3, 997, 9973])
        self.site.query(f"UPDATE {self._table()} SET x = md5(x) WHERE n % {modulus} = 0")

    def delete(self) -> None:
        self.site.query(f"DELETE FROM {self._table()} WHERE n % {self.random.choice([7, 1009])} = 1")

    def truncate(self) -> None:
        table = self._table()
        self.site.query(f"TRUNCATE {table}", f"INSERT INTO {table} VALUES (1, 'truncated'), (2, 'again')")

    def rewrite(self) -> None:
        self.site.query(self.random.choice(["VACUUM FULL rows", "CLUSTER rows USING rows_n", "REINDEX INDEX rows_n"]))

    def vacuum(self) -> None:
        # It cuts what is empty at the end of a table off, and changes its maps.
        self.site.query(f"DELETE FROM rows WHERE n > {self.random.randrange(30000, 70000)}", "VACUUM rows")

    def table(self) -> None:
        name, space = self._new("made"), ""
        if self.spaces and self.random.random() < 0.5:
            space = f"TABLESPACE {self.random.choice(self.spaces)}"
        self.site.query(f"CREATE TABLE {name} {space} AS SELECT n, md5(n::text) AS x FROM generate_series(1, 3000) n")
        self.tables.append(name)

    def drop_table(self) -> None:
        if len(self.tables) > 1:
            self.site.query(f"DROP TABLE {self.tables.pop()}")

    def move(self) -> None:
        if self.spaces:
            self.site.query(f"ALTER TABLE {self._table()} SET TABLESPACE {self.random.choice(self.spaces)}")

    def database(self) -> None:
        name = self._new("other")
        strategy = self.random.choice(["FILE_COPY", "WAL_LOG"])
        self.site.query(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY {strategy}")
        self.site.query("CREATE TABLE inside AS SELECT n FROM generate_series(1, 500) n", dbname=name)
        self.databases.append(name)

    def drop_database(self) -> None:
        if self.databases:
            self.site.query(f"DROP DATABASE {self.databases.pop()}")

    def tablespace(self) -> None:
        name = self._new("space")
        place = self.site.home.parent / name
        place.mkdir(mode=0o700)
        self.site.account.own(place)
        self.site.query(f"CREATE TABLESPACE {name} LOCATION '{place}'")
        self.spaces.append(name)

    def drop_tablespace(self) -> None:
        if self.spaces:
            name = self.spaces.pop()
            moves = [f"ALTER TABLE ALL IN TABLESPACE {name} SET TABLESPACE pg_default", "CHECKPOINT"]
            self.site.query(*moves, f"DROP TABLESPACE {name}")

    def unlogged(self) -> None:
        self.site.query("INSERT INTO unlogged SELECT n FROM generate_series(1, 2000) AS n", "CHECKPOINT")
        self.site.query("CREATE TEMP TABLE passing AS SELECT n FROM generate_series(1, 2000) AS n")


@dataclass
class Moment:
    """A backup, and what the cluster was when it was taken: by its rows and by its files."""

    head: Head
    dump: str
    pages: dict[str, str]


@dataclass
class Chain:
    site: Site
    moments: list[Moment] = field(default_factory=list)

    def backup(self, kind: BackupKind, **how: Any) -> Moment:
        """Take one of a quiet server, so that its files are at that moment what they are when it ends."""
        dump = dumped(self.site)
        head = self.site.backup(kind, **how)
        self.moments.append(Moment(head, dump, self.pages(self.site.data, head)))
        return self.moments[-1]

    def pages(self, root: Path, head: Head) -> dict[str, str]:
        """Every file of the backup as it lies below `root` and in the tablespaces that are linked from there."""
        files = self.site.area.manifest(head.label, self.site.ring).files()
        return {e.path: _content(root / e.path) for e in files if e.kind == "file" and e.path not in OWN}

    def check(self, moment: Moment, *, start: bool) -> None:
        """The backup restores to the very files, and to the very rows."""
        target = RecoveryTarget(TargetKind.IMMEDIATE)
        plan = self.site.plan(target, label=moment.head.label)
        self.site.run(plan, start=False)
        assert self.pages(plan.destination, moment.head) == moment.pages
        if start:
            # A delta restore over what was laid down reads next to nothing, and ends in a server.
            self.site.run(self.site.plan(target, plan.destination, label=moment.head.label, delta=True))
            with self.site.running(plan.destination) as instance:
                assert dumped(self.site, instance) == moment.dump
        for place in (plan.destination, *(place for _, _, place in plan.tablespaces)):
            shutil.rmtree(place)


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dumped(site: Site, instance: Any = None) -> str:
    """The whole cluster as SQL, without what differs between two dumps of the same rows."""
    of = instance or site.instance
    command = [site.binaries.path("pg_dumpall"), "--no-tablespaces", "--no-unlogged-table-data", "-d", of.conninfo]
    done = site.account.run(command, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("--", "\\restrict", "\\unrestrict")))


def own_bytes(site: Site, head: Head) -> int:
    """How many plain bytes a backup stored itself."""
    area = site.area
    own = [o for o in area.stored_objects(head.label) if area.layout.is_own(o.name, head.label)]
    return sum(stored.plain_bytes for stored in own if stored.name != area.layout.blocks(head.label))


@pytest.mark.parametrize("site", [15, 17, 18], indirect=True, ids=lambda major: f"pg{major}")
def test_every_backup_of_a_chain_restores_the_cluster_as_it_was(site: Site) -> None:
    chain, workload = Chain(site), Workload(site, seed=site.major)
    for kind, mode in CHAIN:
        # On one version the other way round: each mode builds on each.
        moment = chain.backup(kind, mode=OTHER_MODE[mode] if site.major == 17 else mode)
        assert (moment.head.kind, moment.head.reason) == (kind, "")
        workload.live()
    labels = [str(moment.head.label) for moment in chain.moments]
    assert [moment.head.prior for moment in chain.moments] == ["", labels[0], labels[1], labels[0], labels[3]]
    for moment in chain.moments:
        assert site.verify(moment.head.label).reached is Proof.WAL_CONTINUOUS
        # A server that starts costs seconds, and files that are the same make it the same server.
        chain.check(moment, start=moment is chain.moments[-1])


def test_an_incremental_of_a_busy_cluster_recovers_to_every_change(
    site: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    counts = "SELECT count(*), md5(string_agg(x, '' ORDER BY n, x)) FROM busy"
    site.query("CREATE TABLE busy AS SELECT n, md5(n::text) AS x FROM generate_series(1, 100000) AS n", "CHECKPOINT")
    site.backup()
    stop = threading.Event()

    def write() -> None:
        with site.instance.connect() as session:
            while not stop.is_set():
                session.execute("UPDATE busy SET x = md5(x) WHERE n % 1009 = 0")
                session.execute("INSERT INTO busy SELECT n, 'new' FROM generate_series(1, 100) AS n")
                session.execute("DELETE FROM busy WHERE n % 2003 = 0")
                session.execute("CHECKPOINT")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        heads = [site.backup(INCREMENTAL, mode=mode) for mode in (DIRECT, STREAM)]
    finally:
        stop.set()
        writer.join()
    expected = site.query(counts)
    site.ship()
    for head in heads:
        assert (head.kind, site.verify(head.label).reached) == (INCREMENTAL, Proof.WAL_CONTINUOUS)
        with site.restored(label=head.label) as instance:
            assert rows(instance, counts) == expected


@pytest.mark.parametrize("mode", [DIRECT, STREAM])
def test_where_nothing_changed_next_to_nothing_is_stored(site18: Site, mode: CopyMode) -> None:
    site18.query("CREATE TABLE IF NOT EXISTS still AS SELECT n, md5(n::text) AS x FROM generate_series(1, 100000) n",
                 "VACUUM", "CHECKPOINT")  # fmt: skip
    full = site18.backup(mode=mode)
    head = site18.backup(INCREMENTAL, mode=mode)
    assert own_bytes(site18, head) < 64 * 1024
    assert head.plain_bytes == pytest.approx(full.plain_bytes, rel=0.01)
    assert site18.area.needed_objects(head.label) > {
        o.name for o in site18.area.manifest(full.label, site18.ring).objects[:1]
    }


def test_a_changed_row_costs_a_run_and_not_its_table(site18: Site) -> None:
    site18.query("CREATE TABLE large AS SELECT n, repeat('x', 900) AS x FROM generate_series(1, 80000) AS n",
                 "CREATE INDEX ON large (n)", "VACUUM FREEZE large", "CHECKPOINT")  # fmt: skip
    site18.backup()
    site18.query("UPDATE large SET x = 'changed' WHERE n IN (7, 40000)")
    head = site18.backup(INCREMENTAL)
    # Some runs of the table, its index, its maps and the catalog's statistics; the table alone is 80 MB.
    assert own_bytes(site18, head) < 2_000_000


def test_files_whose_times_say_that_nothing_changed_are_not_read(site18: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site18.backup()
    read: list[str] = []
    original = compare.Comparison._digest

    def counting(self: Any, suspect: Any, *rest: Any) -> None:
        read.append(suspect.entry.path)
        original(self, suspect, *rest)

    monkeypatch.setattr(compare.Comparison, "_digest", counting)
    files = site18.backup(INCREMENTAL).file_count
    assert len(read) < files / 5
    read.clear()
    site18.backup(INCREMENTAL, reread=True)
    assert len(read) > files / 2


def test_a_file_that_was_replaced_under_its_old_size_and_time_is_found(site18: Site) -> None:
    note, other = site18.data / "note", site18.data / "other-note"
    note.write_text("as it was")
    other.write_text("as it was")
    site18.backup()
    times = note.stat()
    note.write_text("as it is!")
    os.utime(note, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.copy2(other, site18.home / "copy")
    (site18.home / "copy").write_text("replaced!")
    os.utime(site18.home / "copy", ns=(times.st_atime_ns, other.stat().st_mtime_ns))
    (site18.home / "copy").rename(other)
    head = site18.backup(INCREMENTAL)
    plan = site18.plan(label=head.label)
    site18.run(plan, start=False)
    assert (plan.destination / "note").read_text() == "as it is!"
    assert (plan.destination / "other-note").read_text() == "replaced!"


def test_a_file_system_whose_times_deceive_is_found_by_the_sample(
    site18: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site18.query("CREATE TABLE deceived AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 60000) AS n",
                 "VACUUM FREEZE deceived", "CHECKPOINT")  # fmt: skip
    site18.backup()
    site18.query("DELETE FROM deceived WHERE n % 10 = 0", "CHECKPOINT")
    # A file system that keeps the old times of what was written: only the size is still to be trusted.
    monkeypatch.setattr(compare, "unchanged_by_times", lambda found, known, *_, **__: found.size == known.size)
    heard: list[Event] = []
    chain = Chain(site18)
    moment = chain.backup(INCREMENTAL, observe=Observer(heard.append))
    said = [event for event in heard if isinstance(event, Noticed) and event.code == "times-deceive"]
    assert [event.severity for event in said] == ["critical"]
    chain.check(moment, start=False)


def test_a_host_without_private_keys_builds_on_its_own_backups_and_says_why_where_it_cannot(
    site18: Site, tmp_path: Path
) -> None:
    with KeyRing(tmp_path / "ring") as public:
        public.import_keys("\n".join(site18.ring.export_public(key.fingerprint) for key in site18.ring.list()))
        sealing = replace(site18.sealing, ring=public)
        full = site18.backup(sealing=sealing)
        built = site18.backup(INCREMENTAL, sealing=sealing)
        assert (built.kind, built.prior) == (INCREMENTAL, str(full.label))
        kept = sorted(path.name for path in site18.block_maps.glob("*.map"))
        assert kept == sorted([f"{built.label}.map", f"{full.label}.map"])
        damaged = site18.block_maps / f"{built.label}.map"
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        instead = site18.backup(INCREMENTAL, sealing=sealing)
        assert instead.kind is FULL
        assert "not known on this host" in instead.reason and str(built.label) in instead.reason
    # With a private key the repository tells what the host has lost.
    shutil.rmtree(site18.block_maps)
    again = site18.backup(INCREMENTAL)
    assert (again.kind, again.prior) == (INCREMENTAL, str(instead.label))


def test_a_prior_that_is_not_whole_is_not_built_on(site18: Site) -> None:
    full = site18.backup()
    lost = Path(site18.home, "repository", site18.area.manifest(full.label, site18.ring).objects[0].name)
    kept = lost.rename(lost.with_name("aside"))
    try:
        head = site18.backup(DIFFERENTIAL)
    finally:
        kept.rename(lost)
    assert head.kind is FULL
    assert "is not whole" in head.reason and lost.name in head.reason


def test_a_full_backup_that_stands_in_is_refused_where_only_an_incremental_would_fit(
    site18: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = site18.backup(FULL)
    before = len(site18.area.begun())
    site18.query("CREATE TABLE late AS SELECT n FROM generate_series(1, 30000) AS n")
    monkeypatch.setattr(type(site18.storage), "free_bytes", lambda _self: 1000)
    with pytest.raises(StorageFull, match=r"1,000 bytes are free, the next backup takes about \d"):
        site18.backup(INCREMENTAL)
    monkeypatch.setattr(type(site18.storage), "free_bytes", lambda _self: head.stored_bytes * 9 // 10)
    bundle = next(
        one.name for one in site18.storage.list(site18.area.layout.backup(head.label)) if "bundles" in one.name
    )
    kept = read(site18.storage, bundle)
    site18.storage.delete(bundle)
    with pytest.raises(StorageFull, match="it was not begun"):
        site18.backup(INCREMENTAL)
    site18.storage.put(bundle, [kept])
    assert site18.backup(INCREMENTAL).kind is INCREMENTAL
    assert len(site18.area.begun()) == before + 1, "what was refused left nothing"


def test_an_object_that_vanishes_while_an_incremental_runs_keeps_it_from_being_listed(site18: Site) -> None:
    full = site18.backup()
    lost = Path(site18.home, "repository", site18.area.manifest(full.label, site18.ring).objects[0].name)
    before = site18.area.labels()

    def lose(event: Event) -> None:
        if isinstance(event, Began) and event.step == "copy":
            lost.rename(lost.with_name("aside"))

    with pytest.raises((ObjectMissing, Damaged), match=lost.name):
        site18.backup(INCREMENTAL, observe=Observer(lose))
    lost.with_name("aside").rename(lost)
    assert site18.area.labels() == before
    # What the failed one left does not keep the next from being taken.
    assert site18.backup(INCREMENTAL).kind is INCREMENTAL


def test_a_corrupt_page_of_a_changed_run_degrades_the_incremental_and_nothing_builds_on_it(site18: Site) -> None:
    site18.query(
        "CREATE TABLE frail AS SELECT n, repeat('z', 100) AS x FROM generate_series(1, 9000) AS n", "CHECKPOINT"
    )
    full = site18.backup()
    path = site18.data / site18.value("SELECT pg_relation_filepath('frail')")
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(3 * 8192 + 5000)
        file.write(bytes([sound[3 * 8192 + 5000] ^ 0xFF]))
    for mode in (DIRECT, STREAM):
        bad = site18.backup(INCREMENTAL, mode=mode)
        assert (bad.kind, bad.health, bad.prior) == (INCREMENTAL, Health.DEGRADED, str(full.label))
        pages = {e.path: e.bad_pages for e in site18.area.manifest(bad.label, site18.ring).files() if e.bad_pages}
        assert pages == {str(path.relative_to(site18.data)): (3,)}
    with path.open("r+b") as file:
        file.write(sound)
    good = site18.backup(INCREMENTAL)
    assert (good.health, good.prior) == (Health.GOOD, str(full.label))


def test_another_sealing_mode_makes_the_next_backup_full(site18: Site, sealed_with: Callable[..., Any]) -> None:
    site18.backup()
    head = site18.backup(INCREMENTAL, sealing=sealed_with(SealingMode.NONE))
    assert head.kind is FULL
    assert "sealed in mode aes-256-gcm" in head.reason
    assert site18.backup(INCREMENTAL, sealing=sealed_with(SealingMode.NONE)).kind is INCREMENTAL


@pytest.mark.repeats
@pytest.mark.parametrize(("major", "seed"), [(15, 101), (17, 102), (18, 103), (18, 104)])
def test_every_backup_of_a_random_chain_is_the_cluster_by_pages_and_by_rows(sites: Any, major: int, seed: int) -> None:
    chance = random.Random(seed)
    # By seed the server tells what changed (17 and later), or the files are compared.
    with sites.site(major) as site:
        if major >= 17 and seed % 2 == 0:
            # Hints that no WAL tells of are in no summary either, and this test compares every byte.
            site.query("ALTER SYSTEM SET summarize_wal = on", "ALTER SYSTEM SET wal_log_hints = on")
            stopped(site)
        chain, workload = Chain(site), Workload(site, seed)
        chain.backup(FULL, mode=chance.choice([DIRECT, STREAM]))
        switched_before = chance.randrange(1, 5)
        for number in range(1, 6):
            workload.live(8)
            if number == switched_before:
                switch_checksums(site)
            moment = chain.backup(chance.choice([INCREMENTAL, DIFFERENTIAL]), mode=chance.choice([DIRECT, STREAM]))
            assert (moment.head.kind is FULL) == (number == switched_before), moment.head.reason
        for moment in chain.moments:
            chain.check(moment, start=True)


def switch_checksums(site: Site) -> None:
    switch = "--disable" if site.value("SHOW data_checksums") == "on" else "--enable"
    stopped(site, site.binaries.path("pg_checksums"), switch, "-D", site.data)
