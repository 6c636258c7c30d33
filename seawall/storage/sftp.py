"""Objects as files on an SFTP server, such as OpenSSH's.

An object is written to `.tmp-…` in its own folder, synced where the server can (`fsync@openssh.com`), and given its
name by a hard link, which fails if the name is taken; where the server's file system has none, by SFTP's own rename,
which OpenSSH refuses onto an existing file. The server must prove itself by a key that `known_hosts` names.

Not guaranteed: that a name survives a power cut of the server in the moment after it was given (SFTP cannot sync a
folder), and that no symbolic link on the server leads elsewhere. Times are whole seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from seawall.errors import (
    NotARepository,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    SettingsError,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.settings import RepositorySettings
from seawall.storage.access import credentials, split
from seawall.storage.base import (
    Bytes,
    Capabilities,
    Stat,
    checked_folder,
    checked_object_name,
    checked_prefix,
    checked_range,
    is_object_name,
)
from seawall.storage.parts import PART_BYTES, cut, send_ahead
from seawall.storage.retry import RetryPolicy, Sleep, repeated
from seawall.storage.sftp_packets import (
    Attributes,
    EndOfFile,
    Nonsense,
    NoSuchFile,
    NotPermitted,
    Open,
    Refused,
    Unsupported,
)
from seawall.storage.sftp_session import Lost, Session
from seawall.storage.ssh import Destination, Line, check_key

_T = TypeVar("_T")
_Entries = list[tuple[str, Attributes]]

TEMPORARY = ".tmp-"
_NEW = Open.WRITE | Open.CREATE | Open.EXCLUSIVE
_FOLDER_MODE = 0o750
_THREADS = 8

# How often `put` makes folders again that another client, cleaning up, removed before they held anything.
_FOLDER_RACES = 16

# SFTP 3 has one code for everything unusual, also for a full disk; below this much free space that is the likely cause.
_NEARLY_FULL_BYTES = 1 << 20


def open_url(url: str, settings: RepositorySettings, sleep: Sleep = time.sleep) -> SftpStorage:
    """The storage at `sftp://user@host:port/absolute/path`; nothing is asked of the server yet.

    Raises:
        SettingsError: the URL or the key file is wrong, or OpenSSH's client is not installed.
    """
    parts = split(url)
    if parts.password is not None:
        raise SettingsError("a storage URL must not hold a password", hint="Use a key: credentials_file.")
    if not parts.hostname or parts.path in ("", "/") or parts.query or parts.fragment:
        raise SettingsError("a storage URL of this kind is sftp://USER@HOST/ABSOLUTE/PATH")
    root = unquote(parts.path).rstrip("/")
    if "\0" in root or "/../" in f"{root}/":
        raise SettingsError("the path of an sftp URL must be absolute and without '..'")
    user = None if parts.username is None else unquote(parts.username)
    to = Destination(parts.hostname, parts.port or 22, user, _key(settings), _known_hosts(settings))
    return SftpStorage(Connection(to), root, RetryPolicy(attempts=settings.attempts), sleep)


class Connection:
    """One session that is begun when it is needed, and anew when it was lost; for several threads."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._beginning = threading.Lock()
        self._session: Session | None = None

    @property
    def host(self) -> str:
        return self._to.host

    @property
    def address(self) -> str:
        return self._to.address

    def session(self) -> Session:
        """The session that there is, or a new one.

        Raises:
            Lost: the server is not there, or does not admit us.
        """
        with self._beginning:
            if self._session is None or self._session.lost:
                self._session = Session(Line(self._to))
            return self._session

    def close(self) -> None:
        with self._beginning:
            if self._session is not None:
                self._session.close()
                self._session = None


class SftpStorage:
    """A folder of objects on an SFTP server.

    Args:
        root: absolute; the first `put` makes it if it does not exist.
        policy: how often one request of a put is repeated.
        sleep: called with seconds between these.
    """

    def __init__(
        self, connection: Connection, root: str, policy: RetryPolicy | None = None, sleep: Sleep = time.sleep
    ) -> None:
        self._connection = connection
        self._root = root
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="sftp-part")

    @property
    def url(self) -> str:
        return f"sftp://{self._connection.address}{self._root}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_only=True, consistent_list=True, object_lock=False, free_space=True)

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        checked_object_name(name)
        draft = self._again(f"begin {name}", lambda: self._draft(name))
        try:
            self._refuse_existing(name)
            sent = send_ahead(
                cut(chunks), lambda number, part: self._executor.submit(self._write, draft, name, number, part)
            )
            self._again(f"sync {name}", lambda: self._synced(draft, name))
            self._settle(draft, name, sent)
        finally:
            with contextlib.suppress(StorageError), self._translated("clean up after", name):
                draft.dispose(self._session)
        return self._confirmed(name, sent)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        checked_object_name(name)
        checked_range(offset, length)
        size = self.stat(name).size_bytes
        end = size if length is None else offset + length
        if max(offset, end) > size:
            raise ObjectTruncated(f"{name} in {self.url} has {size} bytes, but bytes {offset} to {end} are wanted")
        if offset == end:
            return
        with self._translated("read", name):
            session = self._session
            handle = session.open(self._path(name), Open.READ)
        try:
            yield from self._pieces(session.read(handle, offset, end), name)
        finally:
            session.give_up(handle)

    def stat(self, name: str) -> Stat:
        checked_object_name(name)
        try:
            with self._translated("look at", name):
                found = self._session.stat(self._path(name))
        except ObjectMissing:
            self._refuse_missing_root()
            raise
        if found.is_folder:
            raise ObjectMissing(f"only a folder has the name {name} in {self.url}")
        return Stat(name, found.size_bytes, found.modified_at)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        above, slash, beginning = checked_prefix(prefix).rpartition("/")
        yield from self._walk(above + slash, beginning)

    def children(self, folder: str) -> tuple[str, ...]:
        checked_folder(folder)
        found = self._entries(folder)
        return tuple(sorted(n for n, a in found if not a.is_folder or self._holds_any(f"{folder}{n}/")))

    def delete(self, name: str) -> None:
        checked_object_name(name)
        with self._translated("delete", name):
            self._remove(self._session, name)

    def now(self) -> datetime:
        """The time that the server's file system stamps a new file with."""
        probe = f"{self._root}/{TEMPORARY}clock-{secrets.token_hex(8)}"
        with self._translated("write", "a probe"):
            return _stamp(self._session, probe)

    def free_bytes(self) -> int | None:
        """Free space; None where the server has no `statvfs@openssh.com`."""
        with self._translated("look at", "the root"):
            try:
                return self._session.free_bytes(self._root)
            except Unsupported:
                return None

    def sweep(self, older_than: timedelta) -> int:
        limit = self.now() - older_than
        with self._translated("sweep", ""):
            return self._sweep(self._session, self._root, limit)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    @property
    def _session(self) -> Session:
        return self._connection.session()

    # -- writing

    def _draft(self, name: str) -> _Draft:
        path = f"{self._path(name).rpartition('/')[0]}/{TEMPORARY}{secrets.token_hex(12)}"

        def made() -> _Draft:
            session = self._session
            for _ in range(_FOLDER_RACES):
                with contextlib.suppress(NoSuchFile):
                    return _Draft(path, session, session.open(path, _NEW))
                self._make_folders(session, name)
            raise StorageError(f"the folder of {name} in {self.url} is removed again and again")

        with self._translated("write", name):
            return made()

    def _make_folders(self, session: Session, name: str) -> None:
        """Make the root and the folders of a name; another client may remove one at any moment."""
        path = self._root
        for part in ["", *name.split("/")[:-1]]:
            path = f"{path}/{part}".rstrip("/")
            try:
                session.make_folder(path, _FOLDER_MODE)
            except NoSuchFile as error:
                if not part:
                    raise NotARepository(f"the folder above {self._root} does not exist on the server") from error
                return
            except (NotPermitted, Unsupported):
                raise
            except Refused as error:
                if self._is_file(session, path):
                    raise ObjectExists(f"{name} in {self.url} would lie below another object") from error

    def _write(self, draft: _Draft, name: str, number: int, part: bytearray) -> None:
        """Write a part where it belongs; again, after a lost connection, at the same place of the same draft."""

        def attempt() -> None:
            with self._translated("write", name):
                session = self._session
                session.write(draft.opened(session), (number - 1) * PART_BYTES, part)

        self._again(f"part {number} of {name}", attempt)

    def _synced(self, draft: _Draft, name: str) -> None:
        with self._translated("write", name), contextlib.suppress(Unsupported):
            session = self._session
            session.sync(draft.opened(session))

    def _settle(self, draft: _Draft, name: str, sent: int) -> None:
        """Give the draft its name; an answer that was lost is found out by looking at what lies there."""
        unanswered = False

        def attempt() -> None:
            nonlocal unanswered
            try:
                with self._translated("write", name):
                    self._publish(self._session, draft.path, name)
            except ObjectExists:
                if not (unanswered and self._is_ours(draft.path, self._path(name), name, sent)):
                    raise
            except StorageError:
                unanswered = True
                raise

        self._again(f"finish {name}", attempt)

    def _publish(self, session: Session, draft: str, name: str) -> None:
        path = self._path(name)
        try:
            session.link(draft, path)
        except NotPermitted:
            raise
        except Refused as error:
            # Taken, or no hard links there: SFTP 3 has one code for both.
            if session.exists(path):
                raise ObjectExists(f"{name} exists already in {self.url}") from error
            session.rename(draft, path)

    def _is_ours(self, draft: str, path: str, name: str, sent: int) -> bool:
        """Whether a name that was asked for, and perhaps given, leads to what the draft held."""
        with self._translated("read", name):
            session = self._session
            try:
                theirs = session.stat(path).size_bytes
            except NoSuchFile:
                return False
            try:
                ours = session.stat(draft).size_bytes
            except NoSuchFile:
                # Nobody else knows the draft's name, and a sweep takes only what was silent for longer than a put: a
                # rename whose answer was lost took it away, and a rename leads nowhere but to this name.
                return theirs == sent
            return ours == theirs and _digest(session, draft, ours) == _digest(session, path, ours)

    def _refuse_existing(self, name: str) -> None:
        def taken() -> bool:
            with self._translated("write", name):
                return self._session.exists(self._path(name))

        if self._again(f"look at {name}", taken):
            raise ObjectExists(f"{name} exists already in {self.url}")

    def _confirmed(self, name: str, sent: int) -> Stat:
        stat = self._again(f"look at {name}", lambda: self.stat(name))
        if stat.size_bytes != sent:
            raise StorageError(f"{name} in {self.url} has {stat.size_bytes} bytes after {sent} were sent")
        return stat

    def _again(self, what: str, call: Callable[[], _T]) -> _T:
        return repeated(what, call, self._policy, self._sleep)

    # -- reading

    def _pieces(self, arriving: Iterator[bytes], name: str) -> Iterator[bytes]:
        while True:
            with self._translated("read", name):
                piece = next(arriving, None)
            if piece is None:
                return
            yield piece

    def _entries(self, folder: str) -> _Entries:
        """Folders and regular files that can be objects; none for a folder that is not there."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            with self._translated("list", folder):
                found = self._session.folder(path)
        except ObjectMissing:
            return []
        known = [
            (n, a if a.has_kind else self._looked_at(f"{path}/{n}", folder)) for n, a in found if is_object_name(n)
        ]
        return [(n, a) for n, a in known if a is not None and (a.is_folder or a.is_file)]

    def _looked_at(self, path: str, folder: str) -> Attributes | None:
        """What a name is of which the list does not say it (draft, section 5: all attributes may be left away)."""
        try:
            with self._translated("list", folder):
                found = self._session.stat(path)
        except ObjectMissing:
            return None  # it went meanwhile
        if not found.has_kind:
            # Left out, it would look as if nothing were there.
            raise StorageError(f"the server does not say what {path} is", hint="Use a server that sends permissions.")
        return found

    def _walk(self, folder: str, beginning: str) -> Iterator[Stat]:
        found = [(name, attributes) for name, attributes in self._entries(folder) if name.startswith(beginning)]
        # `a.b` sorts before `a/b`, so a folder takes its place with the slash that follows it.
        found.sort(key=lambda entry: f"{entry[0]}/" if entry[1].is_folder else entry[0])
        for name, attributes in found:
            if attributes.is_folder:
                yield from self._walk(f"{folder}{name}/", "")
            else:
                yield Stat(folder + name, attributes.size_bytes, attributes.modified_at)

    def _holds_any(self, folder: str) -> bool:
        return next(self._walk(folder, ""), None) is not None

    def _refuse_missing_root(self) -> None:
        with self._translated("look at", "the root"):
            there = self._session.is_folder(self._root)
        if not there:
            raise NotARepository(f"the folder {self._root} does not exist on {self._connection.host}")

    # -- removing

    def _remove(self, session: Session, name: str) -> None:
        path = self._path(name)
        try:
            session.remove(path)
        except NoSuchFile:
            pass
        except Refused:
            # A folder of that name is no object; what is still there and no folder was refused.
            if session.exists(path) and not session.is_folder(path):
                raise
        self._remove_empty(session, path.rpartition("/")[0])

    def _remove_empty(self, session: Session, path: str) -> None:
        while len(path) > len(self._root):
            try:
                session.remove_folder(path)
            except NoSuchFile:
                pass
            except Refused:  # not empty, or not permitted: an empty folder harms nobody
                return
            path = path.rpartition("/")[0]

    def _sweep(self, session: Session, path: str, limit: datetime) -> int:
        swept = 0
        try:
            entries = session.folder(path)
        except NoSuchFile:
            return 0  # another client removed it, empty, since its name was read
        for name, attributes in entries:
            if name.startswith(TEMPORARY) and attributes.modified_at <= limit:
                with contextlib.suppress(NoSuchFile):
                    session.remove(f"{path}/{name}")
                    swept += 1
            elif attributes.is_folder and is_object_name(name):
                swept += self._sweep(session, f"{path}/{name}", limit)
        if swept:
            self._remove_empty(session, path)
        return swept

    def _is_file(self, session: Session, path: str) -> bool:
        """Whether a file, or a symbolic link to one, has the name."""
        with contextlib.suppress(NoSuchFile):
            return session.stat(path, follow=True).is_file
        return False

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        what = f"cannot {action} {name or 'objects'} in {self.url}"
        try:
            yield
        except Lost as lost:
            error = StorageDenied if lost.ending.denied else StorageUnreachable
            raise error(f"{what}: {lost.ending.words}", hint=lost.ending.hint) from lost
        except EndOfFile as early:
            # The size was asked for before: what is there now is another file, or half of one.
            raise StorageUnreachable(f"{what}: it ended early") from early
        except Refused as refused:
            raise self._explained(refused, what) from refused
        except Nonsense as nonsense:
            raise StorageError(f"{what}: {nonsense}") from nonsense

    def _explained(self, refused: Refused, what: str) -> StorageError:
        message = f"{what}: {refused}"
        if isinstance(refused, NoSuchFile):
            return ObjectMissing(message)
        if isinstance(refused, NotPermitted):
            return StorageDenied(message)
        return StorageFull(message) if self._nearly_full() else StorageError(message)

    def _nearly_full(self) -> bool:
        try:
            return self._session.free_bytes(self._root) < _NEARLY_FULL_BYTES
        except (Refused, Lost, Nonsense):
            return False


class _Draft:
    """A file that has no name yet; it outlives the session that it was begun in."""

    def __init__(self, path: str, session: Session, handle: bytes) -> None:
        self.path = path
        self._session = session
        self._handle = handle
        self._opening = threading.Lock()

    def opened(self, session: Session) -> bytes:
        """Its handle in the session that there is now."""
        with self._opening:
            if session is not self._session:
                self._handle = session.open(self.path, Open.READ | Open.WRITE)
                self._session = session
            return self._handle

    def dispose(self, session: Session) -> None:
        if session is self._session:
            session.give_up(self._handle)
        with contextlib.suppress(NoSuchFile):
            session.remove(self.path)


def _digest(session: Session, path: str, size: int) -> bytes:
    digest, handle = hashlib.sha256(), session.open(path, Open.READ)
    try:
        for piece in session.read(handle, 0, size):
            digest.update(piece)
    finally:
        session.give_up(handle)
    return digest.digest()


def _stamp(session: Session, probe: str) -> datetime:
    handle = session.open(probe, _NEW)
    try:
        session.write(handle, 0, b"\n")
        return session.about(handle).modified_at
    finally:
        session.give_up(handle)
        session.remove(probe)


def _known_hosts(settings: RepositorySettings) -> Path:
    """The file that says which servers are believed; there is no other."""
    known_hosts = settings.known_hosts_file or Path("~/.ssh/known_hosts").expanduser()
    if not known_hosts.is_file():
        raise SettingsError(
            f"there is no file {known_hosts} that names the keys of SFTP servers",
            hint="Write it with `ssh-keyscan`, compare the key with the server's, and name it with known_hosts_file.",
        )
    return known_hosts


def _key(settings: RepositorySettings) -> Path | None:
    # Read for its mode alone: OpenSSH reads it again.
    if credentials(settings) is None or settings.credentials_file is None:
        return None
    check_key(settings.credentials_file)
    return settings.credentials_file
