"""The stand-alone script where an object is damaged and locked, and its sound copy lies beside it; and who it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from seawall.repository.layout import IDENTITY, IDENTITY_COPY, REPAIRS
from seawall.standalone import recover

Recover = Callable[[], int]


@pytest.fixture
def laid(site: Any, tmp_path: Path) -> Path:
    """A repository in a folder, with a backup and WAL over two timelines."""
    site.wal(1, 4)
    site.backup(0, 1, 3.5)
    site.history(2, (1, 4.5))
    site.wal(4, 5, timeline=2)
    for stat in site.storage.list():
        path = tmp_path / "repository" / stat.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(site.read(stat.name))
    return tmp_path / "repository"


@pytest.fixture
def recovered(laid: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> Recover:
    words = ["recover.py", "--repository", str(laid), "--source", "shop", "--into", str(into)]
    monkeypatch.setattr(sys, "argv", words)
    return recover.main


def damage(repository: Path, names: list[str], *, repaired: bool) -> None:
    for name in names:
        path = repository / name
        sound = path.read_bytes()
        if repaired:
            beside = repository / REPAIRS / name
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(sound)
        path.write_bytes(sound[:-30] + bytes([sound[-30] ^ 1]) + sound[-29:])


def named(repository: Path, pattern: str) -> list[str]:
    return [str(path.relative_to(repository)) for path in repository.rglob(pattern)]


@pytest.mark.parametrize(
    "pattern", ["bundles/*", "head.json", "manifest*", "000000010000000000000002", "*.history", "seawall*.json"]
)
def test_what_lies_in_repairs_is_taken_for_what_is_damaged(
    laid: Path, recovered: Recover, into: Path, content: Mapping[str, bytes], pattern: str
) -> None:
    damage(laid, named(laid, pattern), repaired=True)
    assert recovered() == 0
    assert {name: (into / name).read_bytes() for name in content if "conf" not in name} == {
        name: data for name, data in content.items() if "conf" not in name
    }
    assert {path.name for path in into.with_name(f"{into.name}.wal").iterdir()} >= {
        "000000010000000000000002", "000000020000000000000005", "00000002.history",
    }  # fmt: skip


@pytest.mark.parametrize("pattern", ["bundles/*", "manifest*", "000000010000000000000002", "*.history"])
def test_damage_without_a_repair_is_refused_and_so_is_a_damaged_repair(
    laid: Path, recovered: Recover, pattern: str
) -> None:
    names = named(laid, pattern)
    damage(laid, names, repaired=True)
    for name in names:
        (laid / REPAIRS / name).write_bytes((laid / name).read_bytes())
    assert recovered() == 1


def test_a_lost_identity_keeps_nobody_from_a_backup(
    laid: Path, recovered: Recover, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (IDENTITY, IDENTITY_COPY):
        (laid / name).unlink()
    assert recovered() == 0
    assert "its identity is passed over" in capsys.readouterr().err


def test_what_is_no_repository_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recover.py", "--repository", str(tmp_path), "--list"])
    assert recover.main() == 1
    assert "holds no repository of Seawall" in capsys.readouterr().err
