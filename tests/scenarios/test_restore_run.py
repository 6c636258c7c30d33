"""What a restore does around PostgreSQL: who it connects as, what it leaves running, and what it does without."""

from __future__ import annotations

import queue
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from seawall import restore
from seawall.archive.agent import Agent
from seawall.archive.commands import restore_command
from seawall.errors import BinariesMissing, Cancelled, TargetUnreachable, UsageError
from seawall.events import Ended, Event, Noticed, Observer
from seawall.model import RecoveryTarget, TargetAction, TargetKind
from seawall.postgres import recovery
from seawall.postgres.control import read_control
from seawall.postgres.instance import Instance, free_port
from seawall.postgres.recovery import Outcome
from seawall.repository import Repository
from seawall.storage.wrappers import ReadOnly

if TYPE_CHECKING:
    Site = Any
    Rows = Callable[..., list[tuple[object, ...]]]

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
COUNT = "SELECT count(*) FROM ledger"


@dataclass
class Story:
    site: Site
    lsn: str
    rows_at_lsn: int
    rows_at_end: int
    last_commit_at: datetime


@pytest.fixture(scope="module")
def story(site18: Site) -> Story:
    site = site18
    site.query(
        "CREATE TABLE ledger AS SELECT n FROM generate_series(1, 1000) AS n",
        "CREATE EXTENSION amcheck",
        # One that was installed at the source and is not here.
        "SET allow_system_table_mods = on",
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
        " VALUES (99999, 'ghost', 10, 2200, true, '2.1')",
    )
    site.backup()
    site.query("INSERT INTO ledger SELECT n FROM generate_series(1, 10) AS n")
    lsn = site.value("SELECT pg_current_wal_insert_lsn()")
    site.query("INSERT INTO ledger SELECT n FROM generate_series(1, 5) AS n")
    last = site.query("SELECT clock_timestamp()")[0][0]
    time.sleep(1.5)
    site.ship()
    site.stop_receiving()
    return Story(site, lsn, 1010, 1015, last)


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture(autouse=True)
def temporary(story: Story, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test alone, where the servers' account can go."""
    place = Path(tempfile.mkdtemp(prefix="t", dir=story.site.home))
    place.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def leftovers() -> list[str]:
    return [path.name for path in Path(tempfile.gettempdir()).iterdir()]


def run(story: Story, plan: restore.RestorePlan, **more: Any) -> restore.RestoreReport:
    site = story.site
    arguments: dict[str, Any] = {
        "ring": site.ring,
        "binaries": site.binaries,
        "account": site.account,
        "actor": "scenario",
        "now": datetime.now(UTC),
        "observe": Observer(),
    }
    return restore.run(plan, more.pop("repository", site.repository), **(arguments | more))


def test_the_report_tells_what_was_reached_and_how_long_it_took(story: Story) -> None:
    report = run(story, story.site.plan())
    assert report.reached is not None
    assert report.reached.outcome.value == "promoted"
    assert report.reached.timeline == 2
    assert report.files > 500
    assert report.written_bytes == story.site.area.heads()[-1].plain_bytes
    assert 0 < report.seconds["files"] < report.seconds["total"]
    assert report.seconds["total"] == pytest.approx(report.seconds["files"] + report.seconds["recovery"], abs=0.01)
    assert report.port == 0
    assert not leftovers()


def test_an_extension_that_is_not_installed_here_is_named(story: Story, heard: list[Event]) -> None:
    run(story, story.site.plan(), observe=Observer(heard.append))
    (said,) = [event for event in heard if isinstance(event, Noticed) and event.code == "extension-missing"]
    assert said.message.endswith("lacks extensions that the backup uses: ghost 2.1 (database postgres)")


def test_with_a_port_a_server_is_left_running_that_archives_nothing(story: Story, rows: Rows) -> None:
    plan, port = story.site.plan(), free_port()
    assert run(story, plan, port=port).port == port
    instance = Instance(plan.destination, story.site.binaries, story.site.account)
    try:
        assert instance.is_ready()
        instance.port = port
        assert rows(instance, COUNT) == [(story.rows_at_end,)]
        assert rows(instance, "SHOW archive_mode") == [("off",)]
    finally:
        instance.stop("immediate")


def test_without_a_start_the_server_recovers_later_from_an_agent(story: Story, rows: Rows) -> None:
    site = story.site
    socket_path = site.place("agent").with_name("agent.sock")
    socket_path.parent.chmod(0o755)
    plan = site.plan(RecoveryTarget(TargetKind.LSN, story.lsn), action=TargetAction.PAUSE)
    report = run(story, plan, start=False, socket_path=socket_path)
    assert report.reached is None
    spool = socket_path.with_name("spool")
    with Agent(site.area, None, site.ring, spool, socket_path, accounts=frozenset({site.account.uid})):
        with site.running(plan.destination) as instance:
            site.until(
                lambda: rows(instance, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)],
                "the pause at the target",
            )
            assert rows(instance, COUNT) == [(story.rows_at_lsn,)]
            rows(instance, "SELECT pg_wal_replay_resume()")
            site.until(lambda: rows(instance, "SELECT pg_is_in_recovery()") == [(False,)], "the promotion")


class Paused:
    """A restore that pauses, in a thread of its own, until somebody lets it go on."""

    def __init__(self, story: Story) -> None:
        self.plan = story.site.plan(RecoveryTarget(TargetKind.LSN, story.lsn), action=TargetAction.PAUSE)
        self.said: queue.Queue[str] = queue.Queue()
        self.observe = Observer(self._hear)
        self._pool = ThreadPoolExecutor(1)
        self.report = self._pool.submit(run, story, self.plan, observe=self.observe)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Noticed) and event.code == "recovery-paused":
            self.said.put(event.message)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Asked exactly as the administrator is told to."""
        (conninfo,) = re.findall(r"psql -d '([^']*)'", self.said.get(timeout=60))
        with psycopg.connect(conninfo, autocommit=True) as session:
            cursor = session.execute(statement)  # type: ignore[call-overload]
            return list(cursor.fetchall())


def test_a_paused_recovery_waits_for_a_look_and_is_promoted_when_it_is_let_go_on(story: Story, rows: Rows) -> None:
    paused = Paused(story)
    (row,) = paused.query(f"SELECT pg_is_in_recovery(), ({COUNT}), pg_wal_replay_resume()::text")
    assert row[:2] == (True, story.rows_at_lsn)
    report = paused.report.result(timeout=60)
    assert report.reached is not None
    assert report.reached.outcome is Outcome.PROMOTED
    assert "recovery stopping after WAL location" in report.reached.stopped
    assert "restore_command" not in (paused.plan.destination / "postgresql.auto.conf").read_text()
    with story.site.running(paused.plan.destination) as instance:
        assert rows(instance, COUNT) == [(story.rows_at_lsn,)]
    assert not leftovers()


def test_a_paused_recovery_that_is_stopped_stays_unpromoted(story: Story) -> None:
    paused = Paused(story)
    assert paused.query("SELECT pg_is_in_recovery()") == [(True,)]
    paused.observe.cancel.set()
    with pytest.raises(Cancelled):
        paused.report.result(timeout=60)
    instance = Instance(paused.plan.destination, story.site.binaries, story.site.account)
    assert not instance.is_running()
    assert read_control(paused.plan.destination).timeline == 1
    assert (paused.plan.destination / "recovery.signal").exists()


def test_a_recovery_that_shuts_down_leaves_an_unpromoted_directory_that_goes_on_later(story: Story, rows: Rows) -> None:
    site = story.site
    socket_path = site.place("agent").with_name("agent.sock")
    socket_path.parent.chmod(0o755)
    target = RecoveryTarget(TargetKind.LSN, story.lsn)
    plan = site.plan(target, action=TargetAction.SHUTDOWN)
    report = run(story, plan, socket_path=socket_path)
    assert report.reached is not None
    assert (report.reached.outcome, report.reached.timeline) == (Outcome.SHUTDOWN, 1)
    assert str(socket_path) in (plan.destination / "postgresql.auto.conf").read_text()
    assert not leftovers()
    # Somebody looked at other evidence meanwhile and wants a later moment: nothing has to be laid down again.
    recovery.configure(plan.destination, RecoveryTarget(), restore_command(socket_path), account=site.account)
    spool = socket_path.with_name("spool")
    with Agent(site.area, None, site.ring, spool, socket_path, accounts=frozenset({site.account.uid})):
        with site.running(plan.destination) as instance:
            site.until(lambda: rows(instance, "SELECT pg_is_in_recovery()") == [(False,)], "the promotion")
            assert rows(instance, COUNT) == [(story.rows_at_end,)]


def test_what_makes_no_sense_at_a_target_is_refused_before_anything_is_written(story: Story) -> None:
    with pytest.raises(UsageError, match="no target at which to pause"):
        story.site.plan(action=TargetAction.PAUSE)
    plan = story.site.plan(RecoveryTarget(TargetKind.LSN, story.lsn), action=TargetAction.SHUTDOWN)
    with pytest.raises(UsageError, match="cannot be left running"):
        run(story, plan, port=free_port())
    assert not plan.destination.exists()


def test_a_repository_that_cannot_be_written_to_is_enough(story: Story, heard: list[Event]) -> None:
    frozen = Repository.open(ReadOnly(story.site.storage))
    report = run(story, story.site.plan(), repository=frozen, observe=Observer(heard.append))
    assert report.reached is not None
    assert "not-audited" in [event.code for event in heard if isinstance(event, Noticed)]


def test_a_time_after_the_last_commit_is_refused_with_the_way_out(story: Story) -> None:
    """The segment was stored a second after the last commit: no commit proves that time."""
    target = RecoveryTarget.at_time((story.last_commit_at + timedelta(seconds=1)).isoformat())
    plan = story.site.plan(target)
    with pytest.raises(TargetUnreachable, match="no commit after") as refused:
        run(story, plan)
    assert "Restore to `latest`" in refused.value.hint
    assert not (plan.destination / "postmaster.pid").exists()
    assert not leftovers()


def test_programs_of_another_version_are_refused_before_a_byte_is_written(story: Story, sites: Any) -> None:
    plan = story.site.plan()
    with pytest.raises(BinariesMissing, match="the backup is of 18"):
        run(story, plan, binaries=sites.binaries(15))
    assert not plan.destination.exists()


@pytest.mark.parametrize("when", ["during the copy", "when replay begins"])
def test_cancelling_leaves_no_server_no_agent_and_nothing_that_could_start_half(story: Story, when: str) -> None:
    def hear(event: Event) -> None:
        if when == "during the copy" or (isinstance(event, Ended) and event.step == "restore"):
            stopping.cancel.set()

    stopping = Observer(hear)
    plan = story.site.plan()
    with pytest.raises(Cancelled):
        run(story, plan, observe=stopping)
    assert not Instance(plan.destination, story.site.binaries, story.site.account).is_running()
    assert (plan.destination / "global/pg_control").exists() == (when != "during the copy")
    assert not leftovers()


@pytest.fixture
def renamed(sites: Any) -> Iterator[Any]:
    """A cluster whose superuser is not called postgres."""
    with sites.site(18) as site:
        site.query('CREATE ROLE "the ""big"" boss" SUPERUSER LOGIN')
        site.stop_receiving()
        site.instance.user = 'the "big" boss'
        site.query("ALTER ROLE postgres RENAME TO former", "ALTER ROLE former NOLOGIN")
        site.receive()
        yield site


def test_a_superuser_of_any_name_is_found(renamed: Any) -> None:
    renamed.backup()
    renamed.query("CREATE TABLE later ()")
    renamed.ship()
    report = renamed.run(renamed.plan())
    assert report.reached.outcome.value == "promoted"
