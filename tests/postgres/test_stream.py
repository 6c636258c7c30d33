"""BASE_BACKUP against real servers: what comes is what lies there, and what is wrong is said."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from seawall.errors import Cancelled, ClusterError, PrivilegeMissing, ServerUnreachable, UsageError
from seawall.events import Event, Noticed, Observer
from seawall.model import Compression
from seawall.postgres.binaries import Account, find
from seawall.postgres.control import read_control
from seawall.postgres.instance import Instance, ScratchInstance, scratch
from seawall.postgres.pages import PageChecker
from seawall.postgres.scan import scan
from seawall.postgres.stream import BaseBackup, StreamedFile, base_backup
from seawall.settings import SourceSettings
from seawall.wal import Lsn

pytestmark = pytest.mark.postgres
_OPTIONS = {"wal_level": "replica", "autovacuum": "off", "fsync": "off", "max_wal_size": "4GB"}


@pytest.fixture(scope="module", params=[15, 17, 18])
def server(request: pytest.FixtureRequest) -> Iterator[ScratchInstance]:
    with tempfile.TemporaryDirectory(prefix="seawall-stream-") as parent:
        Path(parent).chmod(0o755)
        with scratch(Path(parent), find(request.param), Account.for_servers()) as instance:
            instance.initdb()
            instance.start(options=_OPTIONS)
            _fill(instance)
            yield instance


def _fill(instance: ScratchInstance) -> None:
    place = instance.root / "space"
    place.mkdir(mode=0o700)
    instance.account.own(place)
    _sql(
        instance,
        f"CREATE TABLESPACE wide LOCATION '{place}'",
        "CREATE TABLE plain AS SELECT n, md5(n::text) x FROM generate_series(1, 60000) n",
        "CREATE INDEX ON plain (n)",
        "CREATE TABLE far TABLESPACE wide AS SELECT n, repeat(md5(n::text), 20) x FROM generate_series(1, 60000) n",
        "CREATE UNLOGGED TABLE fleeting AS SELECT n FROM generate_series(1, 1000) n",
        "CREATE TABLE nothing (n int)",
        "VACUUM ANALYZE",
        "CHECKPOINT",
    )


def _sql(instance: Instance, *statements: str) -> list[tuple[object, ...]]:
    with instance.connect() as session:
        for statement in statements:
            cursor = session.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _path_of(instance: Instance, table: str) -> str:
    return str(_sql(instance, f"SELECT pg_relation_filepath('{table}')")[0][0])


def _read(backup: BaseBackup) -> dict[str, tuple[StreamedFile, str, int]]:
    found: dict[str, tuple[StreamedFile, str, int]] = {}
    for file in backup.files():
        digest, length = hashlib.sha256(), 0
        for chunk in file.chunks():
            digest.update(chunk)
            length += len(chunk)
        assert file.path not in found
        found[file.path] = file, digest.hexdigest(), length
    return found


def _walsenders(instance: Instance) -> int:
    return len(_sql(instance, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'"))


def _walsenders_end(instance: Instance) -> bool:
    until = time.monotonic() + 60
    while _walsenders(instance) and time.monotonic() < until:
        time.sleep(0.05)
    return _walsenders(instance) == 0


def test_the_stream_brings_exactly_the_files_of_the_stopped_cluster(server: ScratchInstance) -> None:
    before = datetime.now(UTC)
    with base_backup(server.source(), "it's a label") as backup:
        streamed = _read(backup)
    server.stop()
    try:
        listed = {entry.path: entry for entry in scan(server.data_directory).entries}
        assert streamed.keys() - listed.keys() <= {"pg_wal/summaries"}
        assert listed.keys() - streamed.keys() <= {"pg_stat/pgstat.stat"}  # written at the stop
        for path, entry in listed.items():
            if path not in streamed:
                continue
            file, digest, length = streamed[path]
            assert (file.kind, file.is_relation, file.first_block) == (entry.kind, entry.is_relation, entry.first_block)
            assert (file.kind == "link", file.link) == (entry.kind == "link", entry.link)
            assert entry.kind == "link" or file.mode == entry.mode
            assert length == file.size
            if path.startswith(("base/", "pg_tblspc/", "PG_VERSION")) and entry.kind == "file":
                assert digest == hashlib.sha256(entry.absolute.read_bytes()).hexdigest(), path
    finally:
        server.start(options=_OPTIONS)
    assert "it's a label" in backup.backup_label
    assert f"START WAL LOCATION: {backup.start_lsn}" in backup.backup_label
    assert str(server.root / "space") in backup.tablespace_map
    assert backup.start_lsn < backup.stop_lsn
    assert backup.timeline == backup.stop_timeline == 1
    assert before <= backup.stopped_at <= datetime.now(UTC)
    assert backup.bad_pages == {}


def test_control_file_comes_whole_and_near_the_end(server: ScratchInstance) -> None:
    with base_backup(server.source(), "x") as backup:
        contents = [(file.path, b"".join(map(bytes, file.chunks()))) for file in backup.files()]
    assert contents[-1][0] == "global/pg_control"
    own = read_control(server.data_directory)
    assert read_control(contents[-1][1]).system_identifier == own.system_identifier


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
def test_compressed_streams_bring_the_same_and_a_server_without_the_codec_sends_plain(
    server: ScratchInstance, compression: Compression
) -> None:
    with base_backup(server.source(), "x") as backup:
        plain = _read(backup)
    heard: list[Event] = []
    with base_backup(server.source(), "x", compression=compression, observe=Observer(heard.append)) as backup:
        squeezed = _read(backup)
    changing = {"global/pg_control"}
    assert {p: found[1:] for p, found in plain.items() if p not in changing} == {
        p: found[1:] for p, found in squeezed.items() if p not in changing
    }
    notices = [event for event in heard if isinstance(event, Noticed) and event.code == "stream-compression"]
    assert (backup.compression is compression) == (not notices)


# What each server offers was decided when it was built: the wheel of 18 has neither lz4 nor zstd.
_OFFERED = {15: {"gzip", "lz4", "zstd"}, 17: {"gzip", "lz4", "zstd"}, 18: {"gzip"}}


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.GZIP, Compression.LZ4, Compression.ZSTD])
def test_the_source_says_how_its_server_compresses(server: ScratchInstance, compression: Compression) -> None:
    source = replace(server.source(), stream_compression=compression)
    with base_backup(source, "x") as backup:
        agreed = backup.compression
        assert len(_read(backup)) > 900
    offered = compression.value in _OFFERED[server.binaries.major]
    assert agreed is (compression if offered else Compression.NONE)


def test_files_that_nobody_reads_are_passed_over(server: ScratchInstance) -> None:
    with base_backup(server.source(), "x") as backup:
        assert sum(1 for _ in backup.files()) > 900
    assert backup.backup_label


def test_tables_appended_and_dropped_while_the_stream_runs_are_no_error(server: ScratchInstance) -> None:
    _sql(server, "CREATE TABLE doomed AS SELECT n FROM generate_series(1, 100000) n", "CHECKPOINT")
    with base_backup(server.source(), "x") as backup:
        files = backup.files()
        next(files)
        _sql(
            server,
            "DROP TABLE doomed",
            "INSERT INTO plain SELECT n, 'more' FROM generate_series(1, 50000) n",
            "CREATE TABLE late AS SELECT 1",
            "CHECKPOINT",
        )
        for file in files:
            assert sum(len(chunk) for chunk in file.chunks()) == file.size
    assert backup.bad_pages == {}
    assert backup.stop_lsn > backup.start_lsn
    _sql(server, "DROP TABLE late")


def test_a_flipped_page_is_named_and_the_backup_goes_on(server: ScratchInstance) -> None:
    _sql(server, "CREATE TABLE hurt AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n", "CHECKPOINT")
    path = _path_of(server, "hurt")
    with (server.data_directory / path).open("r+b") as file:
        file.seek(3 * 8192 + 5000)
        byte = file.read(1)[0]
        file.seek(3 * 8192 + 5000)
        file.write(bytes([byte ^ 1]))
    try:
        with base_backup(server.source(), "x") as backup:
            assert path in _read(backup)
        assert backup.bad_pages == {path: (3,)}
    finally:
        _sql(server, "DROP TABLE hurt")


def test_a_wrong_page_is_excused_only_if_wal_of_this_backup_has_its_image(server: ScratchInstance) -> None:
    """The tablespace is sent first and is larger than the buffers between, so the files of `base` are read later."""
    _sql(server, "CREATE TABLE torn AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n", "CHECKPOINT")
    path = _path_of(server, "torn")
    try:
        with base_backup(server.source(), "x") as backup:
            files = backup.files()
            next(files)
            _sql(server, "INSERT INTO plain VALUES (0, 'moves the position')")
            now = Lsn.parse(str(_sql(server, "SELECT pg_current_wal_lsn()::text")[0][0]))
            with (server.data_directory / path).open("r+b") as file:
                _stamp(file.fileno(), 1, now.value)  # between start and stop
                _stamp(file.fileno(), 2, now.value + (1 << 40))  # of no WAL that exists
                _stamp(file.fileno(), 4, 1)  # from before the start
            for _ in files:
                pass
        assert backup.start_lsn < now <= backup.stop_lsn
        assert backup.bad_pages == {path: (2, 4)}
    finally:
        _sql(server, "DROP TABLE torn")


def _stamp(descriptor: int, block: int, lsn: int) -> None:
    os.pwrite(descriptor, struct.pack("=II", lsn >> 32, lsn & 0xFFFFFFFF), block * 8192)


def test_a_page_that_was_being_written_while_it_was_sent_is_excused_by_looking_again(
    server: ScratchInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an old page came, the whole new one lies there: the checker meets a page that the disk does not have."""
    _sql(server, "CREATE TABLE halved AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n", "CHECKPOINT")
    path = _path_of(server, "halved")
    page = (server.data_directory / path).read_bytes()[:8192]
    check = PageChecker.check

    def tears(self: PageChecker, view: memoryview, first_block: int) -> list[int]:
        if first_block == 0 and bytes(view[:8192]) == page:
            view[8191] ^= 1
        return check(self, view, first_block)

    monkeypatch.setattr(PageChecker, "check", tears)
    with base_backup(server.source(), "x") as backup:
        _read(backup)
    assert backup.bad_pages == {}
    _sql(server, "DROP TABLE halved")


def test_closing_early_leaves_nothing_on_the_server(server: ScratchInstance) -> None:
    with base_backup(server.source(), "x") as backup:
        next(backup.files())
        assert _walsenders(server) == 1
    assert _walsenders_end(server)
    with base_backup(server.source(), "x"):
        pass
    assert _walsenders_end(server)


def test_a_caller_that_cancels_is_heard_and_the_server_forgets_the_backup(server: ScratchInstance) -> None:
    observe = Observer()

    def begin() -> None:
        with base_backup(server.source(), "x", observe=observe) as backup:
            for number, _ in enumerate(backup.files()):
                if number == 3:
                    observe.cancel.set()

    with pytest.raises(Cancelled):
        begin()
    assert _walsenders_end(server)


def test_a_backend_that_dies_midway_is_a_server_that_cannot_be_reached(server: ScratchInstance) -> None:
    with base_backup(server.source(), "x") as backup:
        files = backup.files()
        next(files)
        _sql(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
        with pytest.raises(ServerUnreachable):
            list(files)


def test_a_role_without_replication_lacks_a_privilege(server: ScratchInstance) -> None:
    _sql(server, "CREATE ROLE nobody_special LOGIN")
    conninfo = re.sub(r"user=\S+", "user=nobody_special", server.conninfo)
    with pytest.raises(PrivilegeMissing):
        base_backup(SourceSettings(name="scratch", conninfo=conninfo), "x")
    _sql(server, "DROP ROLE nobody_special")


def test_a_role_with_replication_alone_is_enough_and_cannot_look_at_pages_again(server: ScratchInstance) -> None:
    _sql(server, "CREATE ROLE copier LOGIN REPLICATION", "CREATE TABLE hurt AS SELECT 1 n", "CHECKPOINT")
    path = _path_of(server, "hurt")
    with (server.data_directory / path).open("r+b") as file:
        file.seek(4000)
        file.write(b"\1")
    conninfo = re.sub(r"user=\S+", "user=copier", server.conninfo)
    with base_backup(SourceSettings(name="scratch", conninfo=conninfo), "x") as backup:
        _read(backup)
    assert backup.bad_pages == {path: (0,)}
    _sql(server, "DROP TABLE hurt", "DROP ROLE copier")


def test_the_server_keeps_to_the_rate(server: ScratchInstance) -> None:
    began = time.monotonic()
    with base_backup(server.source(), "x", max_rate=32 << 20) as backup:
        count = sum(length for _, _, length in _read(backup).values())
    assert time.monotonic() - began > 0.6 * count / (32 << 20)


@pytest.mark.parametrize("rate", [-1, 1, 32767])
def test_a_rate_that_no_server_takes_is_refused(rate: int) -> None:
    with pytest.raises(UsageError):
        base_backup(SourceSettings(name="s", conninfo="host=127.0.0.1"), "x", max_rate=rate)


def test_a_label_with_a_line_break_is_refused() -> None:
    with pytest.raises(UsageError):
        base_backup(SourceSettings(name="s", conninfo="host=127.0.0.1"), "two\nlines")


def test_a_server_refusal_is_a_cluster_error_with_its_words(server: ScratchInstance) -> None:
    sender = {"max_wal_senders": "0", "wal_level": "minimal", "archive_mode": "off"}
    server.stop()
    server.start(options={**_OPTIONS, **sender})
    try:
        with pytest.raises(ClusterError, match="max_wal_senders"):
            base_backup(server.source(), "x")
    finally:
        server.stop()
        server.start(options=_OPTIONS)


@pytest.mark.slow
def test_a_streamed_backup_restores_the_same_rows(server: ScratchInstance, tmp_path: Path) -> None:
    _sql(server, "CREATE TABLE kept AS SELECT n, md5(n::text) x FROM generate_series(1, 100000) n")
    site, target = tmp_path / "site", server.root / "restored"
    _seawall(site, "init", "--directory", str(site), "--source", "shop", "--mode", "stream",
             "--conninfo", server.conninfo)  # fmt: skip
    receiver = subprocess.Popen([sys.executable, "-m", "seawall", *_configured(site, "wal", "receive", "shop")])
    try:
        until = time.monotonic() + 30
        while not _sql(server, "SELECT 1 FROM pg_stat_replication") and time.monotonic() < until:
            time.sleep(0.1)
        _seawall(site, "backup")
        _sql(server, "INSERT INTO kept SELECT n, 'later' FROM generate_series(1, 500) n")
        wanted = _sql(server, "SELECT count(*), md5(string_agg(x, ',' ORDER BY n, x)) FROM kept")
        far = _sql(server, "SELECT count(*), sum(length(x)) FROM far")
        moment = _sql(server, "SELECT clock_timestamp()::text")[0][0]
        _sql(server, "SELECT pg_sleep(0.2)", "DROP TABLE kept")
        _seawall(site, "wal", "switch")
        _seawall(site, "verify")
        _seawall(site, "restore", "shop", "--into", str(target), "--to", str(moment).replace(" ", "T") + ":00",
                 "--tablespace", f"{server.root / 'space'}={server.root / 'space-restored'}")  # fmt: skip
    finally:
        receiver.send_signal(signal.SIGTERM)
        receiver.wait(30)
    restored = Instance(target, server.binaries, server.account)
    restored.start()
    try:
        assert _sql(restored, "SELECT count(*), md5(string_agg(x, ',' ORDER BY n, x)) FROM kept") == wanted
        assert _sql(restored, "SELECT count(*), sum(length(x)) FROM far") == far
    finally:
        restored.stop()


def _configured(site: Path, *words: str) -> list[str]:
    return [*words] if words[0] == "init" else [*words, "--config", str(site / "seawall.toml")]


def _seawall(site: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "seawall", *_configured(site, *words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seawall {' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
