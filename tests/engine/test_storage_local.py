"""The local driver where the contract suite cannot look: kills, power cuts, full disks, links, missing mounts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from seawall.errors import (
    NotARepository,
    ObjectExists,
    ObjectMissing,
    SettingsError,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.storage.base import read
from seawall.storage.draft import CLAIM, TEMPORARY, WAYS, by_claim, by_link, by_rename
from seawall.storage.local import LocalStorage

CHUNKS = 3
POINTS = ["folders", "draft", *["chunk"] * CHUNKS, "synced", "published", "settled"]
CONTENT = b"".join(bytes([number]) * 100_000 for number in range(CHUNKS))

WRITER = textwrap.dedent(
    """
    import sys
    from seawall.storage.draft import WAYS
    from seawall.storage.faulty import KillPoint, die
    from seawall.storage.local import LocalStorage

    root, way, number, chunks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    storage = LocalStorage(root, ways=WAYS[way:], at=KillPoint(number, die))
    storage.put("wal/00000001/segment", (bytes([n % 256]) * 100_000 for n in range(chunks)))
    """
)


def writer(root: Path, way: int, number: int, chunks: int = CHUNKS) -> list[str]:
    return [sys.executable, "-c", WRITER, str(root), str(way), str(number), str(chunks)]


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", range(len(WAYS)), ids=["link", "rename", "claim"])
@pytest.mark.parametrize("number", range(1, len(POINTS) + 1), ids=lambda n: f"{n}-{POINTS[n - 1]}")
def test_a_writer_killed_at_any_step_leaves_the_whole_object_or_nothing(tmp_path: Path, way: int, number: int) -> None:
    root = tmp_path / "repository"
    killed = subprocess.run(writer(root, way, number), check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL

    storage = LocalStorage(root, ways=WAYS[way:])
    published = POINTS[number - 1] in ("published", "settled")
    assert [stat.name for stat in storage.list()] == (["wal/00000001/segment"] if published else [])
    if published:
        assert read(storage, "wal/00000001/segment") == CONTENT
        with pytest.raises(ObjectExists):
            storage.put("wal/00000001/segment", [b"other"])
    else:
        assert storage.children("") == ()
        with pytest.raises(ObjectMissing):
            storage.stat("wal/00000001/segment")
        storage.put("wal/00000001/segment", [CONTENT])
    assert storage.sweep(timedelta(0)) == (1 if POINTS[number - 1] in ("draft", "chunk", "synced") else 0)
    assert files(root) == ["wal/00000001/segment"]


def test_the_steps_of_a_put_are_those_that_the_crash_test_stops_at(tmp_path: Path) -> None:
    seen: list[str] = []
    storage = LocalStorage(tmp_path, at=lambda point, _name: seen.append(point))
    storage.put("a/b", [b"x"] * CHUNKS)
    assert seen == POINTS


def test_a_writer_killed_in_the_middle_of_a_long_write_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    process = subprocess.Popen(writer(root, 0, 10**9, chunks=10**9))
    try:
        _wait_until(lambda: sum(path.stat().st_size for path in root.rglob(f"{TEMPORARY}*")) > 5_000_000)
    finally:
        process.kill()
        process.wait()
    storage = LocalStorage(root)
    assert list(storage.list()) == []
    assert storage.sweep(timedelta(hours=1)) == 0
    assert storage.sweep(timedelta(0)) == 1
    assert files(root) == []


def _wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except FileNotFoundError:
            pass  # the folder is not there yet
        time.sleep(0.01)
    pytest.fail("the writer did not begin within 30 s")


def test_a_put_whose_temporary_file_was_swept_away_fails_and_may_be_repeated(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"abc"
        assert storage.sweep(timedelta(0)) == 1
        yield b"def"

    with pytest.raises(StorageError) as caught:
        storage.put("one", chunks())
    assert type(caught.value) is StorageError
    assert caught.value.retryable
    assert files(tmp_path) == []


def test_a_claim_left_by_a_killed_writer_blocks_until_it_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{CLAIM}one").touch()
    storage = LocalStorage(tmp_path, ways=(by_claim,))
    with pytest.raises(StorageError, match="claims this name") as caught:
        storage.put("one", [b"1"])
    assert caught.value.retryable
    assert list(storage.list()) == []
    assert storage.sweep(timedelta(0)) == 1
    storage.put("one", [b"1"])
    assert files(tmp_path) == ["one"]


def opened(descriptor: int) -> str:
    """The path that a descriptor leads to."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class Spy:
    """Records the system calls whose order protects data, and makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for call in ("fsync", "link", "mkdir", "unlink"):
            monkeypatch.setattr(os, call, self._recorded(call, getattr(os, call)))

    def _recorded(self, call: str, real: Callable[..., object]) -> Callable[..., object]:
        def recorded(*args: object, **options: object) -> object:
            self.calls.append(f"{call} {self._subject(args[0])}")
            return real(*args, **options)

        return recorded

    @staticmethod
    def _subject(of: object) -> str:
        path = opened(of) if isinstance(of, int) else str(of)
        leaf = path.rpartition("/")[2]
        return TEMPORARY if leaf.startswith(TEMPORARY) else leaf


def test_content_is_synced_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    spy = Spy(monkeypatch)
    LocalStorage(root).put("a/b/object", [b"x"])
    assert spy.calls == [
        *[f"mkdir {root.name}", f"fsync {tmp_path.name}"],
        *["mkdir a", "fsync root", "mkdir b", "fsync a"],
        *[f"fsync {TEMPORARY}", f"link {TEMPORARY}", f"unlink {TEMPORARY}", "fsync b", f"unlink {TEMPORARY}"],
    ]


def test_a_folder_that_another_process_made_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    storage = LocalStorage(tmp_path)
    spy = Spy(monkeypatch)
    storage.put("a/b/one", [b"1"])
    assert [call for call in spy.calls if call.startswith("fsync")][:2] == [f"fsync {tmp_path.name}", "fsync a"]
    spy.calls.clear()
    storage.put("a/b/two", [b"2"])
    assert [call for call in spy.calls if call.startswith("fsync")] == [f"fsync {TEMPORARY}", "fsync b"]


def test_what_exists_is_durable_before_the_writer_hears_that_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/one", [b"1"])
    spy = Spy(monkeypatch)
    with pytest.raises(ObjectExists):
        LocalStorage(tmp_path).put("a/one", [b"1"])
    assert spy.calls[-2] == "fsync a"


def test_a_deletion_is_durable_before_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/manifest", [b"1"])
    spy = Spy(monkeypatch)
    storage.delete("a/manifest")
    assert spy.calls == ["unlink manifest", "fsync a"]


def test_a_failed_sync_of_the_content_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    real = os.fsync

    def broken(descriptor: int) -> None:
        if TEMPORARY in opened(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        storage.put("a/one", [b"1"])
    assert caught.value.retryable
    assert files(tmp_path) == []


def test_a_failed_sync_of_the_folder_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/zero", [b"0"])
    real = os.fsync

    def broken(descriptor: int) -> None:
        if opened(descriptor).endswith("/a"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError):
        storage.put("a/one", [b"1"])
    assert files(tmp_path) == ["a/zero"]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EACCES, StorageDenied),
        (errno.EPERM, StorageDenied),
        (errno.EROFS, StorageDenied),
        (errno.ESTALE, StorageUnreachable),
        (errno.ETIMEDOUT, StorageUnreachable),
        (errno.EIO, StorageError),
    ],
)
def test_the_kernels_errors_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[StorageError]
) -> None:
    def broken(_descriptor: int, _data: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(StorageError) as caught:
        LocalStorage(tmp_path).put("a/one", [b"1"])
    assert type(caught.value) is error
    assert os.strerror(number) in caught.value.message
    assert ("mounted for reading only" in caught.value.hint) is (number == errno.EROFS)
    assert files(tmp_path) == []


def test_a_kernel_that_takes_a_few_bytes_at_a_time_still_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    storage = LocalStorage(tmp_path)
    content = bytes(range(256))
    assert storage.put("one", [content, bytearray(content), memoryview(content)]).size_bytes == 768
    assert read(storage, "one") == content * 3


def test_chunks_of_any_item_size_are_counted_in_bytes(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.put("wide", [memoryview(b"12345678").cast("I")]).size_bytes == 8
    assert read(storage, "wide") == b"12345678"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a tiny file system cannot be mounted here ({made.stderr.strip()}); RLIMIT_FSIZE covers the rest")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_says_so_keeps_what_was_there_and_leaves_its_space_free(tiny_disk: Path) -> None:
    storage = LocalStorage(tiny_disk)
    storage.put("kept/one", [b"1" * 1_000_000])
    free = storage.free_bytes()
    for _ in range(2):
        with pytest.raises(StorageFull, match="No space left on device") as caught:
            storage.put("new/two", [b"2" * 1_000_000] * 8)
        assert not caught.value.retryable
    assert [stat.name for stat in storage.list()] == ["kept/one"]
    assert read(storage, "kept/one") == b"1" * 1_000_000
    assert storage.free_bytes() == free
    storage.put("new/small", [b"3" * 1_000_000])


def test_a_mount_that_went_away_is_unreachable_and_not_empty(tmp_path: Path, tiny_disk: Path) -> None:
    storage = LocalStorage(tiny_disk)
    storage.put("kept/one", [b"1"])
    subprocess.run(["umount", str(tiny_disk)], check=True)
    try:
        for call in (
            lambda: storage.put("kept/two", [b"2"]),
            lambda: list(storage.get("kept/one")),
            lambda: list(storage.list()),
            lambda: storage.stat("kept/one"),
            lambda: storage.children(""),
            storage.now,
            storage.free_bytes,
        ):
            with pytest.raises(StorageUnreachable, match="another file system"):
                call()
        assert list(tiny_disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tiny_disk)], check=True)


LIMITED = textwrap.dedent(
    """
    import resource, sys
    from seawall.errors import StorageFull
    from seawall.storage.local import LocalStorage

    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    storage = LocalStorage(sys.argv[1])
    storage.put("small", [b"1" * 1_000_000])
    try:
        storage.put("large", [b"2" * 1_000_000] * 4)
    except StorageFull as error:
        assert not error.retryable
        sys.exit(7)
    """
)


def test_a_limit_of_file_size_is_reported_as_full(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 7
    assert files(tmp_path) == ["small"]


READER = textwrap.dedent(
    """
    import os, sys
    from seawall.errors import StorageDenied
    from seawall.storage.local import LocalStorage

    if os.getuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    storage = LocalStorage(sys.argv[1])
    denied = 0
    for call in (
        lambda: storage.put("new/one", [b"1"]),
        lambda: storage.put("open/two", [b"1"]),
        lambda: storage.delete("open/one"),
        lambda: list(storage.get("closed/one")),
        lambda: storage.stat("closed/one"),
        lambda: list(storage.list()),
        lambda: storage.children("closed/"),
        storage.now,
    ):
        try:
            call()
        except StorageDenied:
            denied += 1
    sys.exit(denied)
    """
)


def test_missing_permission_is_denied_and_never_taken_for_absence(tmp_path: Path) -> None:
    # pytest keeps its folders from other accounts, so this one lies beside them.
    root = tmp_path / "root"
    storage = LocalStorage(root)
    storage.put("open/one", [b"1"])
    storage.put("closed/one", [b"1"])
    for folder, mode in (("open", 0o555), ("closed", 0o000), (".", 0o555)):
        (root / folder).chmod(mode)
    above = [folder for folder in tmp_path.parents if folder != Path("/") and folder.stat().st_uid == os.getuid()]
    before = {folder: folder.stat().st_mode for folder in (tmp_path, *above) if not folder.stat().st_mode & 0o001}
    try:
        for folder, mode in before.items():
            folder.chmod(mode | 0o011)
        done = subprocess.run([sys.executable, "-c", READER, str(root)], check=False, timeout=60)
    finally:
        for folder, mode in before.items():
            folder.chmod(mode)
        for folder in (".", "open", "closed"):
            (root / folder).chmod(0o755)
    assert done.returncode == 8


def test_a_root_that_does_not_exist_proves_no_object_absent_but_can_be_made(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "new" / "root")
    for call in (lambda: storage.stat("one"), storage.now, lambda: list(storage.get("one"))):
        with pytest.raises(NotARepository, match="does not exist") as caught:
            call()
        assert not caught.value.retryable
    assert list(storage.list()) == []
    assert storage.children("") == ()
    assert not (tmp_path / "new").exists()
    storage.put("one", [b"1"])
    assert read(storage, "one") == b"1"


def test_a_root_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    storage.put("one", [b"1"])
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageUnreachable):
        storage.put("two", [b"2"])
    for call in (lambda: list(storage.get("one")), lambda: list(storage.list()), lambda: storage.children("")):
        with pytest.raises(StorageUnreachable):
            call()
    assert not (tmp_path / "root").exists()


def test_symbolic_links_below_the_root_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    storage = LocalStorage(root)
    storage.put("real", [b"1"])
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for name in ("folder/secret", "file"):
        with pytest.raises(StorageDenied):
            list(storage.get(name))
        with pytest.raises(StorageDenied):
            storage.stat(name)
    with pytest.raises(StorageDenied):
        storage.put("folder/new", [b"2"])
    with pytest.raises(StorageDenied):
        storage.delete("folder/secret")
    with pytest.raises(ObjectExists):
        storage.put("file", [b"2"])
    assert [stat.name for stat in storage.list()] == ["real"]
    assert files(outside) == ["secret"]


def test_the_root_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "link").put("one", [b"1"])
    assert files(tmp_path / "disk") == ["one"]


def test_foreign_files_in_the_root_are_not_objects_and_do_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o700)
    (tmp_path / "lost+found" / "inode").touch()
    (tmp_path / "System Volume Information").mkdir()
    (tmp_path / ".snapshot").mkdir()
    (tmp_path / f"{TEMPORARY}1").touch()
    os.mkfifo(tmp_path / "pipe")
    storage = LocalStorage(tmp_path)
    storage.put("one", [b"1"])
    assert [stat.name for stat in storage.list()] == ["one"]
    assert storage.children("") == ("one",)
    with pytest.raises(StorageError, match="not a regular file"):
        list(storage.get("pipe"))


def test_an_answer_lost_by_the_file_server_is_told_from_another_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def linked_but_reported_as_existing(*args: str, **options: int) -> None:
        real(*args, **options)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", linked_but_reported_as_existing)
    storage = LocalStorage(tmp_path, ways=(by_link,))
    storage.put("one", [b"1"])
    assert files(tmp_path) == ["one"]
    with pytest.raises(ObjectExists):
        storage.put("one", [b"1"])


def test_a_file_system_without_hard_links_is_written_by_the_next_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    for number in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):

        def without_links(*_args: str, _number: int = number, **_options: int) -> None:
            refused.append(_number)
            raise OSError(_number, os.strerror(_number))

        monkeypatch.setattr(os, "link", without_links)
        storage = LocalStorage(tmp_path)
        storage.put(f"one-{number}", [b"1"])
        with pytest.raises(ObjectExists):
            storage.put(f"one-{number}", [b"2"])
        assert read(storage, f"one-{number}") == b"1"
    assert len(refused) == 3


@pytest.mark.parametrize("way", [by_link, by_rename, by_claim])
def test_no_way_of_publishing_replaces_a_file_that_appears_at_the_last_moment(
    tmp_path: Path, way: Callable[[int, str, str], None]
) -> None:
    (tmp_path / "temporary").write_bytes(b"new")
    (tmp_path / "object").write_bytes(b"old")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            way(folder, "temporary", "object")
    finally:
        os.close(folder)
    assert (tmp_path / "object").read_bytes() == b"old"
    assert (tmp_path / "temporary").read_bytes() == b"new"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        storage.put(f"a/b/{number}", [b"x" * 2_000_000])
        assert next(storage.get(f"a/b/{number}"))
        assert next(storage.list())
        with pytest.raises(ObjectExists):
            storage.put(f"a/b/{number}", [b""])
        with pytest.raises(ObjectExists):
            storage.put(f"a/b/{number}/c", [b""])
        with pytest.raises(ObjectMissing):
            list(storage.get("a/b/c/d"))
        storage.children("a/")
        storage.delete(f"a/b/{number}")
    storage.now()
    storage.free_bytes()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("path", ["relative", "", "./here", "/with\0nul"])
def test_a_path_that_is_not_absolute_is_refused(path: str) -> None:
    with pytest.raises(SettingsError):
        LocalStorage(path)
