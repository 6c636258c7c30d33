"""`python -m benchmarks.entries`: peak memory and time of what a backup's number of files decides, without the files.

A made-up listing of so many relation files of one page goes through listing, packing, notes of extents, ledger, block
map, manifest and the host's copy (`commit`); every file of the copy is looked up (`prior`); an incremental of which
nothing changed lists, compares and commits again (`incremental`), and one of which every file changed (`changed`); one
in stream mode takes in what a server sends that says that nothing changed (`told`), after what the server is told of
the prior; the manifest is read as verification and restore do (`read`). No bundle is made: its memory does not depend
on the number of files.
Each step is a process of its own, measured beside one that only imports the same (`nothing`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from benchmarks import measure
from seawall.backup import compare, stream
from seawall.backup.attempts import AttemptLog
from seawall.backup.compare import Comparison
from seawall.backup.ledger import CopiedFile, Extents, Ledger
from seawall.backup.load import WholeFiles, pack
from seawall.backup.output import Output, run_together
from seawall.backup.prior import Maps, Prior
from seawall.codec import run_bytes
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Extent,
    FileEntry,
    Head,
    SealingMode,
    StoredObject,
)
from seawall.postgres import incremental
from seawall.postgres.listing import CopyEntry, Listing
from seawall.postgres.stream import BaseBackup, StreamedFile
from seawall.repository import Repository, Sealing, SourceArea, blocks
from seawall.repository.blocks import FileBlocks
from seawall.repository.wanted import Wanted
from seawall.storage.local import LocalStorage
from seawall.storage.wrappers import TokenBucket
from seawall.wal import Lsn

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_LABEL = BackupLabel(_NOW)
_PAGE_BYTES = 8192
# Long after the times of the files, so that these say that nothing was written since.
_LISTED_AT_NS = 10**18
_FILES_IN_A_DATABASE = 250_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.entries", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000, help="how many (default: 1,000,000)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    parser.add_argument("--only", nargs="*", choices=list(_STEPS), help="which steps (default: all)")
    parser.add_argument("--step", choices=list(_STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        _STEPS[options.step](options.work, options.files)
        return 0
    work = Path(tempfile.mkdtemp(prefix="seawall-entries-", dir=options.work))
    try:
        print(f"{'':<14}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}")
        for step in options.only or _STEPS:
            words = (sys.executable, "-m", "benchmarks.entries", "--step", step, "--files", str(options.files))
            # The command's own directory may be another.
            place = {"PYTHONPATH": str(Path(__file__).parents[1])}
            wall, cpu, peak = measure.run([*words, "--work", work], environment=place)
            print(f"{step:<14}{wall:>9.1f}{cpu:>9.1f}{peak / 1e6:>9.0f}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _commit(work: Path, files: int) -> None:
    area = Repository.create(LocalStorage(work / "repository"), now=_NOW).source("bench")
    with KeyRing(work / "ring") as ring:
        writer = area.begin(_LABEL, Sealing(SealingMode.NONE, Compression.LZ4, 1, (), ring), _NOW)
        listing = Listing(_found(files))
        bundles = pack(WholeFiles(listing, array("Q", range(len(listing)))), 2)
        own = [
            StoredObject(f"sources/bench/backups/{_LABEL}/bundles/{n:08}-00", 1, "00" * 32, 1)
            for n in range(len(bundles))
        ]
        for stored in own:
            # An incremental looks whether they are there.
            area.storage.put(stored.name, [b"."])
        with closing(Extents()) as extents:
            for bundle, stored in zip(bundles, own, strict=True):
                for number, part in enumerate(bundle):
                    hashed = hashlib.sha256(part.entry.path.encode()).digest()
                    extent = Extent(
                        stored.name, number * _PAGE_BYTES, part.length, hashed.hex(), run_bytes(_PAGE_BYTES)
                    )
                    extents.add(part.entry.path, part.offset, extent, hashed[:16])
            ledger = Ledger((_copied(entry, extents) for entry in listing), own)
        with closing(ledger), area.lease("bench", "backup") as held:
            head = writer.commit(
                _head(ledger),
                objects=ledger.objects,
                specials={},
                files=ledger.entries(),
                held=held,
                block_map=blocks.encode(str(_LABEL), _LISTED_AT_NS, ledger.maps()),
            )
            Maps(work / "maps").keep(head, ledger.objects, _LISTED_AT_NS, ledger.lines())


def _prior(work: Path, files: int) -> None:
    with Prior(_area(work).head(_LABEL), work / "maps" / f"{_LABEL}.map") as prior:
        if not all(prior.get(entry.path) for entry in _found(files)):
            raise SystemExit("a file is not found again")


def _incremental(work: Path, files: int) -> None:
    def nothing_changed(prior: Prior, output: Output) -> Ledger:
        listing = Listing(_found(files))
        if Comparison(listing, prior, output, workers=2, bucket=TokenBucket(0), reread=False).parts():
            raise SystemExit("files are stored that did not change")
        return output.files(listing)

    _build_on(work, 4, nothing_changed)


def _changed(work: Path, files: int) -> None:
    page = work / "page"
    page.write_bytes(b"x" * _PAGE_BYTES)

    def all_changed(prior: Prior, output: Output) -> Ledger:
        # Every file is one that lies there once; what is measured is what is held of each.
        setattr(compare, "opened", lambda _entry: os.open(page, os.O_RDONLY))  # noqa: B010 - replaced on purpose
        listing = Listing(replace(entry, mtime_ns=2) for entry in _found(files))
        parts = Comparison(listing, prior, output, workers=2, bucket=TokenBucket(0), reread=False).parts()
        if len(parts) != files:
            raise SystemExit("a change was not seen")
        for number, bundle in enumerate(pack(parts, 2)):
            stored = StoredObject(
                f"sources/bench/backups/{output.writer.label}/bundles/{number:08}-00", 1, "00" * 32, 1
            )
            _area(work).storage.put(stored.name, [b"."])
            output.objects.append(stored)
            for place, part in enumerate(bundle):
                hashed = hashlib.sha256(part.entry.path.encode()).digest()
                extent = Extent(stored.name, place * _PAGE_BYTES, part.length, hashed.hex(), run_bytes(_PAGE_BYTES))
                output._stored.add(part.entry.path, part.offset, extent, hashed[:16])
        return output.files(listing)

    _build_on(work, 8, all_changed)


def _told(work: Path, files: int) -> None:
    def nothing_sent(prior: Prior, output: Output) -> Ledger:
        for _ in incremental.backup_manifest(stream._told(prior), _PAGE_BYTES):
            pass
        sent = (
            StreamedFile(each.path, "file", each.mode, each.size, each.mtime, "", True, 0, iter(()), iter(()))
            # A server sends in the order of its directories.
            for each in _found(files, step=-1)
        )
        lanes, listings = stream._Lanes(2, output), list[Listing]()
        base = cast(BaseBackup, SimpleNamespace(files=lambda: sent))
        deal = stream._Dealing(base, lanes, output, TokenBucket(0))
        run_together([lambda: listings.append(Listing(deal.listed())), *lanes.jobs()], output)
        return output.files(listings[0], listings[0].places)

    _build_on(work, 12, nothing_sent)


def _build_on(work: Path, hours: int, copy: Callable[[Prior, Output], Ledger]) -> None:
    """Take an incremental on what `commit` made."""
    area = _area(work)
    label = BackupLabel(_NOW + timedelta(hours=hours), BackupKind.INCREMENTAL, _NOW)
    with KeyRing(work / "ring") as ring, ExitStack() as stack:
        prior = stack.enter_context(Prior(area.head(_LABEL), work / "maps" / f"{_LABEL}.map"))
        writer = area.begin(label, Sealing(SealingMode.NONE, Compression.LZ4, 1, (), ring), _NOW)
        output = Output(writer, silent(), _PAGE_BYTES, AttemptLog(None, silent()), prior)
        ledger = stack.enter_context(closing(copy(prior, output)))
        head = writer.commit(
            replace(_head(ledger), label=label, kind=BackupKind.INCREMENTAL, prior=str(_LABEL)),
            objects=ledger.objects,
            specials={},
            files=ledger.entries(),
            held=stack.enter_context(area.lease("bench", "backup")),
            block_map=blocks.encode(str(label), _LISTED_AT_NS, ledger.maps()),
        )
        Maps(work / "maps").keep(head, ledger.objects, _LISTED_AT_NS, ledger.lines())


def _read(work: Path, files: int) -> None:
    with KeyRing(work / "ring") as ring:
        wanted = Wanted()
        for entry in _area(work).manifest(_LABEL, ring).files():
            wanted.whole(entry)
        if sum(len(wanted.entries(name)) for name in wanted.objects()) != files:
            raise SystemExit("the manifest does not name every file")


def _nothing(_work: Path, _files: int) -> None:
    """The interpreter and the imports."""


_STEPS: dict[str, Callable[[Path, int], None]] = {
    "nothing": _nothing,
    "commit": _commit,
    "prior": _prior,
    "incremental": _incremental,
    "changed": _changed,
    "told": _told,
    "read": _read,
}


def _area(work: Path) -> SourceArea:
    return Repository.open(LocalStorage(work / "repository")).source("bench")


def _found(files: int, step: int = 1) -> Iterator[CopyEntry]:
    for number in range(files)[::step]:
        path = f"base/{3_000_000_000 + number // _FILES_IN_A_DATABASE}/{3_000_000_000 + number}"
        yield CopyEntry(
            "/srv/data",
            path,
            "file",
            0o600,
            _PAGE_BYTES,
            1.5,
            is_relation=True,
            mtime_ns=1,
            ctime_ns=1,
            inode=number + 1,
        )


def _copied(listed: CopyEntry, extents: Extents) -> CopiedFile:
    rows = extents.of(listed.path)
    entry = FileEntry(listed.path, "file", 0o600, listed.size, listed.mtime, tuple(row.extent for row in rows))
    digests = b"".join(row.digests for row in rows)
    return CopiedFile(entry, FileBlocks(listed.path, listed.size, 1, 1, listed.inode, run_bytes(listed.size), digests))


def _head(ledger: Ledger) -> Head:
    return Head(
        label=_LABEL,
        source="bench",
        kind=BackupKind.FULL,
        mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(1, 15, (1,)),
        server_version=150000,
        timeline=1,
        start_lsn=Lsn(1 << 24),
        stop_lsn=Lsn(2 << 24),
        segment_bytes=1 << 24,
        began_at=_NOW,
        ended_at=_NOW + timedelta(seconds=2),
        stopped_at=_NOW + timedelta(seconds=1),
        plain_bytes=ledger.plain_bytes,
        stored_bytes=0,
        file_count=len(ledger),
        object_count=len(ledger.objects),
        compression=Compression.LZ4,
        sealing=SealingMode.NONE,
        key_id="",
        manifest_sha256="",
        manifest_bytes=0,
    )


if __name__ == "__main__":
    sys.exit(main())
