"""How a URL becomes a storage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from seawall.errors import SettingsError, UsageError
from seawall.settings import RepositorySettings
from seawall.storage import open_driver, open_storage
from seawall.storage.base import read
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Limited, Retrying, Throttled, TokenBucket


def test_a_plain_path_is_taken_as_it_is(tmp_path: Path) -> None:
    for folder in ("with space", "50%", "a%20b", "what?", "c#", "ü"):
        open_driver(str(tmp_path / folder)).put("one", [folder.encode()])
        assert (tmp_path / folder / "one").read_bytes() == folder.encode()


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("with space", "with space"),
        ("with%20space", "with space"),
        ("50%25", "50%"),
        ("what%3F", "what?"),
        ("c%23", "c#"),
        ("%C3%BC", "ü"),
    ],
)
def test_a_file_url_is_decoded(tmp_path: Path, written: str, folder: str) -> None:
    for beginning in ("file://", "file://localhost", "file:"):
        opened = open_driver(f"{beginning}{tmp_path}/{written}")
        opened.put(f"n{len(beginning)}", [b"1"])
    assert len(list((tmp_path / folder).iterdir())) == 3


def test_the_url_of_a_local_storage_opens_the_same_folder(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "50% of ü?#")
    storage.put("one", [b"1"])
    assert read(open_driver(storage.url), "one") == b"1"


@pytest.mark.parametrize("url", ["", "relative/path", "./x", "~/x", "C:\\backups", "ftp://host/x", "memory:../x"])
def test_what_is_no_place_for_a_repository_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_driver(url)


@pytest.mark.parametrize(
    "rest", ["", "//", "relative", "//host/path", "///a%", "///%zz", "///a?b", "///a#b", "///a%00b"]
)
def test_a_file_url_that_could_mean_another_folder_is_refused(rest: str) -> None:
    with pytest.raises(SettingsError):
        open_driver(f"file:{rest}")


def test_a_refusal_names_the_scheme_and_no_secret() -> None:
    with pytest.raises(SettingsError) as caught:
        open_driver("ftp://user:hunter2@host/bucket?token=hunter3")
    assert "ftp://host/bucket" in caught.value.message
    assert "hunter" not in caught.value.message + caught.value.hint


def test_a_named_memory_is_shared_and_an_unnamed_is_not() -> None:
    open_driver("memory:shared-by-this-test").put("one", [b"1"])
    assert read(open_driver("memory:shared-by-this-test"), "one") == b"1"
    open_driver("memory:").put("one", [b"1"])
    assert list(open_driver("memory:").list()) == []


def test_an_opened_storage_retries_is_limited_and_throttled() -> None:
    bucket = TokenBucket(0)
    storage = open_storage(RepositorySettings(url="memory:", concurrency=3, attempts=2), bucket=bucket)
    assert isinstance(storage, Retrying)
    assert isinstance(storage.inner, Limited)
    assert isinstance(storage.inner.inner, Throttled)
    assert storage.inner.inner.bucket is bucket
    assert isinstance(storage.inner.inner.inner, MemoryStorage)


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"attempts": 0}])
def test_numbers_that_would_never_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        open_storage(RepositorySettings(url="memory:", **wrong))


def test_only_the_driver_in_use_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from seawall.settings import RepositorySettings; from seawall.storage import open_storage\n"
        "list(open_storage(RepositorySettings(url=sys.argv[1])).list())\n"
        "loaded = {'seawall.storage.memory', 'ctypes', 'asyncio', 'http', 'random', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
