"""What an incremental makes of files of which it has only numbers: what to store, and what is taken over how."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from seawall.backup.attempts import AttemptLog
from seawall.backup.changes import SETTLE_NS
from seawall.backup.compare import Comparison
from seawall.backup.load import Part
from seawall.backup.output import Output
from seawall.backup.prior import Maps, Prior, map_line
from seawall.codec.runs import combined, digests_of
from seawall.events import Event, Noticed, Observer
from seawall.model import Extent, FileEntry, StoredObject
from seawall.postgres.listing import CopyEntry, Listing
from seawall.repository import BackupSetWriter, blocks, manifest
from seawall.repository.blocks import FileBlocks
from seawall.storage.wrappers import TokenBucket
from tests.engine.test_backup_plan import head

HEAD = replace(head(1), manifest_sha256="ab" * 32)
BUNDLE = StoredObject("sources/shop/backups/20261123T110000Z-full/bundles/00000001-aa", 10, "cd" * 32, 1 << 20)
RUN = 8192
NAMES = [f"base/1/{n}" for n in range(6)]


def listed(data: Path) -> list[CopyEntry]:
    found = []
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        stat = path.stat()
        found.append(
            CopyEntry(
                str(data), str(path.relative_to(data)), "file", 0o600, stat.st_size, stat.st_mtime, is_relation=True,
                mtime_ns=stat.st_mtime_ns, ctime_ns=stat.st_ctime_ns, inode=stat.st_ino,
            )
        )  # fmt: skip
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "base" / "1"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (tmp_path / "data" / name).write_bytes(bytes([number + 1]) * RUN * 3)
    return tmp_path / "data"


@pytest.fixture
def prior(data: Path, tmp_path: Path) -> Iterator[Prior]:
    """A backup of these files, listed long after anything was written to them."""
    lines = []
    for place, entry in enumerate(listed(data)):
        digests = digests_of(memoryview((data / entry.path).read_bytes()), RUN)
        extent = Extent(BUNDLE.name, place * RUN * 3, entry.size, combined(digests), RUN)
        known = FileBlocks(entry.path, entry.size, entry.mtime_ns, entry.ctime_ns, entry.inode, RUN, digests)
        row = manifest.encoded_row(FileEntry(entry.path, "file", 0o600, entry.size, 5.0, (extent,)), {BUNDLE.name: 0})
        lines.append(map_line(entry.path, row, blocks.encoded_row(known)))
    listed_at_ns = max(entry.ctime_ns for entry in listed(data)) + SETTLE_NS + 1
    Maps(tmp_path / "maps").keep(HEAD, [BUNDLE], listed_at_ns, lines)
    with Prior(HEAD, tmp_path / "maps" / f"{HEAD.label}.map") as opened:
        yield opened


class Compared:
    """What a comparison of a directory with a prior found."""

    def __init__(self, data: Path, prior: Prior, *, reread: bool = False) -> None:
        heard: list[Event] = []
        observe = Observer(heard.append)
        writer = cast("BackupSetWriter", SimpleNamespace(label=HEAD.label))
        output = Output(writer, observe, RUN, AttemptLog(None, observe), prior)
        listing = Listing(listed(data))
        found = Comparison(listing, prior, output, workers=2, bucket=TokenBucket(0), reread=reread).parts()
        self.parts = [(part.entry.path, part.offset, part.length) for part in cast("list[Part]", found)]
        self.notices = [event.code for event in heard if isinstance(event, Noticed)]
        # As if nothing had to be stored: what is left is what was taken over.
        changed = {path for path, _, _ in self.parts}
        with closing(output.files([entry for entry in listing if entry.path not in changed])) as ledger:
            self.ledger = [
                (manifest.from_row(json.loads(entry.json), ledger.objects, name="it"), blocks.from_row(
                    json.loads(known.json), name="it"))
                for entry, known in zip(ledger.entries(), ledger.maps(), strict=True)
            ]  # fmt: skip


def test_files_that_are_found_the_same_are_taken_over_by_their_times_or_by_what_is_in_them(
    data: Path, prior: Prior
) -> None:
    # Another inode and other times under the same content: read, and taken over under the new times.
    moved = data / NAMES[1]
    moved.with_name("new").write_bytes(moved.read_bytes())
    moved.with_name("new").rename(moved)
    for reread in (False, True):
        compared = Compared(data, prior, reread=reread)
        assert (compared.parts, compared.notices) == ([], [])
        for (entry, known), now in zip(compared.ledger, listed(data), strict=True):
            was = prior.get(now.path)
            assert was is not None
            assert entry == replace(was.entry, modified_at=now.mtime)
            assert (known.mtime_ns, known.ctime_ns, known.inode) == (now.mtime_ns, now.ctime_ns, now.inode)
            assert (known.size, known.run_bytes, known.digests) == (now.size, RUN, was.blocks.digests)


def test_what_changed_grew_or_is_new_is_stored_in_the_order_of_files(data: Path, prior: Prior) -> None:
    with (data / NAMES[4]).open("r+b") as file:
        os.pwrite(file.fileno(), b"changed", RUN)
    with (data / NAMES[2]).open("ab") as file:
        file.write(b"x" * 100)
    (data / "base/1/3-new").write_bytes(b"new")
    compared = Compared(data, prior)
    assert compared.parts == [("base/1/2", 3 * RUN, 100), ("base/1/3-new", 0, 3), ("base/1/4", RUN, RUN)]
    assert [entry.path for entry, _ in compared.ledger] == ["base/1/0", "base/1/1", "base/1/3", "base/1/5"]


def test_a_change_under_old_times_has_everything_read(
    data: Path, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody sets a ctime back: here the look at the times is made to believe that it is as it was.
    with (data / NAMES[3]).open("r+b") as file:
        file.write(b"secret" * 4096)
    monkeypatch.setattr("seawall.backup.compare.unchanged_by_times", lambda *_words, **_named: True)
    compared = Compared(data, prior)
    assert compared.notices == ["times-deceive"]
    assert [path for path, _, _ in compared.parts] == ["base/1/3"]
