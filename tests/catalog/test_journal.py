"""The audit: nothing in it can be changed unseen, and hardly anything can be changed at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy.exc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.catalog import AuditAnchor, Catalog
from seawall.errors import UsageError

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
ENTRIES = 8


def fill(catalog: Catalog, entries: int = ENTRIES) -> None:
    for number in range(entries):
        catalog.audit("ada", "retention.expire", f"backup {number}", {"bytes": number}, NOW + timedelta(seconds=number))


def without_triggers(catalog: Catalog, execute: Callable[[str], None]) -> None:
    from seawall.catalog import schema

    if catalog._database.is_sqlite:
        for trigger in schema.TRIGGERS["sqlite"]:
            execute(f"DROP TRIGGER {trigger}")
    else:
        execute("ALTER TABLE audit DISABLE TRIGGER USER")
        execute("ALTER TABLE audit_head DISABLE TRIGGER USER")


def test_an_entry_is_chained_to_the_one_before_by_a_documented_hash(catalog: Catalog, now: datetime) -> None:
    first = catalog.audit("ada", "hold.place", "shop/20261123T020000Z-full", {"reason": "trial", "days": 7}, now)
    second = catalog.audit("seawall", "retention.expire", "ledger/…", {}, now)
    assert (first.sequence, first.previous_hash) == (1, "0" * 64)
    assert (second.sequence, second.previous_hash) == (2, first.hash)
    record = {
        "id": str(first.id),
        "sequence": 1,
        "recorded_at": "2026-11-23T02:00:00.123456+00:00",
        "actor": "ada",
        "action": "hold.place",
        "subject": "shop/20261123T020000Z-full",
        "details": {"days": 7, "reason": "trial"},
        "previous_hash": "0" * 64,
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert first.hash == hashlib.sha256(text.encode()).hexdigest()
    assert catalog.audit_entries() == (second, first)
    assert catalog.audit_entries(before=2) == (first,)
    assert catalog.audit_anchor() == AuditAnchor(2, second.hash)


def test_an_untouched_chain_verifies_also_when_empty_and_longer_than_a_page(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalog.verify_audit().good
    fill(catalog)
    monkeypatch.setattr("seawall.catalog.journal._PAGE", 4)
    verdict = catalog.verify_audit(anchor=catalog.audit_anchor())
    assert verdict.good
    assert verdict.entries == ENTRIES
    assert verdict.anchor == catalog.audit_anchor()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'mallory' WHERE sequence = 3",
        "UPDATE audit SET sequence = 99 WHERE sequence = 8",
        "DELETE FROM audit WHERE sequence = 8",
        "DELETE FROM audit",
        "UPDATE audit_head SET sequence = 7",
        "UPDATE audit_head SET hash = 'x'",
        "UPDATE audit_head SET sequence = 10",
        "DELETE FROM audit_head",
    ],
)
def test_the_database_refuses_to_change_what_was_written(
    catalog: Catalog, execute: Callable[[str], None], statement: str
) -> None:
    fill(catalog)
    with pytest.raises(sqlalchemy.exc.DBAPIError, match=r"append-only|only advances"):
        execute(statement)
    assert catalog.verify_audit().good


@pytest.mark.postgres
def test_postgresql_refuses_to_truncate_it(server, migrated: str) -> None:
    database = server.new_database(migrated)
    for table in ("audit", "audit_head"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            server.execute(f"TRUNCATE {table}", database)


def test_sqlite_refuses_to_replace_an_entry_by_inserting(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}", create=True) as catalog:
        fill(catalog)
        connection = sqlite3.connect(tmp_path / "catalog.db")
        for table in ("audit", "audit_head"):
            with pytest.raises(sqlite3.IntegrityError, match=r"append-only|only advances"):
                connection.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")
        connection.close()
        assert catalog.verify_audit().good


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE sequence = 3", "audit-edited"),
        ("UPDATE audit SET details = '{\"bytes\": 3}' WHERE sequence = 3", "audit-edited"),
        ("UPDATE audit SET recorded_at = '2020-01-01 00:00:00.000000' WHERE sequence = 1", "audit-edited"),
        ("DELETE FROM audit WHERE sequence = 1", "audit-gap"),
        ("DELETE FROM audit WHERE sequence = 4", "audit-gap"),
        ("DELETE FROM audit WHERE sequence >= 7", "audit-cut"),
        ("DELETE FROM audit", "audit-cut"),
        ("DELETE FROM audit_head", "audit-headless"),
    ],
)
def test_what_somebody_changed_with_the_triggers_off_is_found(
    catalog: Catalog, execute: Callable[[str], None], statement: str, code: str
) -> None:
    fill(catalog)
    without_triggers(catalog, execute)
    execute(statement)
    verdict = catalog.verify_audit()
    assert not verdict.good
    assert code in {finding.code for finding in verdict.findings}


def test_a_chain_written_anew_is_found_by_an_anchor_kept_elsewhere(
    catalog: Catalog, execute: Callable[[str], None]
) -> None:
    fill(catalog)
    anchor = catalog.audit_anchor()
    without_triggers(catalog, execute)
    execute("DELETE FROM audit")
    execute(f"UPDATE audit_head SET sequence = 0, hash = '{'0' * 64}'")
    fill(catalog, 3)
    assert catalog.verify_audit().good
    assert {finding.code for finding in catalog.verify_audit(anchor=anchor).findings} == {"audit-anchor"}
    fill(catalog)
    assert {finding.code for finding in catalog.verify_audit(anchor=anchor).findings} == {"audit-anchor"}


def test_an_anchor_stays_valid_when_the_chain_grows(catalog: Catalog) -> None:
    fill(catalog)
    anchor = catalog.audit_anchor()
    fill(catalog)
    assert catalog.verify_audit(anchor=anchor).good


def test_details_that_a_database_would_rewrite_still_verify(catalog: Catalog, now: datetime) -> None:
    details: dict[str, object] = {
        "ratio": 1.5,
        "huge": 1.5e300,
        "tiny": -0.0,
        "none": float("nan"),
        "identifier": 7300000000000000001,
        "enormous": 10**30,
        "text": 'ünï \x00 \udc80 \U0001f418 \u2028 "quoted" \\',
        "nested": {"b": [1, 2.25, None, True], "a": {}},
        "when": now,
        "path": Path("/vault"),
    }
    entry = catalog.audit("ad\x00a", "x", "\ud800", details, now)
    assert catalog.audit_entries() == (entry,)
    assert catalog.verify_audit().good
    assert entry.details["ratio"] == "1.5"
    assert entry.details["identifier"] == 7300000000000000001


def test_what_has_no_json_form_is_refused_and_the_chain_goes_on(catalog: Catalog, now: datetime) -> None:
    with pytest.raises(UsageError, match="bytes"):
        catalog.audit("ada", "x", "y", {"key": b"raw"}, now)
    fill(catalog)
    assert catalog.verify_audit().entries == ENTRIES


def test_threads_append_one_chain(url: str, catalog: Catalog) -> None:
    with Catalog.open(url) as other:
        threads = [threading.Thread(target=fill, args=(opened,)) for opened in (catalog, other) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    verdict = catalog.verify_audit()
    assert verdict.findings == ()
    assert verdict.entries == 6 * ENTRIES


PROCESS = """
import sys
from datetime import UTC, datetime
from seawall.catalog import Catalog
with Catalog.open(sys.argv[1]) as catalog:
    for number in range(15):
        catalog.audit("process", "append", str(number), {}, datetime.now(UTC))
"""


@pytest.mark.slow
def test_processes_append_one_chain_and_a_reader_beside_them_never_sees_it_broken(url: str, catalog: Catalog) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, url]) for _ in range(3)]
    while any(process.poll() is None for process in processes):
        assert catalog.verify_audit().findings == ()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert catalog.verify_audit().entries == 45


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed catalog whose triggers are gone, to be copied and spoiled."""
    path = tmp_path_factory.mktemp("audit") / "catalog.db"
    with Catalog.open(f"sqlite:///{path}", create=True) as catalog:
        fill(catalog)
        with catalog._database.writing() as session:
            connection = session.connection()
            names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
            for name in names:
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
    return path


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
COLUMNS = {
    "actor": TEXTS,
    "action": TEXTS,
    "subject": TEXTS,
    "details": st.one_of(
        st.dictionaries(TEXTS, st.one_of(st.integers(), TEXTS, st.none()), max_size=3).map(json.dumps), TEXTS
    ),
    "recorded_at": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001 - as SQLite stores it
        lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    ),
    "hash": st.text("0123456789abcdef", min_size=64, max_size=64),
    "previous_hash": st.text("0123456789abcdef", min_size=64, max_size=64),
    "id": st.uuids().map(lambda key: key.hex),
    "sequence": st.integers(-5, ENTRIES + 5),
}


@st.composite
def tampering(draw: st.DrawFn) -> tuple[str, tuple[object, ...]]:
    victim = draw(st.integers(1, ENTRIES))
    if draw(st.integers(0, 3)) == 0:
        last = draw(st.integers(victim, ENTRIES))
        return "DELETE FROM audit WHERE sequence BETWEEN ? AND ?", (victim, last)
    column = draw(st.sampled_from(sorted(COLUMNS)))
    return f"UPDATE OR IGNORE audit SET {column} = ? WHERE sequence = ?", (draw(COLUMNS[column]), victim)


def content(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    def plain(name: str, value: object) -> object:
        try:
            return json.loads(str(value)) if name == "details" else value
        except ValueError:
            return ("not JSON", value)

    cursor = connection.execute("SELECT * FROM audit ORDER BY sequence")
    names = [column[0] for column in cursor.description]
    return [tuple(plain(name, value) for name, value in zip(names, row, strict=True)) for row in cursor]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tampering())
def test_any_edit_or_removal_is_found(chain: Path, tmp_path: Path, change: tuple[str, tuple[object, ...]]) -> None:
    path = tmp_path / "copy.db"
    for leftover in tmp_path.glob("copy.db*"):
        leftover.unlink()
    shutil.copy(chain, path)
    connection = sqlite3.connect(path)
    before = content(connection)
    connection.execute(*change)
    connection.commit()
    changed = content(connection) != before
    connection.close()
    with Catalog.open(f"sqlite:///{path}") as catalog:
        assert catalog.verify_audit().good is not changed


def test_ids_of_entries_are_random_uuids(catalog: Catalog, now: datetime) -> None:
    ids = {catalog.audit("a", "b", "c", {}, now).id for _ in range(5)}
    assert len(ids) == 5
    assert all(isinstance(key, UUID) and key.version == 4 for key in ids)


def test_the_newest_end_of_a_repositorys_audit_is_kept_and_no_older_one_after_it(catalog: Catalog, now) -> None:
    repository = uuid4()
    assert catalog.repository_anchor(repository) is None
    for end in (AuditAnchor(3, "c" * 64), AuditAnchor(5, "e" * 64), AuditAnchor(4, "d" * 64)):
        catalog.keep_repository_anchor(repository, end, now=now)
    assert catalog.repository_anchor(str(repository)) == AuditAnchor(5, "e" * 64)
