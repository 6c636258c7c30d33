"""Incrementals where the server tells what changed, by stream and by files: as good as comparing every byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from seawall.backup import told
from seawall.backup.compare import Comparison
from seawall.events import Event, Noticed, Observer
from seawall.model import BackupKind, CopyMode, Head, Proof, RecoveryTarget, TargetKind
from seawall.postgres.summaries import RelationFork

if TYPE_CHECKING:
    Site = Any
    Sites = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
_TABLES = ("quiet", "scattered", "cut", "emptied", "packed", "fresh")


@pytest.fixture(params=[pytest.param(17, marks=pytest.mark.repeats), 18], ids=lambda major: f"pg{major}")
def telling(request: pytest.FixtureRequest, sites: Sites) -> Iterator[Site]:
    """A site whose server summarizes its WAL."""
    with sites.site(request.param) as made:
        made.query("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
        made.until(lambda: made.value("SHOW summarize_wal") == "on", "the setting")
        made.query(
            "CREATE TABLE quiet AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 30000) n",
            "CREATE TABLE scattered AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 30000) n",
            "CREATE TABLE cut AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 30000) n",
            "CREATE TABLE emptied AS SELECT n, ''::text x FROM generate_series(1, 5000) n",
            "CREATE TABLE packed AS SELECT n, repeat('x', 100) x FROM generate_series(1, 5000) n",
            "CREATE TABLE fresh AS SELECT 1 n, ''::text x",
            "VACUUM FREEZE",
        )
        yield made


def _take(site: Site, kind: BackupKind, mode: CopyMode = CopyMode.STREAM) -> tuple[Head, list[str]]:
    heard: list[Event] = []
    head = site.backup(kind, mode=mode, observe=Observer(heard.append))
    return head, [event.code for event in heard if isinstance(event, Noticed)]


def _rows(site: Site, instance: Any = None) -> dict[str, object]:
    query = "SELECT count(*), md5(string_agg(n || x, ',' ORDER BY n, x)) FROM {}"
    if instance is None:
        return {table: site.query(query.format(table)) for table in _TABLES}
    with instance.connect() as session:
        return {table: session.execute(query.format(table).encode()).fetchall() for table in _TABLES}


def _change(site: Site, step: int) -> None:
    site.query(
        f"UPDATE scattered SET x = 'changed {step}' WHERE n % 3000 = {step}",
        f"DELETE FROM cut WHERE n > {20000 - 4000 * step}",
        "VACUUM (TRUNCATE) cut",
        f"INSERT INTO cut SELECT n, repeat(md5((n * 3)::text), 8) FROM generate_series(40000, 40000 + {900 * step}) n",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (1, 'again')",
        "VACUUM FULL packed",
        "DROP TABLE fresh",
        f"CREATE TABLE fresh AS SELECT n, ''::text x FROM generate_series(1, {1000 * step}) n",
        f"CREATE DATABASE made_{step} STRATEGY {'file_copy' if step % 2 else 'wal_log'}",
    )


def _refuse_difference(site: Site, head: Head, wanted: dict[str, object]) -> None:
    assert site.verify(head.label).reached is Proof.WAL_CONTINUOUS
    with site.restored(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label) as instance:
        assert _rows(site, instance) == wanted
        with instance.connect() as session:
            session.execute("CREATE EXTENSION amcheck")
            broken = b"SELECT c.relname, v.* FROM pg_class c, verify_heapam(c.oid) v WHERE relkind IN ('r', 't')"
            assert session.execute(broken).fetchall() == []


def test_a_chain_of_told_changes_restores_at_every_backup(telling: Site) -> None:
    full, _ = _take(telling, BackupKind.FULL)
    moments = [(full, _rows(telling))]
    for step, kind in enumerate((BackupKind.INCREMENTAL, BackupKind.INCREMENTAL, BackupKind.DIFFERENTIAL), 1):
        _change(telling, step)
        wanted = _rows(telling)
        head, noticed = _take(telling, kind)
        assert (head.kind, head.reason, noticed) == (kind, "", [])
        assert head.stored_bytes < full.stored_bytes * 0.8  # of it much is the new database
        moments.append((head, wanted))
    for head, wanted in moments:
        _refuse_difference(telling, head, wanted)


def test_a_direct_full_can_be_built_on_by_told_changes(telling: Site) -> None:
    _take(telling, BackupKind.FULL, CopyMode.DIRECT)
    _change(telling, 1)
    wanted = _rows(telling)
    head, noticed = _take(telling, BackupKind.INCREMENTAL)
    assert (head.kind, noticed) == (BackupKind.INCREMENTAL, [])
    _refuse_difference(telling, head, wanted)


def test_a_server_that_stopped_telling_is_compared_instead(telling: Site) -> None:
    full, _ = _take(telling, BackupKind.FULL)
    telling.query("ALTER SYSTEM SET summarize_wal = off", "SELECT pg_reload_conf()")
    telling.until(lambda: telling.value("SHOW summarize_wal") == "off", "the setting")
    _change(telling, 1)
    wanted = _rows(telling)
    head, noticed = _take(telling, BackupKind.INCREMENTAL)
    assert (head.kind, noticed) == (BackupKind.INCREMENTAL, ["changes-not-told"])
    assert head.stored_bytes < full.stored_bytes * 0.8  # of it much is the new database
    _refuse_difference(telling, head, wanted)


@pytest.mark.parametrize("telling", [17, pytest.param(18, marks=pytest.mark.repeats)], indirect=True)
def test_a_chain_by_files_reads_what_is_told_and_restores_at_every_backup(telling: Site) -> None:
    moments = []
    chain = (BackupKind.FULL, BackupKind.INCREMENTAL, BackupKind.INCREMENTAL, BackupKind.DIFFERENTIAL)
    for step, kind in enumerate(chain, 1):
        wanted = _rows(telling)
        head, noticed = _take(telling, kind, CopyMode.DIRECT)
        assert (head.kind, head.reason, noticed) == (kind, "", [])
        moments.append((head, wanted))
        _change(telling, step)
    for head, wanted in moments:
        _refuse_difference(telling, head, wanted)


def test_by_files_only_runs_that_changed_are_read_of_a_file_that_was_written_to(
    telling: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take(telling, BackupKind.FULL, CopyMode.DIRECT)
    telling.query("UPDATE scattered SET x = 'one' WHERE n = 3000", "CHECKPOINT")
    path = telling.value("SELECT pg_relation_filepath('scattered')")
    read: list[tuple[str, int]] = []
    real = Comparison._digests

    def watched(self: Comparison, descriptor: int, suspect: Any, *rest: Any) -> Iterator[bytes]:
        if suspect.told is not None:
            read.append((suspect.entry.path, int(suspect.told.sum())))
        return real(self, descriptor, suspect, *rest)

    monkeypatch.setattr(Comparison, "_digests", watched)
    _take(telling, BackupKind.INCREMENTAL, CopyMode.DIRECT)
    assert [runs for at, runs in read if at == path] == [1]


def test_by_files_summaries_that_miss_a_change_are_caught_and_everything_is_read(
    telling: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take(telling, BackupKind.FULL, CopyMode.DIRECT)
    telling.query("UPDATE scattered SET x = x || 'y'", "CHECKPOINT")
    wanted = _rows(telling)
    fork = RelationFork.at(telling.value("SELECT pg_relation_filepath('scattered')"))
    real = told.changed_blocks

    def forgetful(*words: Any, **named: Any) -> Any:
        changes = real(*words, **named)
        return replace(changes, forks={known: found for known, found in changes.forks.items() if known != fork})

    monkeypatch.setattr(told, "changed_blocks", forgetful)
    head, noticed = _take(telling, BackupKind.INCREMENTAL, CopyMode.DIRECT)
    assert noticed == ["summaries-wrong"]
    _refuse_difference(telling, head, wanted)
