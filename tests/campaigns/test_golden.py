"""Repositories that were written once are read by today's reader, and by the script that needs none of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from campaigns import golden, sample
from seawall import restore, verify
from seawall.audit import AuditLog
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, Proof, RecoveryTarget
from seawall.postgres.binaries import Account
from seawall.repository import Repository
from seawall.restore import lay, tree
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
RECOVER = Path(golden.__file__).parent.parent / "seawall" / "standalone" / "recover.py"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
SPACE = "pg_tblspc/16400/"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRing]:
    with golden.keys(GOLDEN, tmp_path_factory.mktemp("golden") / "ring") as ring:
        yield ring


@pytest.fixture(params=sorted(EXPECTED))
def archive(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(archive: str) -> Repository:
    storage = MemoryStorage()
    for name, data in golden.unpacked(GOLDEN / f"{archive}.tar.gz").items():
        storage.put(name, [data])
    return Repository.open(storage)


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def restored(place: Path, tablespace: Path) -> dict[str, str]:
    own = ("backup_label", "tablespace_map", ".seawall-restore.json", "postgresql", "pg_hba", "recovery.signal")
    found = {name: value for name, value in hashes(place).items() if not name.startswith(own)}
    return found | {f"{SPACE}{name}": value for name, value in hashes(tablespace).items()}


def test_there_is_one_of_each_sealing_with_an_incremental(archive: str) -> None:
    kinds = {BackupLabel.parse(label).kind for label in EXPECTED[archive]["backups"]}
    assert kinds == {BackupKind.FULL, BackupKind.INCREMENTAL}
    assert set(EXPECTED) == {golden.name_of(*variant) for variant in golden.VARIANTS}


def test_every_backup_is_proved_and_comes_back_as_it_was(archive: str, keys: KeyRing, tmp_path: Path) -> None:
    repository = opened(archive)
    area = repository.source(sample.SOURCE)
    assert [str(label) for label in area.labels()] == sorted(EXPECTED[archive]["backups"])
    account = Account(os.geteuid(), os.getegid(), "me", tmp_path)
    for label in area.labels():
        verdict = verify.check(area, label, keys, now=NOW, observe=Observer())
        assert (verdict.findings, verdict.reached) == ((), Proof.WAL_CONTINUOUS)
        place = tmp_path / str(label)
        plan = restore.plan(repository, sample.SOURCE, RecoveryTarget(), place, label=label, now=NOW)
        lay.lay(plan, area, keys, account, workers=1, observe=Observer())
        tree.reveal_control(place)
        spaces = next(path for path in tmp_path.glob(f"{label}*") if path != place)
        assert restored(place, spaces / "16400") == EXPECTED[archive]["backups"][str(label)]


def test_all_wal_audit_and_documents_are_read(archive: str, keys: KeyRing) -> None:
    repository = opened(archive)
    area = repository.source(sample.SOURCE)
    for name, expected in EXPECTED[archive]["wal"].items():
        if name.endswith(".tail"):
            found = area.wal.fetch_tail(Segment.parse(name[:24], sample.SEGMENT_BYTES), keys)
            assert found is not None
            data = found[1]
        else:
            data = area.wal.fetch(name, keys)
        assert hashlib.sha256(data).hexdigest() == expected, name
    assert AuditLog(repository.storage).verify()[0] >= 4
    assert [hold.reason for hold in area.holds(NOW)] == ["lawsuit"]
    assert area.wal.histories().keys() == {2}
    identity = area.identity()
    assert identity is not None
    assert identity.timelines == (1, 2)


def test_the_script_alone_restores_the_incremental(archive: str, keys: KeyRing, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "repository")
    for name, data in golden.unpacked(GOLDEN / f"{archive}.tar.gz").items():
        storage.put(name, [data])
    secret = tmp_path / "passphrase"
    secret.write_text(sample.PASSPHRASE)
    secret.chmod(0o600)
    label, into = max(EXPECTED[archive]["backups"]), tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-I", str(RECOVER), "--repository", str(tmp_path / "repository"), "--source", sample.SOURCE,
         "--label", label, "--into", str(into), "--gnupg-home", str(keys.home), "--passphrase-file", str(secret)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = EXPECTED[archive]["backups"][label]
    assert restored(into, tmp_path / "data.tablespaces" / "16400") == expected
    found = hashes(tmp_path / "data.wal")
    segments = {name: value for name, value in EXPECTED[archive]["wal"].items() if len(name) == 24}
    needed = {name: value for name, value in segments.items() if name in found}
    assert {name: found[name] for name in needed} == needed
    assert len(needed) >= 5
