"""A backup that was killed is resumed: what it had stored is part of the next one, once it was proved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall import backup, retention
from seawall.backup.attempts import Attempt, Attempts
from seawall.errors import StorageUnreachable
from seawall.events import Event, Noticed, Observer, Resumed, silent
from seawall.model import BackupKind, BackupLabel, CopyMode, Head, Proof, SealingMode
from seawall.postgres.inspect import inspect
from seawall.repository import Repository
from seawall.repository.lease import newest
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.local import LocalStorage

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t"
FULL, INCREMENTAL = BackupKind.FULL, BackupKind.INCREMENTAL

# Dies as with kill -9 the moment it begins to store one bundle more than it may.
_CHILD = """
import os, signal, sys, threading
from datetime import datetime
from pathlib import Path
from seawall import backup
from seawall.codec import bundle
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupKind, Compression, CopyMode, SealingMode
from seawall.repository import Repository, Sealing
from seawall.settings import SourceSettings
from seawall.storage.local import LocalStorage
from seawall.storage.wrappers import Wrapper

repository, conninfo, ring, maps, label_at, mode, kind, compression, bundles = sys.argv[1:]
room = threading.Semaphore(int(bundles))
bundle.BUNDLE_BYTES = 8 * 1024 * 1024  # a stream fills them, and this cluster is small

class Deadly(Wrapper):
    def put(self, name, chunks):
        if "/bundles/" in name and not room.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.put(name, chunks)

ring = KeyRing(Path(ring))
recipients = tuple(key.fingerprint for key in ring.list())
sealing = Sealing(SealingMode.AES_256_GCM, Compression(compression), 1, recipients, ring)
source = SourceSettings("shop", conninfo=conninfo, mode=CopyMode(mode), workers=1)
backup.take(source, Repository.open(Deadly(LocalStorage(Path(repository)))), sealing, kind=BackupKind(kind),
            block_maps=Path(maps), now=datetime.fromisoformat(label_at), observe=Observer())
"""


@pytest.fixture(scope="module")
def site(site18: Site) -> Site:
    site18.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS x FROM generate_series(1, 40000) AS n")
    site18.query("VACUUM FREEZE", "CHECKPOINT")
    return site18


def _kill(site: Site, *, kind: BackupKind = FULL, mode: CopyMode = CopyMode.DIRECT, bundles: int = 4) -> Attempt:
    """Have a backup die after so many bundles; what it noted."""
    arguments = (site.home / "repository", site.instance.conninfo, site.ring.home, site.block_maps)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, arguments), site.now().isoformat(), mode, kind, "lz4", str(bundles)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TMPDIR": str(site.home)},
        timeout=120,
        check=False,
    )
    assert child.returncode == -9
    # Its lease still runs. The next backup need not wait for that: its process is gone from this host.
    record = newest(site.storage, site.area.layout)
    assert record is not None and record.runs_at(datetime.now(UTC))
    attempt = _attempts(site)[-1]
    assert len(attempt.objects) == bundles
    return attempt


def _attempts(site: Site) -> tuple[Attempt, ...]:
    return Attempts(site.block_maps / "attempts").found()


@dataclass
class Taken:
    head: Head
    resumed: Resumed | None
    notices: list[Noticed]
    names: set[str]


def _take(site: Site, **more: Any) -> Taken:
    heard: list[Event] = []
    head = site.backup(observe=Observer(heard.append), workers=1, **more)
    resumed = [event for event in heard if isinstance(event, Resumed)]
    names = {stored.name for stored in site.area.stored_objects(head.label)}
    notices = [event for event in heard if isinstance(event, Noticed)]
    return Taken(head, resumed[0] if resumed else None, notices, names)


def _foreign(taken: Taken, attempt: Attempt) -> set[str]:
    return {name for name in taken.names if f"/{attempt.label}/" in name}


def _age(site: Site, label: BackupLabel, by: timedelta) -> None:
    for path in (site.home / "repository" / "sources" / "shop" / "backups" / str(label)).rglob("*"):
        os.utime(path, (path.stat().st_mtime - by.total_seconds(),) * 2)


@pytest.mark.parametrize("mode", CopyMode)
def test_a_killed_backup_is_resumed_and_the_restored_cluster_is_that_of_the_second_run(
    site: Site, mode: CopyMode, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    attempt = _kill(site, mode=mode)
    changed = "UPDATE t SET x = md5(x) WHERE n BETWEEN 100 AND 120"
    site.query(changed, "CHECKPOINT")
    planned = backup.resumable(site.area, _plan(site, mode), site.sealing, site.block_maps)
    assert (planned.labels, len(planned.objects)) == ((attempt.label,), 4)
    taken = _take(site, mode=mode)
    assert taken.resumed is not None
    assert taken.resumed.attempts == (str(attempt.label),)
    assert (taken.resumed.objects, taken.resumed.of_objects) == (4, 4)
    assert "resumed: 4 of 4 objects" in next(one.message for one in taken.notices if one.code == "resumed")
    assert _foreign(taken, attempt) == {stored.name for stored in attempt.objects}
    assert taken.head.stored_bytes > taken.resumed.stored_bytes, "what the attempt stored counts as this backup's"
    assert site.verify(taken.head.label).reached is Proof.WAL_CONTINUOUS
    assert _attempts(site) == ()
    with site.restored(label=taken.head.label) as instance:
        assert rows(instance, ROWS) == site.query(ROWS)


def _plan(site: Site, mode: CopyMode) -> backup.BackupPlan:
    source = replace(site.source, mode=mode)
    return backup.plan(source, site.area, inspect(source), FULL, sealing=SealingMode.AES_256_GCM, now=site.now())


def test_garbage_goes_after_its_grace_and_what_the_resumed_backup_uses_stays(site: Site) -> None:
    attempt = _kill(site, bundles=3)
    spare = attempt.objects[0].name
    site.area.storage.put(f"{spare}0", [b"".join(site.area.storage.get(spare))])
    taken = _take(site)
    folder = site.area.layout.backup(attempt.label)
    used = _foreign(taken, attempt)
    assert len(used) == 3
    _age(site, attempt.label, timedelta(hours=25))
    done = retention.collect(site.repository, "shop", actor="scenario", now=site.now(), observe=silent())
    assert {stat.name for stat in site.storage.list(folder)} == used
    assert str(attempt.label) in done.sets
    assert site.area.keychain.generations(str(attempt.label))
    assert site.verify(taken.head.label).reached is Proof.WAL_CONTINUOUS


def test_a_flipped_byte_in_a_finished_object_has_it_stored_again(site: Site) -> None:
    attempt = _kill(site)
    damaged = attempt.objects[1].name
    path = site.home / "repository" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))
    taken = _take(site)
    assert _foreign(taken, attempt) == {stored.name for stored in attempt.objects} - {damaged}
    assert [damaged in one.message for one in taken.notices if one.code == "not-resumed"] == [True]
    assert site.verify(taken.head.label).reached is Proof.WAL_CONTINUOUS


def test_a_backup_that_failed_twice_is_resumed_from_both_attempts(site: Site) -> None:
    first = _kill(site, bundles=2)
    broken = Faulty(LocalStorage(site.home / "repository"), [Fault(Trouble.FAIL_BEFORE, "put", "*/bundles/*", skip=2)])
    outage = _with_storage(site, broken)
    with pytest.raises(StorageUnreachable):
        _take(outage)
    _, second = _attempts(site)
    taken = _take(site)
    assert taken.resumed is not None
    assert taken.resumed.attempts == (str(first.label), str(second.label))
    assert len(_foreign(taken, first)) == 2
    assert len(_foreign(taken, second)) == 2
    assert site.verify(taken.head.label).reached is Proof.WAL_CONTINUOUS


def _with_storage(site: Site, storage: Any) -> Site:
    return replace(site, storage=storage, repository=Repository.open(storage))


def test_a_killed_incremental_is_resumed_by_one_on_the_same_prior_and_by_no_full_one(
    site: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    base = _take(site).head
    site.query("UPDATE t SET x = repeat(md5(n::text || 'new'), 20) WHERE n % 3 = 0", "CHECKPOINT")
    attempt = _kill(site, kind=INCREMENTAL, bundles=3)
    full = _take(site)
    assert full.resumed is None
    assert [one.label for one in _attempts(site)] == [attempt.label]
    # The full one is newer than the prior of the attempt, so nothing builds on that any more.
    taken = _take(site, kind=INCREMENTAL)
    assert (taken.head.prior, taken.resumed) == (str(full.head.label), None)
    site.query("UPDATE t SET x = repeat(md5(n::text || 'newer'), 20) WHERE n % 3 = 1", "CHECKPOINT")
    attempt = _kill(site, kind=INCREMENTAL, bundles=3)
    resumed = _take(site, kind=INCREMENTAL)
    assert len(_foreign(resumed, attempt)) == 3
    assert resumed.head.prior == str(taken.head.label)
    assert base.label < resumed.head.label
    assert site.verify(resumed.head.label).reached is Proof.WAL_CONTINUOUS
    with site.restored(label=resumed.head.label) as instance:
        assert rows(instance, ROWS) == site.query(ROWS)


def test_a_killed_incremental_of_which_the_server_tells_what_changed_is_begun_anew_on_the_same_prior(
    site: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    """What the server does not send is as it was in the prior, which says nothing of what the attempt stored."""
    site.query("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
    site.until(lambda: site.value("SHOW summarize_wal") == "on", "the setting")
    base = _take(site, mode=CopyMode.STREAM).head
    site.query("UPDATE t SET x = repeat(md5(n::text || 'told'), 20) WHERE n % 3 = 0", "CHECKPOINT")
    attempt = _kill(site, kind=INCREMENTAL, mode=CopyMode.STREAM, bundles=1)
    # What the attempt stored is not what the cluster holds any more, in the same runs of the same files.
    site.query("UPDATE t SET x = repeat(md5(n::text || 'again'), 20) WHERE n % 3 = 0", "CHECKPOINT")
    source = replace(site.source, mode=CopyMode.STREAM)
    chosen = backup.plan(source, site.area, inspect(source), INCREMENTAL, sealing=site.sealing.mode, now=site.now())
    planned = backup.resumable(site.area, chosen, site.sealing, site.block_maps)
    assert planned.attempts == ()
    assert "since the prior" in dict(planned.unfit)[attempt.label]
    taken = _take(site, kind=INCREMENTAL, mode=CopyMode.STREAM)
    assert (taken.head.prior, taken.resumed, _foreign(taken, attempt)) == (str(base.label), None, set())
    assert not [one for one in taken.notices if one.code in ("changes-not-told", "not-resumed")]
    assert site.verify(taken.head.label).reached is Proof.WAL_CONTINUOUS
    with site.restored(label=taken.head.label) as instance:
        assert rows(instance, ROWS) == site.query(ROWS)
    site.query("ALTER SYSTEM RESET summarize_wal", "SELECT pg_reload_conf()")
    # The attempt's bundles go as any garbage does.
    _age(site, attempt.label, timedelta(hours=25))
    retention.collect(site.repository, "shop", actor="scenario", now=site.now(), observe=silent())
    assert list(site.storage.list(site.area.layout.backup(attempt.label))) == []


def test_what_must_not_be_resumed_is_stored_anew(site: Site) -> None:
    attempt = _kill(site)
    taken = _take(site, resume=False)
    assert (taken.resumed, _foreign(taken, attempt)) == (None, set())
    assert _attempts(site) == ()
    attempt = _kill(site)
    _age(site, attempt.label, timedelta(hours=19))
    taken = _take(site)
    assert (taken.resumed, _foreign(taken, attempt)) == (None, set())
    assert _attempts(site) == ()
