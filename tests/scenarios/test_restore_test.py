"""The restore test: it proves what is good, says what is not, and leaves nothing behind either way."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall import restoretest
from seawall.errors import Cancelled, SeawallError
from seawall.events import Began, Cancel, Event, Observer, silent
from seawall.model import RecoveryTarget, TargetKind
from seawall.restoretest import Assertion

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture(scope="module")
def ready(site: Site) -> Site:
    place = site.home / "space"
    place.mkdir(mode=0o700)
    site.account.own(place)
    site.query(f"CREATE TABLESPACE space LOCATION '{place}'")
    site.query(
        'CREATE TABLE "Strange ""Name" AS SELECT n FROM generate_series(1, 500) AS n',
        "CREATE TABLE t (n int PRIMARY KEY) TABLESPACE space",
        "INSERT INTO t SELECT generate_series(1, 1000)",
        "CREATE DATABASE other",
    )
    site.query("CREATE TABLE o AS SELECT 1 AS n", dbname="other")
    site.backup()
    site.query("INSERT INTO t SELECT generate_series(1001, 1100)")
    site.ship()
    site.query("INSERT INTO t SELECT generate_series(1101, 1200)")
    site.ship()
    return site


@pytest.fixture
def parent(ready: Site) -> Path:
    made = ready.home / "scratch"
    made.mkdir(exist_ok=True)
    made.chmod(0o755)
    return made


def examined(site: Site, parent: Path, observe: Observer | None = None, **more: Any) -> restoretest.RestoreTestReport:
    return restoretest.run(
        site.repository,
        "shop",
        ring=site.ring,
        binaries=site.binaries,
        account=site.account,
        parent=parent,
        now=datetime.now(UTC),
        randomness=random.Random(7),
        observe=observe or silent(),
        **more,
    )


def _servers_below(parent: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if str(parent).encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_good_backup_passes_with_counts_checks_and_a_measured_time(ready: Site, parent: Path) -> None:
    good = [Assertion("postgres", "SELECT count(*) FROM t", "1200"), Assertion("other", "SELECT n FROM o", "1")]
    report = examined(ready, parent, target=RecoveryTarget(), assertions=good)
    assert report.good, report.findings
    assert report.row_counts == {
        'postgres: public."Strange ""Name"': 500,
        "postgres: public.t": 1200,
        "other: public.o": 1,
    }
    assert report.checks["pages"] > 1000
    assert report.checks["assertions"] == 2
    assert 0 < report.achieved_rto.total_seconds() < 120
    assert report.target.kind is TargetKind.LATEST
    assert list(parent.iterdir()) == []
    assert _servers_below(parent) == []


def test_a_failing_assertion_is_a_finding_and_leaves_neither_directory_nor_server(ready: Site, parent: Path) -> None:
    bad = [
        Assertion("postgres", "SELECT count(*) FROM t", "13"),
        Assertion("postgres", "SELECT nonsense", "1"),
        Assertion("nowhere", "SELECT 1", "1"),
    ]
    report = examined(ready, parent, assertions=bad)
    assert not report.good
    assert [(finding.code, finding.subject) for finding in report.findings] == [
        ("assertion", "postgres"),
        ("assertion", "postgres"),
        ("assertion", "nowhere"),
    ]
    assert "expected was '13'" in report.findings[0].message
    assert report.target.kind is TargetKind.LSN
    assert list(parent.iterdir()) == []
    assert _servers_below(parent) == []


def test_a_test_that_is_cancelled_or_cannot_restore_leaves_nothing_either(ready: Site, parent: Path) -> None:
    cancel = Cancel()

    def stop(event: Event) -> None:
        if isinstance(event, Began) and event.step == "check":
            cancel.set()

    with pytest.raises(Cancelled):
        examined(ready, parent, Observer(stop, cancel))
    assert list(parent.iterdir()) == []
    with pytest.raises(SeawallError):
        examined(ready, parent, target=RecoveryTarget(TargetKind.NAME, "never said"))
    assert list(parent.iterdir()) == []
    assert _servers_below(parent) == []
