"""Objects as files on an SFTP server, such as OpenSSH's.

An object is written to `.tmp-…` in its own folder, synced where the server can (`fsync@openssh.com`), and given its
name by a hard link, which fails if the name is taken; where the server's file system has none, by SFTP's own rename,
which OpenSSH refuses onto an existing file. The server must prove itself by a key that `known_hosts` names.

Not guaranteed: that a name survives a power cut of the server in the moment after it was given (SFTP cannot sync a
folder), and that no symbolic link on the server leads elsewhere. Times are whole seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import stat as modes
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import asyncssh
from asyncssh.sftp import SFTPClient, SFTPClientFile

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
from seawall.storage.parts import PART_BYTES, cut, exactly, read_ahead, send_ahead
from seawall.storage.retry import RetryPolicy, Sleep, repeated

_T = TypeVar("_T")
_Entries = list[tuple[str, asyncssh.SFTPAttrs]]

TEMPORARY = ".tmp-"
_CONNECT_SECONDS = 15
_CALL_SECONDS = 120
_KEEPALIVE_SECONDS = 15
_GOODBYE_SECONDS = 5
_THREADS = 8

# How often `put` makes folders again that another client, cleaning up, removed before they held anything.
_FOLDER_RACES = 16

# SFTP 3 has one code for everything unusual, also for a full disk; below this much free space that is the likely cause.
_NEARLY_FULL_BYTES = 1 << 20


def open_url(url: str, settings: RepositorySettings, sleep: Sleep = time.sleep) -> SftpStorage:
    """The storage at `sftp://user@host:port/absolute/path`; nothing is asked of the server yet.

    Raises:
        SettingsError: the URL or the key file is wrong.
    """
    parts = split(url)
    if parts.password is not None:
        raise SettingsError("a storage URL must not hold a password", hint="Use a key: credentials_file.")
    if not parts.hostname or parts.path in ("", "/") or parts.query or parts.fragment:
        raise SettingsError("a storage URL of this kind is sftp://USER@HOST/ABSOLUTE/PATH")
    root = unquote(parts.path).rstrip("/")
    if "\0" in root or "/../" in f"{root}/":
        raise SettingsError("the path of an sftp URL must be absolute and without '..'")
    connection = Connection(parts.hostname, parts.port or 22, parts.username, settings)
    return SftpStorage(connection, root, RetryPolicy(attempts=settings.attempts), sleep)


class Connection:
    """One connection that is made when it is needed and made again when it was lost; safe to use from several threads.

    It runs asyncssh on an event loop in a thread of its own.
    """

    def __init__(self, host: str, port: int, user: str | None, settings: RepositorySettings) -> None:
        self.host, self.port, self.user = host, port, user
        self._options = _options(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        self._connecting = asyncio.Lock()
        self._client: SFTPClient | None = None
        self._ssh: asyncssh.SSHClientConnection | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port != 22 else "")

    async def client(self) -> SFTPClient:
        """The SFTP session, opened now if there is none."""
        async with self._connecting:
            if self._client is None:
                self._ssh = await asyncssh.connect(self.host, self.port, username=self.user or (), **self._options)
                self._client = await self._ssh.start_sftp_client()
            return self._client

    def run(self, work: Callable[[SFTPClient], Awaitable[_T]]) -> _T:
        """What `work` makes of the session.

        Raises:
            StorageUnreachable: no answer in time.
        """

        async def whole() -> _T:
            return await work(await self.client())

        return self.result(self.start(whole()))

    def result(self, future: Future[_T]) -> _T:
        """What was begun came to.

        Raises:
            TimeoutError: no answer in time; the connection is given up.
        """
        try:
            return future.result(_CALL_SECONDS)
        except TimeoutError:
            future.cancel()
            self.drop()
            raise

    def release(self, file: SFTPClientFile) -> None:
        """Let a file be closed some time; nobody learns whether it was.

        A reader that is given up half way may be finalized by the garbage collector: in any thread, the event loop's
        own among them, and in the middle of any of its calls. So nothing here waits: for no answer, and for no lock.
        """
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
                loop.call_soon_threadsafe(self._close_soon, file)

    def _close_soon(self, file: SFTPClientFile) -> None:
        closing = asyncio.ensure_future(_closed(file))
        self._closing.add(closing)  # the loop itself holds tasks only weakly
        closing.add_done_callback(self._closing.discard)

    def drop(self) -> None:
        """Forget a connection that is of no use any more."""
        ssh, self._ssh, self._client = self._ssh, None, None
        if ssh is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(ssh.abort)

    def close(self) -> None:
        if self._ssh is not None:
            with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
                self.start(self._say_goodbye()).result(_GOODBYE_SECONDS)
        with self._starting:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = None

    async def _say_goodbye(self) -> None:
        ssh, client, self._ssh, self._client = self._ssh, self._client, None, None
        if client is not None:
            client.exit()
            await client.wait_closed()
        if ssh is not None:
            ssh.close()
            await ssh.wait_closed()

    def start(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Begin something on the event loop."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="sftp", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)


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
            self._settle(draft, name)
        finally:
            with contextlib.suppress(StorageError), self._translated("clean up after", name):
                self._connection.run(draft.dispose)
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
            file = self._connection.run(lambda client: client.open(self._path(name), "rb"))
        try:
            yield from self._pieces(file, name, offset, end)
        finally:
            self._connection.release(file)

    def stat(self, name: str) -> Stat:
        checked_object_name(name)
        try:
            with self._translated("look at", name):
                found = self._connection.run(lambda client: client.lstat(self._path(name)))
        except ObjectMissing:
            self._refuse_missing_root()
            raise
        if modes.S_ISDIR(found.permissions or 0):
            raise ObjectMissing(f"only a folder has the name {name} in {self.url}")
        return Stat(name, found.size or 0, _moment(found))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        above, slash, beginning = checked_prefix(prefix).rpartition("/")
        yield from self._walk(above + slash, beginning)

    def children(self, folder: str) -> tuple[str, ...]:
        checked_folder(folder)
        found = self._entries(folder)
        return tuple(sorted(n for n, a in found if not _is_folder(a) or self._holds_any(f"{folder}{n}/")))

    def delete(self, name: str) -> None:
        checked_object_name(name)
        with self._translated("delete", name):
            self._connection.run(lambda client: self._remove(client, name))

    def now(self) -> datetime:
        """The time that the server's file system stamps a new file with."""
        probe = f"{self._root}/{TEMPORARY}clock-{secrets.token_hex(8)}"
        with self._translated("write", "a probe"):
            return self._connection.run(lambda client: _stamp(client, probe))

    def free_bytes(self) -> int | None:
        """Free space; None where the server has no `statvfs@openssh.com`."""
        try:
            with self._translated("look at", "the root"):
                space = self._connection.run(lambda client: client.statvfs(self._root))
        except _Unsupported:
            return None
        return int(space.bavail * space.frsize)

    def sweep(self, older_than: timedelta) -> int:
        limit = self.now() - older_than
        with self._translated("sweep", ""):
            return self._connection.run(lambda client: self._sweep(client, self._root, limit))

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    # -- writing

    def _draft(self, name: str) -> _Draft:
        path = f"{self._path(name).rpartition('/')[0]}/{TEMPORARY}{secrets.token_hex(12)}"

        async def make(client: SFTPClient) -> _Draft:
            for _ in range(_FOLDER_RACES):
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    return _Draft(path, client, await client.open(path, "xb"))
                await self._make_folders(client, name)
            raise StorageError(f"the folder of {name} in {self.url} is removed again and again")

        with self._translated("write", name):
            return self._connection.run(make)

    async def _make_folders(self, client: SFTPClient, name: str) -> None:
        """Make the root and the folders of a name; another client may remove one at any moment."""
        path = self._root
        for part in ["", *name.split("/")[:-1]]:
            path = f"{path}/{part}".rstrip("/")
            try:
                await client.mkdir(path, asyncssh.SFTPAttrs(permissions=0o750))
            except asyncssh.SFTPNoSuchFile as error:
                if not part:
                    raise NotARepository(f"the folder above {self._root} does not exist on the server") from error
                return
            except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists) as error:
                if await client.isfile(path):
                    raise ObjectExists(f"{name} in {self.url} would lie below another object") from error

    def _write(self, draft: _Draft, name: str, number: int, part: bytearray) -> None:
        """Write a part where it belongs; again, after a lost connection, at the same place of the same draft."""

        async def write(client: SFTPClient) -> None:
            file = await draft.opened(client)
            await file.write(bytes(part), (number - 1) * PART_BYTES)

        def attempt() -> None:
            with self._translated("write", name):
                self._connection.run(write)

        self._again(f"part {number} of {name}", attempt)

    def _synced(self, draft: _Draft, name: str) -> None:
        async def sync(client: SFTPClient) -> None:
            await (await draft.opened(client)).fsync()

        with contextlib.suppress(_Unsupported), self._translated("write", name):
            self._connection.run(sync)

    def _settle(self, draft: _Draft, name: str) -> None:
        """Give the draft its name; an answer that was lost is found out by reading what lies there."""
        unanswered = False

        def attempt() -> None:
            nonlocal unanswered
            try:
                with self._translated("write", name):
                    self._connection.run(lambda client: self._publish(client, draft.path, name))
            except ObjectExists:
                if not (unanswered and self._same(draft.path, self._path(name), name)):
                    raise
            except StorageError:
                unanswered = True
                raise

        self._again(f"finish {name}", attempt)

    async def _publish(self, client: SFTPClient, draft: str, name: str) -> None:
        path = self._path(name)
        try:
            await client.link(draft, path)
        except (asyncssh.SFTPFailure, asyncssh.SFTPOpUnsupported, asyncssh.SFTPFileAlreadyExists) as error:
            if await client.lexists(path):
                raise ObjectExists(f"{name} exists already in {self.url}") from error
            await client.rename(draft, path)

    def _same(self, draft: str, path: str, name: str) -> bool:
        """Whether two files hold the same; not if one of them is gone."""

        async def compare(client: SFTPClient) -> bool:
            try:
                async with client.open(draft, "rb") as ours, client.open(path, "rb") as theirs:
                    while True:
                        one, other = await ours.read(PART_BYTES), await theirs.read(PART_BYTES)
                        if one != other or not one:
                            return one == other
            except asyncssh.SFTPNoSuchFile:
                return False

        with self._translated("read", name):
            return self._connection.run(compare)

    def _refuse_existing(self, name: str) -> None:
        def taken() -> bool:
            with self._translated("write", name):
                return self._connection.run(lambda client: client.lexists(self._path(name)))

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

    def _pieces(self, file: SFTPClientFile, name: str, offset: int, end: int) -> Iterator[bytes]:
        async def fetch(start: int, stop: int) -> bytes:
            content = await file.read(stop - start, start)
            return exactly(cast(bytes, content), stop - start, f"{name} in {self.url}")

        connection = self._connection
        ranges = read_ahead(lambda start, stop: connection.start(fetch(start, stop)), offset, end, connection.result)
        while True:
            with self._translated("read", name):
                piece = next(ranges, None)
            if piece is None:
                return
            yield piece

    def _entries(self, folder: str) -> _Entries:
        """Folders and regular files that can be objects; none for a folder that is not there."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            with self._translated("list", folder):
                found = self._connection.run(lambda client: client.readdir(path))
        except ObjectMissing:
            return []
        named = [(str(entry.filename), entry.attrs) for entry in found]
        return [(n, a) for n, a in named if is_object_name(n) and (_is_folder(a) or modes.S_ISREG(a.permissions or 0))]

    def _walk(self, folder: str, beginning: str) -> Iterator[Stat]:
        found = [(name, attributes) for name, attributes in self._entries(folder) if name.startswith(beginning)]
        # `a.b` sorts before `a/b`, so a folder takes its place with the slash that follows it.
        found.sort(key=lambda entry: f"{entry[0]}/" if _is_folder(entry[1]) else entry[0])
        for name, attributes in found:
            if _is_folder(attributes):
                yield from self._walk(f"{folder}{name}/", "")
            else:
                yield Stat(folder + name, attributes.size or 0, _moment(attributes))

    def _holds_any(self, folder: str) -> bool:
        return next(self._walk(folder, ""), None) is not None

    def _refuse_missing_root(self) -> None:
        with self._translated("look at", "the root"):
            there = self._connection.run(lambda client: client.isdir(self._root))
        if not there:
            raise NotARepository(f"the folder {self._root} does not exist on {self._connection.host}")

    # -- removing

    async def _remove(self, client: SFTPClient, name: str) -> None:
        path = self._path(name)
        try:
            await client.remove(path)
        except asyncssh.SFTPNoSuchFile:
            pass
        except (asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied, asyncssh.SFTPFileIsADirectory):
            # A folder of that name is no object; what is still there and no folder was refused.
            if await client.lexists(path) and not await client.isdir(path):
                raise
        await self._remove_empty(client, path.rpartition("/")[0])

    async def _remove_empty(self, client: SFTPClient, path: str) -> None:
        while len(path) > len(self._root):
            try:
                await client.rmdir(path)
            except asyncssh.SFTPNoSuchFile:
                pass
            except asyncssh.SFTPError:  # not empty, or not permitted: an empty folder harms nobody
                return
            path = path.rpartition("/")[0]

    async def _sweep(self, client: SFTPClient, path: str, limit: datetime) -> int:
        swept = 0
        for entry in await client.readdir(path):
            name, attributes = str(entry.filename), entry.attrs
            if name.startswith(TEMPORARY) and _moment(attributes) <= limit:
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    await client.remove(f"{path}/{name}")
                    swept += 1
            elif _is_folder(attributes) and is_object_name(name):
                swept += await self._sweep(client, f"{path}/{name}", limit)
        if swept:
            await self._remove_empty(client, path)
        return swept

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        what = f"cannot {action} {name or 'objects'} in {self.url}"
        try:
            yield
        except asyncssh.SFTPOpUnsupported as error:
            raise _Unsupported(f"{what}: {error.reason}") from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            self._connection.drop()
            raise StorageUnreachable(f"{what}: {error.reason}") from error
        except asyncssh.SFTPError as error:
            raise self._explained(error, what) from error
        except (asyncssh.PermissionDenied, asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            self._connection.drop()
            raise StorageDenied(f"{what}: {error.reason}", hint=_login_hint(error)) from error
        except (asyncssh.Error, OSError, TimeoutError, CancelledError, EOFError) as error:
            self._connection.drop()
            raise StorageUnreachable(f"{what}: {error or type(error).__name__}") from error

    def _explained(self, error: asyncssh.SFTPError, what: str) -> StorageError:
        message = f"{what}: {error.reason}"
        if isinstance(error, asyncssh.SFTPNoSuchFile | asyncssh.SFTPNoSuchPath):
            return ObjectMissing(message)
        if isinstance(error, asyncssh.SFTPPermissionDenied | asyncssh.SFTPWriteProtect):
            return StorageDenied(message)
        if isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded) or self._nearly_full():
            return StorageFull(message)
        return StorageError(message)

    def _nearly_full(self) -> bool:
        try:
            space = self._connection.run(lambda client: client.statvfs(self._root))
        except (asyncssh.Error, OSError, TimeoutError):
            return False
        return int(space.bavail * space.frsize) < _NEARLY_FULL_BYTES


class _Unsupported(StorageError):
    """The server lacks an extension; never leaves this module."""


class _Draft:
    """A file that has no name yet; it outlives the connection that it was begun over."""

    def __init__(self, path: str, client: SFTPClient, file: SFTPClientFile) -> None:
        self.path = path
        self._client = client
        self._file = file
        self._opening = asyncio.Lock()

    async def opened(self, client: SFTPClient) -> SFTPClientFile:
        """The file, over the connection that there is now."""
        async with self._opening:
            if client is not self._client:
                self._file = await client.open(self.path, "r+b")
                self._client = client
            return self._file

    async def dispose(self, client: SFTPClient) -> None:
        if client is self._client:
            with contextlib.suppress(asyncssh.SFTPError):
                await self._file.close()
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            await client.remove(self.path)


async def _closed(file: SFTPClientFile) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        await file.close()


async def _stamp(client: SFTPClient, probe: str) -> datetime:
    async with client.open(probe, "xb") as file:
        try:
            await file.write(b"\n")
            return _moment(await file.stat())
        finally:
            await client.remove(probe)


def _options(settings: RepositorySettings) -> dict[str, Any]:
    """How asyncssh connects: no configuration of the account's is read, and no server is believed without its key."""
    options: dict[str, Any] = {
        "config": None,
        "connect_timeout": _CONNECT_SECONDS,
        "login_timeout": _CONNECT_SECONDS,
        "keepalive_interval": _KEEPALIVE_SECONDS,
        "password_auth": False,
        "kbdint_auth": False,
    }
    known_hosts = settings.known_hosts_file or Path("~/.ssh/known_hosts").expanduser()
    if not known_hosts.is_file():
        raise SettingsError(
            f"there is no file {known_hosts} that names the keys of SFTP servers",
            hint="Write it with `ssh-keyscan`, compare the key with the server's, and name it with known_hosts_file.",
        )
    options["known_hosts"] = str(known_hosts)
    key = credentials(settings)
    if key is not None:
        try:
            options |= {"client_keys": [asyncssh.import_private_key(key)], "agent_path": None}
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise SettingsError(f"credentials_file {settings.credentials_file} holds no usable key: {error}") from error
    return options


def _login_hint(error: asyncssh.DisconnectError) -> str:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return "The server's key is not in known_hosts_file, or another one is: find out why before you trust it."
    return "Put the public key of credentials_file into the server's authorized_keys."


def _is_folder(attributes: asyncssh.SFTPAttrs) -> bool:
    return modes.S_ISDIR(attributes.permissions or 0)


def _moment(attributes: asyncssh.SFTPAttrs) -> datetime:
    return datetime.fromtimestamp(attributes.mtime or 0, UTC)
