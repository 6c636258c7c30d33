"""A full backup, a life that goes on, and the way back to each kind of point, with the rows compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from seawall.errors import DestinationInUse, TargetUnreachable
from seawall.model import Head, RecoveryTarget, TargetKind

if TYPE_CHECKING:
    Site = Any

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.parametrize("site", [15, 17, 18], indirect=True, ids=lambda major: f"pg{major}", scope="module"),
]
DIGEST = "SELECT count(*) || ' ' || coalesce(md5(string_agg(n || what, ',' ORDER BY n)), '') FROM ledger"


@dataclass
class Story:
    """What was there at each point, and how the points are called."""

    site: Site
    head: Head
    digests: dict[str, str]
    at: datetime
    committed_at: datetime
    lsn: str
    xid: str


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    site.query(
        "CREATE TABLE ledger (n serial PRIMARY KEY, what text)",
        "INSERT INTO ledger (what) SELECT md5(n::text) FROM generate_series(1, 5000) AS n",
    )
    digests = {"backup": site.value(DIGEST)}
    head = site.backup()

    def write(what: str) -> None:
        site.query(f"INSERT INTO ledger (what) SELECT '{what}' || n FROM generate_series(1, 100) AS n")
        digests[what] = site.value(DIGEST)

    write("time")
    at = site.query("SELECT clock_timestamp()")[0][0]
    time.sleep(0.05)
    with site.instance.connect() as session:
        session.autocommit = False
        session.execute("INSERT INTO ledger (what) VALUES ('lsn')")
        lsn = str(session.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0])
        session.commit()
        digests["lsn"] = site.value(DIGEST)
        session.execute("INSERT INTO ledger (what) VALUES ('xid')")
        xid = str(session.execute("SELECT pg_current_xact_id()::text").fetchone()[0])
        session.commit()
    digests["xid"] = site.value(DIGEST)
    committed_at = site.query(f"SELECT pg_xact_commit_timestamp('{xid}'::text::xid)")[0][0]
    write("name")
    site.query("SELECT pg_create_restore_point('before the accident')")
    site.query("DELETE FROM ledger WHERE n % 3 = 0")
    digests["latest"] = site.value(DIGEST)
    site.ship()
    return Story(site, head, digests, at, committed_at, lsn, xid)


def _targets() -> dict[str, tuple[Callable[[Story], RecoveryTarget], str]]:
    """A target as it is asked for, and the point whose rows must be there."""
    return {
        "a time": (lambda s: RecoveryTarget.at_time(s.at.isoformat()), "time"),
        "the time of a commit": (lambda s: RecoveryTarget.at_time(s.committed_at.isoformat()), "xid"),
        "just before the time of a commit": (
            lambda s: RecoveryTarget.at_time(s.committed_at.isoformat(), inclusive=False),
            "lsn",
        ),
        "a commit's position": (lambda s: RecoveryTarget(TargetKind.LSN, s.lsn), "lsn"),
        "just before a commit's position": (lambda s: RecoveryTarget(TargetKind.LSN, s.lsn, inclusive=False), "time"),
        "a transaction": (lambda s: RecoveryTarget(TargetKind.XID, s.xid), "xid"),
        "just before a transaction": (lambda s: RecoveryTarget(TargetKind.XID, s.xid, inclusive=False), "lsn"),
        "a named point": (lambda _: RecoveryTarget(TargetKind.NAME, "before the accident"), "name"),
        "the latest": (lambda _: RecoveryTarget(), "latest"),
        "the end of the backup": (lambda _: RecoveryTarget(TargetKind.IMMEDIATE), "backup"),
    }


@pytest.mark.parametrize("which", _targets())
def test_a_restore_to_a_point_brings_back_the_rows_of_that_point(
    story: Story, which: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    target, point = _targets()[which]
    with story.site.restored(target(story)) as instance:
        assert rows(instance, DIGEST)[0][0] == story.digests[point]
        assert rows(instance, "SELECT pg_is_in_recovery(), current_setting('archive_mode')")[0][0] is False
        # It can live on: what was restored accepts writes and survives a checkpoint.
        rows(instance, "INSERT INTO ledger (what) VALUES ('after')", "CHECKPOINT")


def test_a_point_that_cannot_be_reached_is_refused_before_anything_is_written(story: Story) -> None:
    site = story.site
    into = site.place("refused")
    early = (story.head.stopped_at - timedelta(hours=1)).isoformat()
    for target, why in (
        (RecoveryTarget.at_time(early), "before the end of the first backup"),
        (RecoveryTarget.at_time("2099-01-01T00:00:00Z"), "in the future"),
        (RecoveryTarget(TargetKind.LSN, "0/1000"), "before the end of the first backup"),
        (RecoveryTarget(TargetKind.LSN, "FF/0"), "lies after"),
        (RecoveryTarget(timeline="7"), "timeline 7 is unknown"),
        (RecoveryTarget(timeline="nonsense"), "is no timeline"),
    ):
        with pytest.raises(TargetUnreachable, match=why) as refused:
            site.plan(target, into)
        assert refused.value.hint
        assert not into.exists()
    with pytest.raises(TargetUnreachable, match="no offset"):
        RecoveryTarget.at_time("2026-11-23 12:00:00")


def test_a_name_or_transaction_that_never_was_is_no_success(story: Story) -> None:
    for target in (RecoveryTarget(TargetKind.NAME, "never said"), RecoveryTarget(TargetKind.XID, "4000000")):
        plan = story.site.plan(target)
        with pytest.raises(TargetUnreachable, match=f"was not met in the WAL up to {plan.wal_end}") as refused:
            story.site.run(plan)
        assert target.value in refused.value.message
        assert not (plan.destination / "postmaster.pid").exists()


def test_nothing_is_restored_over_a_running_server_or_into_a_full_directory(story: Story) -> None:
    site = story.site
    with pytest.raises(DestinationInUse, match="runs in"):
        site.plan(into=site.data, delta=True)
    occupied = site.place("occupied")
    occupied.mkdir()
    (occupied / "letter.txt").write_text("dear")
    with pytest.raises(DestinationInUse, match="not empty"):
        site.plan(into=occupied)
    with pytest.raises(DestinationInUse, match="holds no data directory"):
        site.plan(into=occupied, delta=True)
    assert (occupied / "letter.txt").read_text() == "dear"
