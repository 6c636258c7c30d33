"""Objects as files below one folder, on a local disk or a mounted share.

Invariants: an object appears whole or not at all and is never replaced (`draft.py`); when `put` returns, the file, its
folder and every folder above it up to the root are synced; no path leaves the root. Nothing is taken for absent because
a disk is not mounted (`folders.py`): a root that vanished is an unreachable storage, and one that never was there is
no repository; only `list` and `children` call that empty, because a repository may be about to be made there.

Not guaranteed: protection from other programs that write below the root, and durability on devices that acknowledge
a flush which they did not do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from seawall.errors import (
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    SettingsError,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.storage.base import (
    LARGEST_PIECE_BYTES,
    Bytes,
    Capabilities,
    Stat,
    checked_folder,
    checked_object_name,
    checked_prefix,
    checked_range,
)
from seawall.storage.draft import CLAIM, TEMPORARY, WAYS, Draft, Publish
from seawall.storage.folders import Folders, closing, enter, entries, is_folder, sync_folder

# Without O_NONBLOCK, opening a named pipe that somebody left there would wait for a writer for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

# How often `put` makes folders again that another process, cleaning up, removed before they held anything.
_FOLDER_RACES = 16

# Only these ask for one object, so only there a missing file means that the object is absent.
_READING = ("read", "look at")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})
_HINTS = {
    errno.ELOOP: "Symbolic links below a repository's folder are not followed.",
    errno.EROFS: "It is mounted for reading only, perhaps since the kernel found an error: see `findmnt` and `dmesg`.",
}
_UNREACHABLE = frozenset(
    {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN}
)


def open_url(url: str, *_how: object) -> LocalStorage:
    """The storage at `file:///absolute/path` (percent-encoded) or at a plain absolute path (taken as it is).

    Raises:
        SettingsError: the URL is not one of these.
    """
    return LocalStorage(_path_of(url))


def folder_of(url: str) -> str | None:
    """The folder of this host that a path or URL names; None for a place elsewhere, and for a URL that names none."""
    if not url.startswith(("/", "file:")):
        return None
    try:
        return _path_of(url)
    except SettingsError:
        return None  # whoever opens it is told


class LocalStorage:
    """A folder of objects.

    Args:
        path: absolute; may be a symbolic link itself. The first `put` makes it if it does not exist.
        ways: how a finished file gets its name, tried in this order.
        at: called as `at(point, name)` when a step of `put` or `delete` is done, for crash tests: `folders`, `draft`,
            `chunk`, `synced`, `published`, `settled`, `removed`.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        ways: Sequence[Publish] = WAYS,
        at: Callable[[str, str], None] = lambda _point, _name: None,
    ) -> None:
        if not Path(path).is_absolute() or "\0" in str(path):
            raise SettingsError(f"storage path {str(path)!r} must be absolute")
        self._folders = Folders(Path(path))
        self._ways = tuple(ways)
        self._at = at

    @property
    def url(self) -> str:
        return self._folders.root.as_uri()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_only=True, consistent_list=True, object_lock=False, free_space=True)

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        checked_object_name(name)
        with self._translated("write", name):
            draft = self._draft(name)
        try:
            self._refuse_existing(draft, name)
            # The caller's own errors, which `chunks` may raise, must reach the caller as they are.
            for chunk in chunks:
                with self._translated("write", name):
                    draft.write(chunk)
                self._at("chunk", name)
            with self._translated("write", name):
                return self._finish(draft, name)
        finally:
            draft.close()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        checked_object_name(name)
        checked_range(offset, length)
        with self._translated("read", name):
            file, size = self._open_object(name)
        try:
            end = size if length is None else offset + length
            if max(offset, end) > size:
                raise ObjectTruncated(f"{name} in {self.url} has {size} bytes, but bytes {offset} to {end} are wanted")
            while offset < end:
                with self._translated("read", name):
                    piece = os.pread(file, min(LARGEST_PIECE_BYTES, end - offset), offset)
                if not piece:
                    raise ObjectTruncated(f"{name} in {self.url} lost its end while it was read, at byte {offset}")
                offset += len(piece)
                yield piece
        finally:
            os.close(file)

    def stat(self, name: str) -> Stat:
        checked_object_name(name)
        with self._translated("look at", name), self._folder_of(name) as folder:
            found = os.stat(name.rpartition("/")[2], dir_fd=folder, follow_symlinks=False)
            if modes.S_ISDIR(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "only a folder has this name")
            return _stat_of(_regular(found), name)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        checked_prefix(prefix)
        if self._folders.never_made():
            return
        above, _, beginning = prefix.rpartition("/")
        with self._translated("list", prefix):
            folder = self._folders.open(above.split("/") if above else [])
            if folder is not None:
                yield from self._walk(folder, f"{above}/" if above else "", beginning)

    def children(self, folder: str) -> tuple[str, ...]:
        checked_folder(folder)
        if self._folders.never_made():
            return ()
        with self._translated("list", folder):
            opened = self._folders.open(folder.split("/")[:-1])
            if opened is None:
                return ()
            with closing(opened):
                found = entries(opened, top=not folder)
                return tuple(sorted(e.name for e in found if not is_folder(e) or self._holds_any(f"{folder}{e.name}/")))

    def delete(self, name: str) -> None:
        checked_object_name(name)
        above = name.split("/")[:-1]
        with self._translated("delete", name):
            folder = self._folders.open(above)
            if folder is None:
                return
            with closing(folder):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name.rpartition("/")[2], dir_fd=folder)
                # A manifest goes before its data: without this sync a power cut could bring the manifest back alone.
                sync_folder(folder)
            self._at("removed", name)
            self._folders.remove_empty(above)

    def now(self) -> datetime:
        """The time that the file system stamps a new file with (a share has its server's clock)."""
        probe = f"{TEMPORARY}clock-{os.getpid()}-{os.urandom(8).hex()}"
        with self._translated("write", probe), closing(self._folders.open_root()) as root:
            file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=root)
            try:
                os.write(file, b"\n")
                return _moment(os.fstat(file))
            finally:
                os.close(file)
                os.unlink(probe, dir_fd=root)

    def free_bytes(self) -> int | None:
        with self._translated("look at", ""), closing(self._folders.open_root()) as root:
            space = os.fstatvfs(root)
            return space.f_bavail * space.f_frsize

    def close(self) -> None:
        """Nothing is held open between calls."""

    def sweep(self, older_than: timedelta) -> int:
        """Remove temporary files that interrupted writers left; how many there were.

        Args:
            older_than: age by the file system's own clock; longer than any put can be silent, at least an hour.

        Raises:
            StorageDenied: a leftover may not be removed.
        """
        limit = self.now() - older_than
        with self._translated("sweep", ""):
            return self._sweep([], limit)

    # -- writing

    def _draft(self, name: str) -> Draft:
        *above, leaf = name.split("/")
        for _ in range(_FOLDER_RACES):
            try:
                folder = self._folders.make(above)
            except NotADirectoryError as error:
                raise ObjectExists(f"{name} in {self.url} would lie below another object") from error
            except FileNotFoundError:
                continue
            self._at("folders", name)
            try:
                draft = Draft(folder, leaf)
            except FileNotFoundError:
                os.close(folder)
            except OSError:
                os.close(folder)
                raise
            else:
                self._at("draft", name)
                return draft
        raise StorageError(f"the folder of {name} in {self.url} is removed again and again")

    def _refuse_existing(self, draft: Draft, name: str) -> None:
        with self._translated("write", name):
            if draft.taken():
                self._report_existing(draft, name)

    def _report_existing(self, draft: Draft, name: str) -> None:
        # Who finds identical content there takes it for stored, so what exists must be durable before we say so.
        draft.settle()
        raise ObjectExists(f"{name} exists already in {self.url}")

    def _finish(self, draft: Draft, name: str) -> Stat:
        # The content first: a name that survives a power cut must never lead to bytes that did not.
        written = draft.sync()
        if written.st_size != draft.size_bytes:
            raise StorageError(
                f"{name} in {self.url} has {written.st_size} bytes after {draft.size_bytes} were written"
            )
        self._at("synced", name)
        try:
            draft.publish(self._ways)
        except FileExistsError:
            self._report_existing(draft, name)
        self._at("published", name)
        try:
            draft.settle()
        except OSError:
            draft.withdraw()
            raise
        self._at("settled", name)
        return _stat_of(written, name)

    # -- reading

    def _holds_any(self, folder: str) -> bool:
        """Whether an object lies below; a folder that an interrupted writer left behind may hold none."""
        return next(self.list(folder), None) is not None

    @contextlib.contextmanager
    def _folder_of(self, name: str) -> Iterator[int]:
        folder = self._folders.open(name.split("/")[:-1])
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
        with closing(folder):
            yield folder

    def _open_object(self, name: str) -> tuple[int, int]:
        with self._folder_of(name) as folder:
            file = os.open(name.rpartition("/")[2], _FILE, dir_fd=folder)
        try:
            found = os.fstat(file)
            if modes.S_ISDIR(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "only a folder has this name")
            return file, _regular(found).st_size
        except OSError:
            os.close(file)
            raise

    def _walk(self, folder: int, path: str, beginning: str) -> Iterator[Stat]:
        """Objects below `folder`, which is closed at the end, in the order of their whole names."""
        with closing(folder):
            found = [e for e in entries(folder, top=not path) if e.name.startswith(beginning)]
            # `a.b` sorts before `a/b`, so a folder takes its place with the slash that follows it.
            found.sort(key=lambda e: f"{e.name}/" if is_folder(e) else e.name)
            for entry in found:
                # What vanished since the folder was read was deleted in the meantime.
                with contextlib.suppress(FileNotFoundError):
                    if is_folder(entry):
                        yield from self._walk(enter(folder, entry.name), f"{path}{entry.name}/", "")
                    else:
                        yield _stat_of(entry.stat(follow_symlinks=False), path + entry.name)

    def _sweep(self, parts: Sequence[str], limit: datetime) -> int:
        folder = self._folders.open(parts)
        if folder is None:
            return 0
        with closing(folder):
            with os.scandir(folder) as everything:
                leftovers = [entry for entry in everything if entry.name.startswith((TEMPORARY, CLAIM))]
            swept = sum(_remove_older(folder, entry, limit) for entry in leftovers)
            below = [entry.name for entry in entries(folder, top=not parts) if is_folder(entry)]
        swept += sum(self._sweep([*parts, name], limit) for name in below)
        if swept:
            self._folders.remove_empty(parts)
        return swept

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explained(error, action, name) from error

    def _explained(self, error: OSError, action: str, name: str) -> StorageError:
        message = f"cannot {action} {name or 'the root'} in {self.url}: {error.strerror or error}"
        if isinstance(error, FileNotFoundError) and action in _READING:
            return ObjectMissing(message)
        if error.errno in _FULL:
            return StorageFull(message)
        if error.errno in _DENIED:
            return StorageDenied(message, hint=_HINTS.get(error.errno))
        if error.errno in _UNREACHABLE:
            return StorageUnreachable(message)
        return StorageError(message)


def _remove_older(folder: int, entry: os.DirEntry[str], limit: datetime) -> int:
    try:
        if _moment(entry.stat(follow_symlinks=False)) > limit:
            return 0
        os.unlink(entry.name, dir_fd=folder)
    except FileNotFoundError:
        return 0
    return 1


def _regular(found: os.stat_result) -> os.stat_result:
    if not modes.S_ISREG(found.st_mode):
        raise OSError(errno.ELOOP if modes.S_ISLNK(found.st_mode) else errno.EINVAL, "it is not a regular file")
    return found


def _stat_of(found: os.stat_result, name: str) -> Stat:
    return Stat(name, found.st_size, _moment(found))


def _moment(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime_ns / 1e9, UTC)


def _path_of(url: str) -> str:
    if not url.startswith("file:"):
        return url
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - a plain path needs none of it

    path = url.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        path = slash + rest if host in ("", "localhost") else ""
    # A lone `%` is a path that somebody forgot to encode: decoding it would lead to another folder.
    if not path.startswith("/") or "?" in path or "#" in path or _badly_encoded(path):
        raise SettingsError(
            f"storage URL {url!r} is not file:///absolute/path",
            hint="Write % as %25, ? as %3F and # as %23 in a URL, or give the plain absolute path.",
        )
    return os.fsdecode(unquote_to_bytes(path))


def _badly_encoded(path: str) -> bool:
    digits = frozenset("0123456789abcdefABCDEF")
    return any(len(text) < 2 or not digits.issuperset(text[:2]) for text in path.split("%")[1:])
