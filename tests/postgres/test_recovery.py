"""Recoveries of real backups with real WAL: every target, and every trap that PostgreSQL lays."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall.errors import Cancelled, RecoveryFailed, WalGap
from seawall.events import Advanced, Event, Observer
from seawall.model import RecoveryTarget, TargetAction, TargetKind
from seawall.postgres import recovery
from seawall.postgres.instance import Instance
from seawall.postgres.recovery import Outcome
from seawall.wal import Lsn

pytestmark = pytest.mark.postgres


@dataclass
class Story:
    """A cluster with a history: a backup, then rows 1 to 5, each with its LSN, time and transaction."""

    cluster: Any
    archive: Path
    backup: Path
    rows: dict[int, dict[str, Any]]
    copies: Callable[[], Any]

    @property
    def command(self) -> str:
        return f"cp '{self.archive}/%f' '%p'"

    def segments(self) -> list[Path]:
        return sorted(p for p in self.archive.iterdir() if len(p.name) == 24)

    def restored(self, target: RecoveryTarget, command: str | None = None, **how: Any) -> Instance:
        """The backup laid down in a new place, configured and started, but not yet watched."""
        made = self.copies()
        subprocess.run(["cp", "-a", self.backup, made.data], check=True)
        account = self.cluster.instance.account
        recovery.configure(made.data, target, command or self.command, account=account, **how)
        made.instance.start(wait=False, private=True)
        return made.instance

    def recovered(self, target: RecoveryTarget, command: str | None = None, **how: Any) -> tuple[Any, Instance]:
        instance = self.restored(target, command, **how)
        action = how.get("action", TargetAction.PROMOTE)
        return recovery.watch(instance, target, action=action, timeout=30), instance


@pytest.fixture(autouse=True)
def no_copies_left(clusters_of_module, story):
    yield
    clusters_of_module.end(keep=[story.cluster])


def rows_of(instance: Instance) -> list[int]:
    with instance.connect() as session:
        return [n for (n,) in session.execute("SELECT n FROM rows ORDER BY n")]


def row(cluster: Any, n: int) -> dict[str, Any]:
    with cluster.instance.connect() as session, session.transaction():
        session.execute("INSERT INTO rows VALUES (%s)", (n,))
        (xid,) = session.execute("SELECT pg_current_xact_id()::text").fetchone()
    time.sleep(0.03)
    said = cluster.query("SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()")[0]
    time.sleep(0.03)
    return {"xid": xid, "lsn": said[0], "time": said[1]}


@pytest.fixture(scope="module", params=[15, 17, 18])
def story(request, clusters_of_module, servers_account):
    maker = clusters_of_module
    cluster = maker(request.param, start=False, options=["--wal-segsize=1"])
    archive = cluster.home / "archive with spaces"
    archive.mkdir()
    servers_account.own(archive)
    cluster.start({"archive_mode": "on", "archive_command": f"cp %p '{archive}/%f'", "max_connections": "120"})
    cluster.query("CREATE TABLE rows (n int)")
    backup = cluster.home / "backup"
    cluster.tool(
        "pg_basebackup", "-D", backup, "-d", cluster.instance.conninfo, "-c", "fast", "-X", "none", "--no-sync"
    )
    rows = {n: row(cluster, n) for n in (1, 2)}
    cluster.query("SELECT pg_create_restore_point('two rows')")
    cluster.query("SELECT pg_switch_wal()")
    rows |= {n: row(cluster, n) for n in (3, 4)}
    cluster.query("SELECT pg_switch_wal()")
    rows[5] = row(cluster, 5)
    last = cluster.value("SELECT pg_walfile_name(pg_switch_wal() - 1)")
    cluster.wait(f"last_archived_wal >= '{last}' FROM pg_stat_archiver")
    return Story(cluster, archive, backup, rows, lambda: maker.empty(request.param))


def test_latest_replays_everything_and_promotes(story):
    reached, instance = story.recovered(RecoveryTarget())
    assert rows_of(instance) == [1, 2, 3, 4, 5]
    assert (reached.outcome, reached.timeline) == (Outcome.PROMOTED, 2)
    assert reached.lsn >= Lsn.parse(story.rows[5]["lsn"])
    assert abs(reached.last_commit_at - story.rows[5]["time"]) < timedelta(seconds=5)
    with instance.connect() as session:
        session.execute("INSERT INTO rows VALUES (100)")
        assert session.execute("SHOW archive_mode").fetchone() == ("off",)


@pytest.mark.parametrize("inclusive", [True, False])
def test_a_target_in_time_stops_between_two_commits(story, inclusive):
    target = RecoveryTarget(TargetKind.TIME, story.rows[2]["time"].isoformat(sep=" "), inclusive)
    reached, instance = story.recovered(target)
    assert rows_of(instance) == [1, 2]
    assert reached.last_commit_at <= story.rows[2]["time"]
    assert "recovery stopping before commit of transaction" in reached.stopped


def test_a_target_position_stops_there(story):
    reached, instance = story.recovered(RecoveryTarget(TargetKind.LSN, story.rows[3]["lsn"]))
    assert rows_of(instance) == [1, 2, 3]
    assert reached.lsn >= Lsn.parse(story.rows[3]["lsn"])


@pytest.mark.parametrize(("inclusive", "expected"), [(True, [1, 2, 3, 4]), (False, [1, 2, 3])])
def test_a_transaction_is_replayed_or_not_as_asked(story, inclusive, expected):
    _, instance = story.recovered(RecoveryTarget(TargetKind.XID, story.rows[4]["xid"], inclusive))
    assert rows_of(instance) == expected


def test_a_restore_point_is_found_by_its_name(story):
    reached, instance = story.recovered(RecoveryTarget(TargetKind.NAME, "two rows"))
    assert rows_of(instance) == [1, 2]
    assert 'recovery stopping at restore point "two rows"' in reached.stopped


def test_immediate_stops_as_soon_as_the_backup_is_consistent(story):
    _, instance = story.recovered(RecoveryTarget(TargetKind.IMMEDIATE))
    assert rows_of(instance) == []


def test_a_pause_lets_the_administrator_look_before_promoting(story):
    target = RecoveryTarget(TargetKind.LSN, story.rows[1]["lsn"])
    reached, instance = story.recovered(target, action=TargetAction.PAUSE)
    assert (reached.outcome, reached.timeline) == (Outcome.PAUSED, 1)
    assert rows_of(instance) == [1]
    with instance.connect() as session:
        assert session.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


def test_a_shutdown_at_the_target_is_success_and_leaves_nothing_running(story):
    target = RecoveryTarget(TargetKind.LSN, story.rows[1]["lsn"])
    reached, instance = story.recovered(target, action=TargetAction.SHUTDOWN)
    assert reached.outcome is Outcome.SHUTDOWN
    assert reached.lsn > Lsn(0)
    assert not instance.is_running()


def test_after_deconfigure_the_cluster_is_an_ordinary_one(story):
    _, instance = story.recovered(RecoveryTarget())
    instance.stop()
    recovery.deconfigure(instance.data_directory)
    instance.start(private=True)
    assert rows_of(instance) == [1, 2, 3, 4, 5]
    text = (instance.data_directory / "postgresql.auto.conf").read_text()
    assert "restore_command" not in text and not (instance.data_directory / "recovery.signal").exists()


def test_recovering_twice_from_the_same_backup_needs_no_cleaning(story):
    _, instance = story.recovered(RecoveryTarget(TargetKind.XID, story.rows[2]["xid"]))
    assert rows_of(instance) == [1, 2]
    instance.stop()
    assert [p.name for p in story.segments()] == [p.name for p in story.segments()]
    assert not (story.archive / "00000002.history").exists(), "a copy must never archive"


def test_a_gap_before_the_target_names_the_last_segment_there_is(story, tmp_path):
    segments = story.segments()
    missing = segments[-2]
    hidden = missing.with_suffix(".hidden")
    missing.rename(hidden)
    try:
        instance = story.restored(RecoveryTarget(TargetKind.LSN, story.rows[5]["lsn"]))
        with pytest.raises(WalGap, match=segments[-3].name):
            recovery.watch(instance, RecoveryTarget(TargetKind.LSN, story.rows[5]["lsn"]), timeout=30)
    finally:
        hidden.rename(missing)
    assert not instance.is_running()


@pytest.mark.parametrize(
    "target", [RecoveryTarget(TargetKind.NAME, "never made"), RecoveryTarget.at_time("2099-01-01T00:00:00Z")]
)
def test_a_target_that_never_comes_is_no_success(story, target):
    instance = story.restored(target)
    with pytest.raises(WalGap, match="before configured recovery target was reached"):
        recovery.watch(instance, target, timeout=30)


def test_a_target_before_the_backups_end_gives_the_backup_itself_so_the_plan_must_refuse_it(story):
    before = story.rows[1]["time"] - timedelta(hours=1)
    reached, instance = story.recovered(RecoveryTarget(TargetKind.TIME, before.isoformat(sep=" ")))
    assert reached.last_commit_at is None, "no replayed commit tells that this state is later than asked"
    assert rows_of(instance) == []


def test_a_storage_error_of_the_restore_command_is_not_the_end_of_wal(story):
    instance = story.restored(RecoveryTarget(), command="exit 127")
    with pytest.raises(RecoveryFailed) as caught:
        recovery.watch(instance, RecoveryTarget(), timeout=30)
    assert "storage error" in caught.value.hint


def test_an_archive_that_is_gone_is_told_by_the_first_checkpoint(story, tmp_path):
    instance = story.restored(RecoveryTarget(), command="false")
    with pytest.raises(RecoveryFailed, match="could not locate") as caught:
        recovery.watch(instance, RecoveryTarget(), timeout=30)
    assert "did not come out of the archive" in caught.value.hint


def test_settings_that_were_higher_at_the_source_are_raised(story):
    made = story.copies()
    subprocess.run(["cp", "-a", story.backup, made.data], check=True)
    with (made.data / "postgresql.auto.conf").open("a") as file:
        file.write("max_connections = 20\n")
    recovery.configure(made.data, RecoveryTarget(), story.command, account=made.instance.account)
    made.instance.start(wait=False, private=True)
    recovery.watch(made.instance, RecoveryTarget(), timeout=30)
    assert made.value("SHOW max_connections") == "120"


def test_settings_too_low_are_explained(story):
    instance = story.restored(RecoveryTarget(), settings={"max_connections": "20"})
    with pytest.raises(RecoveryFailed, match="max_connections") as caught:
        recovery.watch(instance, RecoveryTarget(), timeout=30)
        instance.stop("immediate")
    assert "higher settings" in caught.value.hint


def test_cancelling_stops_the_server(story):
    observer = Observer()
    instance = story.restored(RecoveryTarget(), command="sleep 30; exit 1")
    observer.cancel.set()
    with pytest.raises(Cancelled):
        recovery.watch(instance, RecoveryTarget(), observe=observer)
    assert not instance.is_running()


def test_a_recovery_that_hangs_is_given_up_after_its_time(story):
    instance = story.restored(RecoveryTarget(), command="sleep 30; exit 1")
    with pytest.raises(RecoveryFailed, match="made no progress"):
        recovery.watch(instance, RecoveryTarget(), timeout=1)


def test_progress_is_heard_in_bytes_of_wal(story):
    heard: list[Event] = []
    instance = story.restored(RecoveryTarget(), command=f"sleep 0.3; {story.command}")
    recovery.watch(instance, RecoveryTarget(), timeout=30, observe=Observer(heard.append))
    replayed = [event for event in heard if isinstance(event, Advanced) and event.step == "replay"]
    assert sum(event.plain_bytes for event in replayed) > 1_000_000


def test_a_debian_data_directory_starts_after_its_configuration_was_completed(story):
    made = story.copies()
    subprocess.run(["cp", "-a", story.backup, made.data], check=True)
    saved = {}
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        saved[f"/etc/postgresql/15/main/{name}"] = (made.data / name).read_text()
        (made.data / name).unlink()
    account = made.instance.account
    assert "postgresql.conf" in recovery.complete_configuration(made.data, saved, account)
    recovery.configure(made.data, RecoveryTarget(), story.command, account=account)
    made.instance.start(wait=False, private=True)
    recovery.watch(made.instance, RecoveryTarget(), timeout=30)
    assert rows_of(made.instance) == [1, 2, 3, 4, 5]


def test_a_copied_standby_ends_its_recovery(story):
    made = story.copies()
    subprocess.run(["cp", "-a", story.backup, made.data], check=True)
    (made.data / "standby.signal").touch()
    recovery.configure(made.data, RecoveryTarget(), story.command, account=made.instance.account)
    made.instance.start(wait=False, private=True)
    assert recovery.watch(made.instance, RecoveryTarget(), timeout=30).outcome is Outcome.PROMOTED


def test_a_timeline_that_does_not_come_from_the_backup_is_refused(story):
    history = story.archive / "00000007.history"
    history.write_text("1\t0/10000\tbefore the backup\n")
    target = RecoveryTarget(timeline="7")
    try:
        instance = story.restored(target)
        with pytest.raises(RecoveryFailed, match="requested timeline 7"):
            recovery.watch(instance, target, timeout=30)
    finally:
        history.unlink()
