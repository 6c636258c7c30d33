"""A standby as the source, by files and by stream: its backups are its primary's cluster, and it may be promoted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall.errors import ArchiveTimeout, ClusterError
from seawall.events import Advanced, Began, Event, Noticed, Observer
from seawall.model import BackupKind, CopyMode, Proof, RecoveryTarget, TargetKind
from tests.conftest import ClusterMaker, PgCluster

if TYPE_CHECKING:
    Site = Any
    Sites = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@dataclass
class Pair:
    primary: PgCluster
    standby: PgCluster
    site: Site

    def rows(self) -> Any:
        return self.primary.query("SELECT count(*), md5(string_agg(n || x, ',' ORDER BY n)) FROM rows")

    def caught_up(self) -> None:
        here = self.primary.value("SELECT pg_current_wal_lsn()")
        self.standby.wait(f"pg_last_wal_replay_lsn() >= '{here}'")

    def backup(self, mode: CopyMode, kind: BackupKind = BackupKind.FULL, **more: Any) -> Any:
        address = {"primary_conninfo": self.primary.instance.conninfo, "wal_timeout": timedelta(seconds=20)}
        return self.site.backup(kind, **({"mode": mode} | address | more))


def _every(*chosen: tuple[int, CopyMode]) -> Any:
    """Every version in both modes; what is not among the chosen is a repetition."""
    each = [(major, mode) for major in (15, 17, 18) for mode in CopyMode]
    marks = {one: () if one in chosen else (pytest.mark.repeats,) for one in each}
    values = [pytest.param(*one, marks=marks[one], id=f"pg{one[0]}-{one[1]}") for one in each]
    return pytest.mark.parametrize(("pair", "mode"), values, indirect=["pair"])


@pytest.fixture
def pair(request: pytest.FixtureRequest, make_cluster: ClusterMaker, sites: Sites, tmp_path: Path) -> Iterator[Pair]:
    settings = {"summarize_wal": "on"} if request.param >= 17 else {}
    primary = make_cluster(request.param, settings=settings)
    primary.query("CREATE TABLE rows AS SELECT n, md5(n::text) x FROM generate_series(1, 40000) n")
    primary.query("VACUUM FREEZE")
    standby = make_cluster.standby(primary)
    home = standby.home / "site"
    home.mkdir(mode=0o755)
    site = sites.beside(standby.instance, home)
    site.receive()
    yield Pair(primary, standby, site)
    site.stop_receiving()


@_every((15, CopyMode.DIRECT), (17, CopyMode.STREAM), (18, CopyMode.DIRECT))
def test_backups_of_a_standby_restore_while_its_primary_is_idle(pair: Pair, mode: CopyMode) -> None:
    pair.primary.query("UPDATE rows SET x = 'on the primary' WHERE n % 100 = 1")
    pair.caught_up()
    moments = [(pair.backup(mode), pair.rows())]
    assert moments[0][0].mode is mode
    pair.primary.query("UPDATE rows SET x = 'later' WHERE n % 500 = 1")
    pair.primary.query("CHECKPOINT")
    pair.caught_up()
    pair.standby.query("CHECKPOINT")
    heard: list[Event] = []
    moments.append((pair.backup(mode, BackupKind.INCREMENTAL, observe=Observer(heard.append)), pair.rows()))
    assert [event for event in heard if isinstance(event, Noticed)] == []
    # No restartpoint since the one before: it begins where that began, which a server of 17 and later refuses to
    # send changes for; then all is compared.
    moments.append((pair.backup(mode, BackupKind.INCREMENTAL), pair.rows()))
    for head, _ in moments[1:]:
        assert head.kind is BackupKind.INCREMENTAL
        assert head.stored_bytes < moments[0][0].stored_bytes
    for head, wanted in moments:
        assert pair.site.verify(head.label).reached is Proof.WAL_CONTINUOUS
        with pair.site.restored(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label) as instance:
            query = b"SELECT count(*), md5(string_agg(n || x, ',' ORDER BY n)) FROM rows"
            with instance.connect() as session:
                assert session.execute(b"SELECT pg_is_in_recovery()").fetchone() == (False,)
                assert session.execute(query).fetchall() == wanted


@_every((15, CopyMode.STREAM), (18, CopyMode.DIRECT))
def test_without_its_address_the_backup_waits_for_the_primary_to_close_its_segment(pair: Pair, mode: CopyMode) -> None:
    pair.primary.query("INSERT INTO rows VALUES (0, 'so that there is something')")
    pair.caught_up()
    waits = threading.Event()

    def hear(event: Event) -> None:
        if isinstance(event, Began) and event.step == "wal":
            waits.set()

    def switch() -> None:
        assert waits.wait(60)
        time.sleep(0.5)
        pair.primary.query("SELECT pg_switch_wal()")

    switching = threading.Thread(target=switch)
    switching.start()
    head = pair.backup(mode, primary_conninfo="", observe=Observer(hear))
    switching.join()
    assert pair.site.verify(head.label).reached is Proof.WAL_CONTINUOUS
    with pytest.raises(ArchiveTimeout, match="did not arrive"):
        pair.primary.query("INSERT INTO rows VALUES (0, 'again')")
        pair.caught_up()
        pair.backup(mode, primary_conninfo="", wal_timeout=timedelta(seconds=1))


@_every((17, CopyMode.DIRECT), (18, CopyMode.STREAM))
def test_a_standby_that_is_promoted_meanwhile_ends_the_backup_and_nothing_is_listed(pair: Pair, mode: CopyMode) -> None:
    pair.primary.query("INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 200000) n")
    pair.caught_up()
    promoted = threading.Event()

    def promote(event: Event) -> None:
        if isinstance(event, Advanced) and event.step == "copy" and not promoted.is_set():
            promoted.set()
            assert pair.standby.value("SELECT pg_promote()")

    with pytest.raises(ClusterError, match="promoted") as raised:
        pair.backup(mode, observe=Observer(promote))
    assert promoted.is_set()
    assert raised.value.hint
    assert pair.site.area.labels() == ()


@pytest.mark.parametrize("pair", [18], indirect=True)
def test_an_address_of_another_cluster_is_noticed_and_not_asked(pair: Pair, make_cluster: ClusterMaker) -> None:
    other = make_cluster(pair.primary.major, fresh=True)
    before = other.value("SELECT pg_current_wal_lsn()")
    heard: list[Event] = []
    pair.primary.query("INSERT INTO rows VALUES (0, 'x')")
    pair.caught_up()
    with pytest.raises(ArchiveTimeout):
        pair.backup(
            CopyMode.STREAM,
            primary_conninfo=other.instance.conninfo,
            wal_timeout=timedelta(seconds=1),
            observe=Observer(heard.append),
        )
    assert [event.code for event in heard if isinstance(event, Noticed)] == ["wal-not-switched"]
    assert other.value("SELECT pg_current_wal_lsn()") == before
