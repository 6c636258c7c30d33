"""A chain on a real cluster whose base is let go: what still refers to it restores, until nothing does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from seawall import retention
from seawall.backup import changes
from seawall.events import silent
from seawall.model import BackupKind, Proof, RecoveryTarget, TargetKind
from seawall.repository import Repository
from seawall.retention import Collected, RetentionPolicy
from seawall.storage.base import Bytes, Stat, Storage
from seawall.storage.local import LocalStorage
from seawall.storage.wrappers import Wrapper

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
FULL, INCREMENTAL = BackupKind.FULL, BackupKind.INCREMENTAL
ONE_DAY = RetentionPolicy.of_days(1)
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t"


class Later(Wrapper):
    """The same storage when some days have passed."""

    def __init__(self, inner: Storage, days: float) -> None:
        super().__init__(inner)
        self.passed = timedelta(days=days)

    def now(self) -> datetime:
        return self.inner.now() + self.passed

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        return self._later(self.inner.put(name, chunks))

    def stat(self, name: str) -> Stat:
        return self._later(self.inner.stat(name))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        return map(self._later, self.inner.list(prefix))

    def _later(self, stat: Stat) -> Stat:
        return replace(stat, modified_at=stat.modified_at + self.passed)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times count after a moment, so that an incremental takes over what was not written to."""
    monkeypatch.setattr(changes, "SETTLE_NS", 200_000_000)


def cleaned(site: Site, days: float) -> Collected:
    """Both steps of retention, the first after so many days, the second more than a day later."""
    for wait in (0.0, 1.1):
        repository = Repository.open(Later(LocalStorage(site.home / "repository"), days + wait))
        now = repository.storage.now()
        if not wait:
            plan = retention.plan_for(repository.source("shop"), ONE_DAY, now=now, at_rest=True)
            retention.expire(repository, plan, actor="ada", now=now)
    return retention.collect(repository, "shop", actor="ada", now=now, observe=silent())


def test_an_incremental_restores_after_its_full_backup_was_let_go_and_nothing_is_left_when_it_went_too(
    site: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    site.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 4) AS x FROM generate_series(1, 60000) AS n")
    base = site.backup(FULL)
    site.query("UPDATE t SET x = md5(x) WHERE n % 997 = 0")
    small = site.backup(INCREMENTAL)
    expected = site.query(ROWS)
    assert small.kind is INCREMENTAL and small.prior == str(base.label)
    site.query("UPDATE t SET x = md5(x) WHERE n % 991 = 0")
    site.backup(FULL)
    last = site.backup(FULL)
    layout, storage = site.area.layout, site.area.storage
    hold = site.area.place_hold(small.label, reason="audit", owner="ada", now=site.now())
    whole = {stat.name for stat in storage.list(layout.backup(base.label))}
    done = cleaned(site, 3)
    assert site.area.labels() == (small.label, last.label)
    left = {stat.name for stat in storage.list(layout.backup(base.label))}
    needed = {name for name in site.area.needed_objects(small.label) if name in whole}
    assert left == needed and 0 < len(left) < len(whole)
    assert "later backups refer to them" in done.left[str(base.label)]
    assert site.verify(small.label).reached is Proof.WAL_CONTINUOUS
    with site.restored(RecoveryTarget(TargetKind.IMMEDIATE), label=small.label) as instance:
        assert rows(instance, ROWS) == expected
    site.area.release_hold(hold.id, owner="ada", now=site.now())
    cleaned(site, 6)
    assert site.area.labels() == (last.label,)
    for label in (base.label, small.label):
        assert not list(storage.list(layout.backup(label)))
        assert not site.area.keychain.generations(str(label))
    assert site.verify(last.label).reached is Proof.WAL_CONTINUOUS
