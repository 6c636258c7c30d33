"""What a host keeps of its newest backups: found again if sound, and never believed if not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.backup.changes import PriorFile, Seen, Times
from seawall.backup.prior import Maps, Prior, map_line
from seawall.errors import Damaged
from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository import blocks, manifest
from seawall.repository.blocks import FileBlocks
from tests.engine.test_backup_plan import head

HEAD = replace(head(1), manifest_sha256="ab" * 32)
OBJECT = StoredObject("sources/shop/backups/20261123T110000Z-full/bundles/00000001-aa", 10, "cd" * 32, 8192)


def file(path: str, size: int = 8192) -> PriorFile:
    extents = (Extent(OBJECT.name, 0, size, "ef" * 32, 8192),) if size else ()
    entry = FileEntry(path, "file", 0o600, size, 5.0, extents)
    return PriorFile(entry, FileBlocks(path, size, 1, 2, 3, 8192, b"d" * 16 if size else b""))


def line(known: PriorFile) -> bytes:
    entry = manifest.encoded_row(known.entry, {OBJECT.name: 0})
    return map_line(known.entry.path, entry, blocks.encoded_row(known.blocks))


STRANGE = "base/a\ttab and \u00e9 \U0001f600"
FILES = (file("base/1/1"), file("base/1/2", 0), file(STRANGE))


@pytest.fixture
def maps(tmp_path: Path) -> Maps:
    made = Maps(tmp_path / "blocks")
    made.keep(HEAD, [OBJECT], 99, map(line, FILES))
    return made


def kept(tmp_path: Path) -> Path:
    return tmp_path / "blocks" / f"{HEAD.label}.map"


def test_every_file_is_found_again_and_no_other(maps: Maps, tmp_path: Path) -> None:
    with Prior(HEAD, kept(tmp_path)) as prior:
        assert [prior.get(known.entry.path) for known in FILES] == list(FILES)
        assert prior.get("base/1/3") is None
        assert sorted(prior.paths()) == sorted(known.entry.path for known in FILES)
        assert (prior.objects, prior.listed_at_ns) == ([OBJECT], 99)
    assert kept(tmp_path).stat().st_mode & 0o777 == 0o600


def test_it_is_of_one_manifest_only(maps: Maps, tmp_path: Path) -> None:
    for other in (replace(HEAD, manifest_sha256="00" * 32), replace(head(2), manifest_sha256=HEAD.manifest_sha256)):
        with pytest.raises(Damaged, match="not of the manifest"):
            Prior(other, kept(tmp_path))


def test_a_file_whose_digests_do_not_fit_its_extents_counts_as_unknown(tmp_path: Path) -> None:
    wrong = replace(FILES[0], blocks=replace(FILES[0].blocks, digests=b"d" * 32))
    Maps(tmp_path / "blocks").keep(HEAD, [OBJECT], 99, [line(wrong)])
    with Prior(HEAD, kept(tmp_path)) as prior:
        assert prior.get(wrong.entry.path) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flip_or_cut_is_found(maps: Maps, tmp_path: Path, data: st.DataObject) -> None:
    maps.keep(HEAD, [OBJECT], 99, map(line, FILES))
    content = bytearray(kept(tmp_path).read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    kept(tmp_path).write_bytes(content)
    with pytest.raises(Damaged):
        Prior(HEAD, kept(tmp_path))


def test_only_what_the_next_backup_may_build_on_stays(maps: Maps, tmp_path: Path) -> None:
    newer = replace(head(0.5), manifest_sha256="ab" * 32)
    maps.keep(newer, [OBJECT], 99, map(line, FILES))
    (tmp_path / "blocks" / ".tmp-left").write_text("of an interruption")
    maps.forget_all_but([str(newer.label)])
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == [f"{newer.label}.map"]


def test_without_a_directory_nothing_is_kept(tmp_path: Path) -> None:
    maps = Maps(None)
    maps.keep(HEAD, [OBJECT], 99, map(line, FILES))
    maps.forget_all_but([])
    assert not list(tmp_path.iterdir())


def test_files_whose_paths_have_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seawall.backup.places.hash", lambda _path: 7, raising=False)
    Maps(tmp_path / "blocks").keep(HEAD, [OBJECT], 99, map(line, FILES))
    with Prior(HEAD, kept(tmp_path)) as prior:
        assert [prior.get(known.entry.path) for known in FILES] == list(FILES)
        assert prior.get("base/1") is None


def test_how_a_file_was_found_is_told_without_its_extents(maps: Maps, tmp_path: Path) -> None:
    with Prior(HEAD, kept(tmp_path)) as prior:
        for known in FILES:
            size = known.entry.size_bytes
            assert prior.seen(known.entry.path) == Seen(Times(size, 1, 2, 3), size)
        assert prior.seen("base/1/3") is None
        assert prior.rows("base/1/3") is None
