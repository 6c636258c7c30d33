"""Proof, end to end, that backups are taken, stored and restorable here, with a sentence for each thing checked.

Nothing of the cluster or the repository is changed, but for a probe that is deleted again and, where asked, the
open WAL segment that is closed. A failed check never keeps the others from being made: what needs it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from seawall.archive.continuity import Window, windows
from seawall.capacity import Room, room_in
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.health import cluster, host, recoverability
from seawall.health.result import CheckResult, Finding, Round, Status, good, skipped
from seawall.keys import KeyRing
from seawall.model import BackupKind, Head
from seawall.repository import Repository, SourceArea
from seawall.retention import policy_of, promised
from seawall.settings import Settings, SourceSettings
from seawall.storage.base import Storage

__all__ = ["CheckResult", "Status", "check", "first_failure"]

_T = TypeVar("_T")
_OF_STORAGE = ("repository-identity", "recovery-script", "storage", "capabilities", "storage-clock")
_OF_SERVER = (
    "identity", "privileges", "replication", "data-directory", "checksums", "wal-level", "server-clock", "account",
    "space", "slot", "archiver", "archiving", "rpo",
)  # fmt: skip


def check(
    settings: Settings,
    sources: Sequence[SourceSettings],
    ring: KeyRing,
    *,
    now: Callable[[], datetime],
    observe: Observer,
    switch: bool = True,
    hear: Callable[[CheckResult], None] = lambda _result: None,
) -> tuple[CheckResult, ...]:
    """Check this host, the repository, the keys, the catalog and each source.

    Args:
        sources: which of the settings' sources.
        now: this host's clock.
        observe: can stop it.
        switch: close the open WAL segment of each source and see it stored.
        hear: called with each result as it comes.

    Raises:
        Cancelled: on request.
    """
    made = Round(observe, hear)
    made.make("settings", lambda: host.settings_are_sound(settings, sources))
    repository = _repository(made, settings, now)
    _keys(made, settings, ring, now)
    made.make("catalog", lambda: host.catalog_is_current(settings.catalog.url))
    made.make("keeper", lambda: host.keeper_is_alive(settings, now()))
    if repository is None:
        made.skip(("audit",), "the repository does not open")
    else:
        made.make("audit", lambda: host.audit_is_whole(repository, settings.catalog.url, now()))
    for source in sources:
        _Source(made, settings, source, repository, now, observe, switch).check()
    return tuple(made.results)


def first_failure(results: Sequence[CheckResult]) -> SeawallError | None:
    """The error of the first check that failed; its exit code is the command's."""
    return next((result.error for result in results if result.error is not None), None)


def _repository(made: Round, settings: Settings, now: Callable[[], datetime]) -> Repository | None:
    repository = made.learn("repository", lambda: host.repository_opens(settings))
    if repository is None:
        made.skip(_OF_STORAGE, "the repository does not open")
        return None
    storage = repository.storage
    made.make("repository-identity", lambda: host.identity_is_whole(repository))
    made.make("recovery-script", lambda: host.repository_has_script(repository))
    made.make("storage", lambda: _storage_keeps(settings, storage))
    made.make("capabilities", lambda: host.capabilities(storage))
    made.make("storage-clock", lambda: host.clocks_agree("the storage", storage.now, now))
    return repository


def _storage_keeps(settings: Settings, storage: Storage) -> Finding:
    return host.storage_keeps(storage, others_delete=settings.repository.deleting_credentials_file is not None)


def _keys(made: Round, settings: Settings, ring: KeyRing, now: Callable[[], datetime]) -> None:
    keys = made.learn("key-ring", lambda: _with_sentence(ring.list(), lambda found: f"{len(found)} keys"))
    if keys is None:
        made.skip(("recipients", "private-key"), "the key ring cannot be read")
        return
    made.make("recipients", lambda: host.recipients_usable(keys, settings.sealing, now()))
    made.make("private-key", lambda: host.private_key_opens(ring, settings.sealing, keys))


def _with_sentence(value: _T, sentence: Callable[[_T], str]) -> tuple[_T, Finding]:
    return value, good(sentence(value))


@dataclass(frozen=True, slots=True)
class _Source:
    """The checks of one source."""

    made: Round
    settings: Settings
    source: SourceSettings
    repository: Repository | None
    now: Callable[[], datetime]
    observe: Observer
    switch: bool

    @property
    def area(self) -> SourceArea | None:
        return None if self.repository is None else self.repository.source(self.source.name)

    def check(self) -> None:
        facts = self.made.learn("server", lambda: cluster.server_answers(self.source), self.source.name)
        heads = self._heads()
        if facts is None:
            self.made.skip(_OF_SERVER, "the server does not answer", self.source.name)
        else:
            self._server(facts)
            self._wal(facts, heads)
        if self.area is not None and heads is not None:
            self._backups(self.area, heads, facts)
        else:
            self.made.skip(
                ("capacity", "backup-age", "verified", "wal-continuity"),
                "the backups cannot be listed",
                self.source.name,
            )

    def _heads(self) -> tuple[Head, ...] | None:
        area = self.area
        if area is None:
            self.made.skip(("backups",), "the repository does not open", self.source.name)
            return None
        return self.made.learn(
            "backups", lambda: _with_sentence(area.heads(), lambda found: f"{len(found)} listed"), self.source.name
        )

    def _make(self, name: str, ask: Callable[[], Finding]) -> None:
        self.made.make(name, ask, self.source.name)

    def _server(self, facts: cluster.Facts) -> None:
        source, area = self.source, self.area
        if area is None:
            self.made.skip(("identity",), "the repository does not open", source.name)
        else:
            self._make("identity", lambda: cluster.is_same_cluster(facts, area.identity()))
        self._make("privileges", lambda: cluster.privileges(facts, source))
        self._make("replication", lambda: cluster.replication_admitted(source))
        self._make("data-directory", lambda: cluster.data_directory_readable(facts, source))
        self._make("checksums", lambda: cluster.checksums(facts))
        self._make("wal-level", lambda: cluster.wal_level(facts))
        self._make("server-clock", lambda: host.clocks_agree("the server", lambda: cluster.clock_of(source), self.now))
        self._make("account", lambda: cluster.account_can_execute(self.settings, source, facts.major))

    def _wal(self, facts: cluster.Facts, heads: tuple[Head, ...] | None) -> None:
        source, area = self.source, self.area
        self._make("slot", lambda: recoverability.judge_slot(recoverability.slot_of(source), facts, source))
        self._make("archiver", lambda: recoverability.judge_archiver(recoverability.archiver_of(source), facts, source))
        if area is None:
            self.made.skip(("archiving", "space"), "the repository does not open", source.name)
            return
        if self.switch:
            self._make("archiving", lambda: recoverability.archiving_works(source, area, facts, self.observe))
        else:
            self.made.skip(("archiving",), "left out by --no-switch", source.name)
        fulls = [head for head in heads or () if head.kind is BackupKind.FULL]
        newest = fulls[-1] if fulls else None
        self._make("space", lambda: recoverability.space_suffices(self._room(area), facts, newest))

    def _room(self, area: SourceArea) -> Room:
        return room_in(area.storage, self.settings.repository.quota_bytes)

    def _backups(self, area: SourceArea, heads: tuple[Head, ...], facts: cluster.Facts | None) -> None:
        source, rpo = self.source, timedelta(minutes=self.settings.server.rpo_minutes)
        self._make("capacity", lambda: recoverability.storage_lasts(self._room(area).left_bytes, heads, self.now()))
        self._make("backup-age", lambda: recoverability.backup_is_young(heads, self.now()))
        self._make("verified", lambda: self._verified(heads))
        found = self.made.learn("wal-continuity", lambda: self._windows(area, heads), source.name)
        if facts is not None and found is not None:
            self._make("rpo", lambda: recoverability.rpo_is_met(source, area, found, facts, rpo))

    def _windows(self, area: SourceArea, heads: Sequence[Head]) -> tuple[tuple[Window, ...], Finding]:
        window = policy_of(self.settings, self.source).window
        found = promised(windows(area.wal, heads), heads, window, self.now()) if heads else ()
        return found, recoverability.wal_is_continuous(found, [str(head.label) for head in heads])

    def _verified(self, heads: tuple[Head, ...]) -> Finding:
        if self.repository is None or not heads:
            return skipped("there is no backup yet")
        return recoverability.backup_was_verified(self.settings.catalog.url, self.repository.id, heads, self.now())
