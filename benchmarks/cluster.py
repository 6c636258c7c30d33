"""The cluster that is backed up, and the figures about WAL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.tools import Seawall, Tool
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.instance import Instance, free_port

# Rows for about 100 MB of data directory: short rows, documents, and pictures that no codec makes smaller.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (id bigint, account bigint, amount numeric(12,2), note text, at timestamptz);
CREATE TABLE IF NOT EXISTS documents (id bigint, body jsonb);
CREATE TABLE IF NOT EXISTS pictures (id bigint, image bytea);
ALTER TABLE pictures ALTER COLUMN image SET STORAGE EXTERNAL;
"""
_CHUNK = """
INSERT INTO entries SELECT n, n % 9973, n % 1000 / 7.0, md5(n::text), now() FROM generate_series(1, 480000) n;
INSERT INTO documents SELECT n, jsonb_build_object('id', n, 'name', md5(n::text), 'tags', jsonb_build_array(n % 7,
  n % 11, 'tag' || n % 100), 'text', repeat('the quick brown fox ' || n % 50, 12)) FROM generate_series(1, 60000) n;
INSERT INTO pictures SELECT n, (SELECT string_agg(uuid_send(gen_random_uuid()), NULL) FROM generate_series(1, 1024)
  WHERE n > 0) FROM generate_series(1, 1300) n;
"""


@contextmanager
def running(work: Path, binaries: Binaries, account: Account, gigabytes: float) -> Iterator[Instance]:
    """A server with about so much data, loaded, vacuumed and checkpointed."""
    place = work / "cluster"
    place.mkdir()
    account.own(place)
    instance = Instance(place / "data", binaries, account)
    instance.initdb(checksums=True)
    settings = {
        "max_wal_size": "4GB",
        "shared_buffers": "256MB",
        "max_wal_senders": "8",
        "wal_keep_size": "2GB",
        "archive_mode": "on",
        # pgBackRest connects through a socket only.
        "unix_socket_directories": str(place),
    }
    instance.start(free_port(), settings)
    try:
        with instance.connect() as session:
            # Not an option of the start: what is measured later replaces it.
            session.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
            session.execute("SELECT pg_reload_conf()")
            for statement in _SCHEMA.strip().split(";")[:-1]:
                session.execute(statement.encode())
            size = 0
            while size < gigabytes * 1e9:
                for statement in _CHUNK.strip().split(";")[:-1]:
                    session.execute(statement.encode())
                row = session.execute("SELECT sum(pg_database_size(oid)) FROM pg_database").fetchone()
                size = int(row[0]) if row else 0
            session.execute("CREATE INDEX ON entries (id)")
            session.execute("VACUUM FREEZE ANALYZE")
            session.execute("CHECKPOINT")
        yield instance
    finally:
        instance.stop()


def wal_figures(tool: Tool, instance: Instance) -> dict[str, float]:
    """Milliseconds of archive_command as PostgreSQL sees it, and MB/s of the receiver on a backlog."""
    if not isinstance(tool, Seawall):
        return {}
    receiver = _receiver_rate(tool, instance)
    latencies = _push_latencies(tool, instance)
    ordered = sorted(latencies)
    return {
        "receiver, MB/s on a backlog": receiver,
        "archive-push, median ms": median(ordered) if ordered else float("nan"),
        "archive-push, 95 % below ms": ordered[int(len(ordered) * 0.95)] if ordered else float("nan"),
        "archive-push, segments": float(len(ordered)),
    }


def _receiver_rate(tool: Seawall, instance: Instance) -> float:
    """Let WAL pile up behind the slot, then see how fast it is durable at the receiver."""
    tool.stop_receiver()
    begin_lsn = _lsn(instance)
    _write_wal(instance, 600_000_000)
    end_lsn = _lsn(instance)
    begin = time.perf_counter()
    tool.start_receiver()
    while _flushed(tool, instance) < end_lsn:
        time.sleep(0.02)
        if time.perf_counter() - begin > 120:
            return float("nan")
    return (end_lsn - begin_lsn) / 1e6 / (time.perf_counter() - begin)


def _push_latencies(tool: Seawall, instance: Instance) -> list[float]:
    tool.stop_receiver()
    with tool.agent() as command:
        log = tool.work / "push.log"
        log.touch()
        tool.account.own(log)
        timed = f"a=$EPOCHREALTIME; {{ {command}; }}; r=$?; echo $a $EPOCHREALTIME $r >> {log}; exit $r"
        line = "bash -c '" + timed.replace("'", "'\\''") + "'"
        with instance.connect() as session:
            from psycopg import sql  # noqa: PLC0415 - only this figure composes SQL

            session.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(sql.Literal(line)))
            session.execute("SELECT pg_reload_conf()")
            _write_wal(instance, 500_000_000)
            session.execute("SELECT pg_switch_wal()")
            until = time.monotonic() + 60
            last = session.execute("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)").fetchone()
            while time.monotonic() < until:
                row = session.execute("SELECT last_archived_wal >= %s FROM pg_stat_archiver", last).fetchone()
                if row and row[0]:
                    break
                time.sleep(0.2)
            session.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
            session.execute("SELECT pg_reload_conf()")
    rows = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    return [(float(end) - float(begin)) * 1000 for begin, end, code in rows if code == "0"]


def _write_wal(instance: Instance, count: int) -> None:
    with instance.connect() as session:
        begin = _lsn(instance)
        session.execute("CREATE TABLE IF NOT EXISTS churn (body text)")
        while _lsn(instance) - begin < count:
            session.execute("INSERT INTO churn SELECT repeat(md5(n::text), 30) FROM generate_series(1, 20000) n")
        session.execute("TRUNCATE churn")


def _lsn(instance: Instance) -> int:
    with instance.connect() as session:
        row = session.execute("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn").fetchone()
    return int(row[0]) if row else 0


def _flushed(tool: Seawall, instance: Instance) -> int:
    with instance.connect() as session:
        row = session.execute(
            "SELECT flush_lsn - '0/0'::pg_lsn FROM pg_stat_replication WHERE application_name = %s", (tool.slot,)
        ).fetchone()
    return int(row[0]) if row and row[0] is not None else 0
