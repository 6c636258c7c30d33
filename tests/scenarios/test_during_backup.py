"""What a cluster does while it is backed up: files grow, shrink, vanish and appear, and nothing of it is an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall import restore, retention
from seawall.errors import Cancelled
from seawall.events import Advanced, Began, Cancel, Event, Noticed, Observer
from seawall.model import CopyMode, Health, Proof, RecoveryTarget, TargetKind

if TYPE_CHECKING:
    from datetime import datetime

    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
COUNTS = (
    "SELECT (SELECT count(*) FROM grown), (SELECT count(*) FROM cut),"
    " (SELECT md5(string_agg(x, '' ORDER BY n)) FROM big)"
)


class AtFirstByte:
    """An observer's ear that acts once, when the first bytes of the copy are on their way, and keeps what it heard.

    With `moment` `Began` it acts when the files were listed and none was opened.
    """

    def __init__(self, act: Callable[[], None], moment: type[Advanced | Began] = Advanced) -> None:
        self._moment = moment
        self._act, self._acted, self.heard = act, threading.Lock(), list[Event]()
        self.failure: BaseException | None = None

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if isinstance(event, self._moment) and event.step == "copy" and self._acted.acquire(blocking=False):
            try:
                self._act()
            except BaseException as error:  # noqa: BLE001 - told by the test below; an observer must not raise
                self.failure = error


@pytest.fixture(scope="module")
def busy(site: Site) -> Site:
    """A site with some tables; `big` makes a backup last for several bundles."""
    site.query(
        "CREATE TABLE big AS SELECT n, md5(n::text) AS x FROM generate_series(1, 100000) AS n",
        "CREATE TABLE grown AS SELECT n FROM generate_series(1, 1000) AS n",
        "CREATE TABLE cut AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 20000) AS n",
        "CREATE TABLE gone AS SELECT n, repeat('y', 500) AS x FROM generate_series(1, 20000) AS n",
        "CREATE UNLOGGED TABLE unlogged AS SELECT n FROM generate_series(1, 1000) AS n",
        "CREATE DATABASE doomed",
        "CHECKPOINT",
    )
    return site


def test_a_backup_survives_what_a_busy_cluster_does_meanwhile(
    busy: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    stop = threading.Event()

    def write() -> None:
        with busy.instance.connect() as session:
            while not stop.is_set():
                session.execute("INSERT INTO grown SELECT n FROM generate_series(1, 200) AS n")
                session.execute("UPDATE big SET x = md5(x) WHERE n % 997 = 0")

    writer = threading.Thread(target=write)

    def live_on() -> None:
        writer.start()
        busy.query("DROP DATABASE doomed", "CREATE DATABASE born", "TRUNCATE cut", "DROP TABLE gone")
        busy.query("CREATE TABLE marker AS SELECT 1 AS n", dbname="born")
        busy.query("INSERT INTO unlogged SELECT n FROM generate_series(1, 5000) AS n", "VACUUM FULL big", "CHECKPOINT")
        busy.query("CREATE TEMP TABLE passing AS SELECT n FROM generate_series(1, 5000) AS n")

    with busy.instance.connect() as holder:
        holder.execute("CREATE TEMP TABLE held AS SELECT n FROM generate_series(1, 5000) AS n")
        temporary = str(holder.execute("SELECT pg_relation_filepath('held')").fetchone()[0])
        unlogged = busy.value("SELECT pg_relation_filepath('unlogged')")
        ear = AtFirstByte(live_on)
        try:
            head = busy.backup(observe=Observer(ear))
        finally:
            stop.set()
            writer.join()
        assert ear.failure is None, ear.failure
    expected = busy.query(COUNTS)
    busy.ship()
    paths = {entry.path for entry in busy.area.manifest(head.label, busy.ring).files()}
    assert temporary not in paths
    assert unlogged not in paths
    assert f"{unlogged}_init" in paths
    assert head.health is Health.GOOD
    assert busy.verify(head.label).reached is Proof.WAL_CONTINUOUS
    with busy.restored() as instance:
        assert rows(instance, COUNTS) == expected
        assert rows(instance, "SELECT count(*) FROM unlogged") == [(0,)]
        assert rows(instance, "SELECT to_regclass('gone')") == [(None,)]
        names = {name for (name,) in rows(instance, "SELECT datname FROM pg_database")}
        assert "born" in names and "doomed" not in names
        assert rows(instance, "SELECT n FROM marker", dbname="born") == [(1,)]


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_a_configuration_file_that_is_replaced_meanwhile_is_copied_whole(
    busy: Site, change: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    long = "ALTER SYSTEM SET log_filename = 'a-name-that-makes-the-file-longer-than-it-was.log'"
    short = "ALTER SYSTEM RESET log_filename"
    before, meanwhile = (short, long) if change == "grows" else (long, short)
    busy.query("ALTER SYSTEM SET work_mem = '5MB'", before)
    ear = AtFirstByte(lambda: busy.query(meanwhile) and None, Began)
    head = busy.backup(observe=Observer(ear))
    assert ear.failure is None, ear.failure
    # A cut line, or zeros behind the last one, would keep the restored server from starting.
    with busy.restored(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label) as instance:
        assert rows(instance, "SHOW work_mem") == [("5MB",)]
        ((name,),) = rows(instance, "SHOW log_filename")
        assert str(name).startswith("postgresql-" if change == "shrinks" else "a-name-that-makes-the-file-longer")


def test_a_streamed_backup_survives_it_too(busy: Site, rows: Callable[..., list[tuple[object, ...]]]) -> None:
    busy.query("CREATE TABLE streamed AS SELECT n, repeat('s', 500) AS x FROM generate_series(1, 20000) AS n")

    def live_on() -> None:
        busy.query("INSERT INTO grown SELECT n FROM generate_series(1, 5000) AS n", "TRUNCATE streamed")
        busy.query("INSERT INTO streamed VALUES (7, 'seven')", "CHECKPOINT", "CREATE DATABASE meanwhile")

    ear = AtFirstByte(live_on)
    head = busy.backup(observe=Observer(ear), mode=CopyMode.STREAM)
    assert ear.failure is None, ear.failure
    assert head.mode is CopyMode.STREAM
    expected = busy.query(COUNTS)
    busy.ship()
    assert busy.verify(head.label).reached is Proof.WAL_CONTINUOUS
    with busy.restored(label=head.label) as instance:
        assert rows(instance, COUNTS) == expected
        assert rows(instance, "SELECT n, x FROM streamed") == [(7, "seven")]
        assert rows(instance, "SELECT count(*) FROM pg_database WHERE datname = 'meanwhile'") == [(1,)]


def test_a_backup_that_is_cancelled_during_the_copy_leaves_nothing_listed(busy: Site) -> None:
    before = busy.area.labels()
    cancel = Cancel()
    observer = Observer(ear := AtFirstByte(cancel.set), cancel)
    with pytest.raises(Cancelled):
        busy.backup(observe=observer)
    assert ear.failure is None
    assert busy.area.labels() == before
    # Neither the lease nor the server's backup mode stays behind: the next one begins at once.
    assert busy.verify(busy.backup().label).good


def test_tablespaces_come_back_where_they_are_sent(busy: Site, rows: Callable[..., list[tuple[object, ...]]]) -> None:
    places = [busy.home / name for name in ("space", "zweiter Ort")]
    for number, place in enumerate(places):
        place.mkdir(mode=0o700)
        busy.account.own(place)
        busy.query(f"CREATE TABLESPACE space{number} LOCATION '{place}'")
        busy.query(f"CREATE TABLE spaced{number} TABLESPACE space{number} AS SELECT generate_series(1, 777) AS n")
    busy.backup()
    busy.query("INSERT INTO spaced0 SELECT generate_series(1, 23)")
    busy.ship()
    into = busy.place("spaced")
    new = into.parent / "other place"
    plan = busy.plan(into=into, tablespaces={str(places[0]): new})
    busy.run(plan)
    with busy.running(into) as instance:
        assert rows(instance, "SELECT (SELECT count(*) FROM spaced0), (SELECT count(*) FROM spaced1)") == [(800, 777)]
        located = {
            str(place)
            for (place,) in rows(instance, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 10000")
        }
    beside = {str(place) for _, origin, place in plan.tablespaces if origin == str(places[1])}
    assert located == {str(new)} | beside
    # The live cluster's own tablespaces were not touched.
    assert busy.value("SELECT count(*) FROM spaced0") == "800"


def test_a_delta_restore_of_a_damaged_directory_gives_the_same_files(
    busy: Site, tree: Callable[[Path], dict[str, str]], rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    if not busy.query("SELECT to_regclass('spaced1')")[0][0]:
        pytest.fail("this test needs the tablespaces of the one before it")
    head = busy.backup()
    target = RecoveryTarget(TargetKind.IMMEDIATE)
    whole = busy.plan(target, label=head.label)
    busy.run(whole, start=False)
    plan = busy.plan(target, label=head.label)
    busy.run(plan, start=False)
    spaces = {origin: place for _, origin, place in plan.tablespaces}
    files = sorted(path for path in plan.destination.rglob("base/*/*") if path.is_file() and path.stat().st_size)
    flipped, missing, shorter, longer = files[0], files[7], files[11], files[23]
    kept_time = flipped.stat()
    content = bytearray(flipped.read_bytes())
    content[4097] ^= 1
    flipped.write_bytes(content)
    # A tool that trusts times and sizes would leave this file as it is.
    os.utime(flipped, (kept_time.st_atime, kept_time.st_mtime))
    missing.unlink()
    os.truncate(shorter, shorter.stat().st_size - 100)
    with longer.open("ab") as file:
        file.write(b"more")
    (plan.destination / "base" / "stranger").write_text("not of this cluster")
    (plan.destination / "strange directory").mkdir()
    (plan.destination / "strange directory" / "file").write_text("neither")
    space = next(iter(spaces.values()))
    spaced = next(path for path in space.rglob("*") if path.is_file() and path.stat().st_size)
    spaced.unlink()
    report = busy.run(busy.plan(target, plan.destination, label=head.label, delta=True), start=False)
    assert report.reused_bytes > report.written_bytes > 0
    assert tree(plan.destination) == tree(whole.destination)
    for (_, origin, place), (_, other, reference) in zip(plan.tablespaces, whole.tablespaces, strict=True):
        assert origin == other
        assert tree(place) == tree(reference)
    # Repaired once more, now to the end, it starts.
    done = busy.run(busy.plan(None, plan.destination, label=head.label, delta=True))
    assert done.reached is not None
    with busy.running(plan.destination) as instance:
        assert rows(instance, "SELECT count(*) FROM spaced1") == [(777,)]


def test_a_corrupt_page_is_named_and_its_backup_never_counts_as_the_good_one(
    busy: Site, now: Callable[[], datetime]
) -> None:
    good = busy.backup()
    busy.query("CREATE TABLE frail AS SELECT n, repeat('z', 100) AS x FROM generate_series(1, 2000) AS n", "CHECKPOINT")
    path = busy.data / busy.value("SELECT pg_relation_filepath('frail')")
    with path.open("r+b") as file:
        file.seek(3 * 8192 + 5000)
        kept = file.read(1)
        file.seek(3 * 8192 + 5000)
        file.write(bytes([kept[0] ^ 0xFF]))
    ear = AtFirstByte(lambda: None)
    bad = busy.backup(observe=Observer(ear))
    with path.open("r+b") as file:
        file.seek(3 * 8192 + 5000)
        file.write(kept)
    assert bad.health is Health.DEGRADED
    notices = [event for event in ear.heard if isinstance(event, Noticed) and event.code == "bad-pages"]
    assert [event.severity for event in notices] == ["critical"]
    name = str(path.relative_to(busy.data))
    assert f"{name} pages 3" in notices[0].message
    entries = {entry.path: entry.bad_pages for entry in busy.area.manifest(bad.label, busy.ring).files()}
    assert entries[name] == (3,)
    assert [path for path, pages in entries.items() if pages] == [name]
    # What comes after a degraded backup must not cost the last good one.
    policy = retention.RetentionPolicy.of_days(1)
    later = retention.plan("shop", [good, bad], [], policy, now=now())
    assert good.label in {decision.label for decision in later.keep}
    plan = busy.plan()
    assert plan.head.label == good.label and plan.head.health is Health.GOOD
    forced = busy.plan(label=bad.label)
    assert isinstance(forced, restore.RestorePlan)
    assert any("wrong checksums" in warning for warning in forced.warnings)
