"""The archive_command and restore_command of PostgreSQL, and the wire between them and the agent.

PostgreSQL runs this file once for every segment of WAL, so it imports only what the interpreter has loaded
anyway (`os`, `sys`, `time`) and the C module below `socket`: neither argparse, logging nor the rest of Seawall.
It is run by the path of `start.py` (`python -I -S …/start.py push …`), see `seawall.archive.commands` for the whole
command; its own path does too.

Exit codes of `push` (PostgreSQL counts 1 to 125 in pg_stat_archiver and tries again; above 125 the archiver
process itself dies uncounted, see pgarch.c and shell_archive.c, so it is never used):
    0 durable; 2 wrong usage; 3 no agent answers and nothing was spooled; 4 the file or the spool cannot be used;
    else the exit code of the agent's error (20 to 29 storage, 53 other cluster, 62 conflict, 63 superseded …).
Exit codes of `get` (PostgreSQL takes 1 to 125 for "there is no such file" and ends recovery there; above 125 it
stops with an error, see xlogarchive.c, RestoreArchivedFile):
    0 the file is in place; 1 proved absent (or the code given by --absent); 126 everything else.

Not guaranteed: that a segment which `push --spool` accepted survives the loss of this host before an agent ships it.
"""

# Importing pathlib would cost more than everything else that this program does:
# ruff: noqa: PTH100, PTH104, PTH108, PTH119, PTH120

import _socket
import os
import sys
import time

PROTOCOL = b"seawall1"
LARGEST_MESSAGE = 64 * 1024
DONE, USAGE, NO_AGENT, LOCAL_FAILURE, CONFLICT = 0, 2, 3, 4, 62
ABSENT, REFUSED = 1, 126
DEFAULT_SPOOL_LIMIT = 4 * 1024 * 1024 * 1024
LONGEST_SOCKET_PATH = 100

_HEX = frozenset("0123456789ABCDEF")
_COPY_BYTES = 4 * 1024 * 1024
_USAGE = """usage: client.py push --socket PATH [--spool DIR [--spool-limit BYTES]] [--wait S] [--timeout S] %p
       client.py get --socket PATH [--absent CODE] [--wait S] [--timeout S] %f %p
"""


class Failed(Exception):
    """The command did not do what it was asked.

    Args:
        code: the exit code of `push`.
        message: what happened.
        hint: what the administrator can do.
    """

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Absent(Exception):
    """The agent proved that the repository holds no such file."""


class NoAgent(Failed):
    """Nothing answers on the socket, or what answers stopped in the middle."""

    def __init__(self, message: str) -> None:
        super().__init__(NO_AGENT, message, "Start it with `seawall wal agent`, and compare its socket with this one.")


def is_archive_name(name: str) -> bool:
    """Whether PostgreSQL could ask to archive or restore a file of this name (as `seawall.wal.is_archive_name`)."""
    stem, dot, suffix = name.partition(".")
    if not _HEX.issuperset(stem):
        return False
    if len(stem) == 8:
        return suffix == "history"
    if len(stem) != 24:
        return False
    backup = len(suffix) == 15 and _HEX.issuperset(suffix[:8]) and suffix[8:] == ".backup"
    return not dot or suffix == "partial" or backup


# ---- the wire: fields separated by NUL, one message each way, at most one descriptor passed along


def encode(*fields: str) -> bytes:
    """One message of the protocol."""
    return b"\0".join((PROTOCOL, *(os.fsencode(field) for field in fields)))


def decode(message: bytes) -> list[str]:
    """The fields of a message, or an empty list if it is none."""
    protocol, *fields = message.split(b"\0")
    return [os.fsdecode(field) for field in fields] if protocol == PROTOCOL else []


def send(connection: _socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send a whole message, and a descriptor with its first byte."""
    passed = [] if descriptor is None else [_passed(descriptor)]
    sent = connection.sendmsg([message], passed)
    while sent < len(message):
        sent += connection.send(message[sent:])
    connection.shutdown(_socket.SHUT_WR)


def _passed(descriptor: int) -> tuple[int, int, bytes]:
    return (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))


def receive(connection: _socket.socket) -> tuple[bytes, int | None]:
    """One message up to its end, and the descriptor that came with it, which is now the caller's to close."""
    message, descriptor = b"", None
    while len(message) <= LARGEST_MESSAGE:
        part, ancillary, _flags, _address = connection.recvmsg(LARGEST_MESSAGE, 64)
        for level, kind, data in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                descriptor = _first_of(data, descriptor)
        if not part:
            break
        message += part
    return message, descriptor


def _first_of(data: bytes, kept: int | None) -> int | None:
    """The first descriptor that was passed; a peer that passes more only has them closed again."""
    for offset in range(0, len(data) - 3, 4):
        descriptor = int.from_bytes(data[offset : offset + 4], sys.byteorder)
        os.set_inheritable(descriptor, False)
        if kept is None:
            kept = descriptor
        else:
            os.close(descriptor)
    return kept


def through_directory(path: str) -> tuple[str, int | None]:
    """A name for a socket that fits the 107 bytes of a Unix address, and a descriptor to close after its use."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path, None
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{directory}/{os.path.basename(path)}", directory


def ask(socket_path: str, message: bytes, descriptor: int | None, wait: float, timeout: float) -> int | None:
    """Send one request to the agent and return the descriptor that its answer carries.

    Args:
        wait: seconds to go on trying while nobody listens.
        timeout: seconds until an agent that does not answer counts as none.

    Raises:
        Absent: the agent proved that the file is absent.
        NoAgent: nobody listens, or no whole answer came in time.
        Failed: the agent answered with an error.
    """
    connection = _connected(socket_path, wait)
    try:
        connection.settimeout(timeout)
        send(connection, message, descriptor)
        answer, passed = receive(connection)
    except OSError as error:
        raise NoAgent(f"the agent at {socket_path} did not answer: {_reason(error)}") from error
    finally:
        connection.close()
    fields = decode(answer)
    if fields[:1] == ["ok"]:
        return passed
    if passed is not None:
        os.close(passed)
    if fields[:1] == ["absent"]:
        raise Absent
    if fields[:1] == ["error"] and len(fields) == 4 and fields[1].isdigit():
        raise Failed(int(fields[1]), fields[2], fields[3])
    raise NoAgent(f"the agent at {socket_path} broke off")


def _connected(socket_path: str, wait: float) -> _socket.socket:
    give_up_at = time.monotonic() + wait
    while True:
        try:
            return _connect(socket_path)
        except OSError as error:
            if time.monotonic() >= give_up_at:
                raise NoAgent(f"no agent listens at {socket_path}: {_reason(error)}") from error
        time.sleep(0.1)


def _connect(socket_path: str) -> _socket.socket:
    address, directory = through_directory(socket_path)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    finally:
        if directory is not None:
            os.close(directory)
    return connection


# ---- push


def push(
    path: str,
    socket_path: str,
    *,
    spool: str = "",
    spool_limit: int = DEFAULT_SPOOL_LIMIT,
    wait: float = 0.0,
    timeout: float = 120.0,
) -> None:
    """Make one file of pg_wal durable outside of it: through the agent, else in the spool if one is named.

    Args:
        spool: a directory on this host for when no agent answers; none when empty.
        spool_limit: bytes that may wait there.
        wait, timeout: seconds, see `ask`.

    Raises:
        Failed: it is not durable; PostgreSQL must keep it.
    """
    name = os.path.basename(path)
    if not is_archive_name(name):
        raise Failed(USAGE, f"{name!r} is not the name of a WAL file", "Write %p in archive_command.")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(LOCAL_FAILURE, f"{path} cannot be read: {_reason(error)}") from error
    try:
        ask(socket_path, encode("push", os.path.abspath(path)), descriptor, wait, timeout)
    except NoAgent as error:
        if not spool:
            raise
        _spooled(descriptor, name, spool, spool_limit)
        _say(f"{error.message}; {name} waits in {spool}")
    except Absent as error:
        raise Failed(LOCAL_FAILURE, "the agent's answer makes no sense") from error
    finally:
        os.close(descriptor)


def _spooled(descriptor: int, name: str, spool: str, limit: int) -> None:
    """Lay a copy into the spool so that it survives a crash of this host (not its loss)."""
    final = f"{spool}/{name}"
    temporary = f"{spool}/.tmp-{name}-{os.getpid()}"
    try:
        if os.path.lexists(final):
            return _refuse_other(descriptor, final)
        _refuse_overflow(descriptor, spool, limit)
        _copied(descriptor, temporary, 0o640, durable=True)
        try:
            # A link never replaces: two archivers that write the same name must not overwrite each other here.
            os.link(temporary, final)
        finally:
            os.unlink(temporary)
        _sync_directory(spool)
    except FileExistsError:
        return _refuse_other(descriptor, final)
    except OSError as error:
        raise Failed(
            LOCAL_FAILURE, f"{name} cannot be spooled in {spool}: {_reason(error)}", "Give the server's account room."
        ) from error
    return None


def _refuse_overflow(descriptor: int, spool: str, limit: int) -> None:
    with os.scandir(spool) as entries:
        waiting = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    if waiting + os.fstat(descriptor).st_size > limit:
        raise Failed(
            NO_AGENT,
            f"{waiting} bytes wait in {spool} already, {limit} are allowed",
            "Start the agent, which ships them; PostgreSQL keeps the WAL until then.",
        )


def _refuse_other(descriptor: int, final: str) -> None:
    other = os.open(final, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        same = os.fstat(descriptor).st_size == os.fstat(other).st_size
        offset = 0
        while same and (piece := os.pread(descriptor, _COPY_BYTES, offset)):
            same = piece == os.pread(other, len(piece), offset)
            offset += len(piece)
    finally:
        os.close(other)
    if not same:
        raise Failed(CONFLICT, f"{final} exists with other content", "Two servers write the same WAL names.")
    _sync_directory(os.path.dirname(final))


# ---- get


def get(name: str, path: str, socket_path: str, *, wait: float = 30.0, timeout: float = 300.0) -> None:
    """Put a file of the repository to `path`.

    Raises:
        Absent: proved absent.
        Failed: whether it exists is not known, or it could not be written.
    """
    if not is_archive_name(name):
        raise Failed(USAGE, f"{name!r} is not the name of a WAL file", "Write %f %p in restore_command.")
    descriptor = ask(socket_path, encode("get", name), None, wait, timeout)
    if descriptor is None:
        raise NoAgent("the agent's answer carries no file")
    temporary = f"{path}.seawall-tmp"
    try:
        # Not synced: after a crash PostgreSQL asks for the file again.
        _copied(descriptor, temporary, 0o600, durable=False)
        os.rename(temporary, path)
    except OSError as error:
        raise Failed(LOCAL_FAILURE, f"{path} cannot be written: {_reason(error)}") from error
    finally:
        os.close(descriptor)


# ---- files


def _copied(descriptor: int, path: str, mode: int, *, durable: bool) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        expected = os.fstat(descriptor).st_size
        offset = 0
        while offset < expected:
            # Explicit offsets: the descriptor's own position is shared with the process that passed it.
            count = os.sendfile(target, descriptor, offset, expected - offset)
            if count == 0:
                raise OSError(5, "the file became shorter while it was copied")
            offset += count
        if durable:
            os.fsync(target)
    finally:
        os.close(target)


def _sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


# ---- the command line


def _say(text: str) -> None:
    os.write(2, os.fsencode(f"seawall: {text}\n"))


def _options(arguments: list[str], known: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Values of `--name VALUE` over their defaults, and what is left."""
    values, rest = dict(known), []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            rest.append(word)
            continue
        value = next(words, None)
        if word[2:] not in known or value is None:
            raise Failed(USAGE, f"{word} is unknown or has no value", _USAGE)
        values[word[2:]] = value
    if not values["socket"]:
        raise Failed(USAGE, "--socket is missing", _USAGE)
    return values, rest


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Failed(USAGE, f"{text!r} is no number", _USAGE) from error


def _main_push(arguments: list[str]) -> int:
    known = {"socket": "", "spool": "", "spool-limit": str(DEFAULT_SPOOL_LIMIT), "wait": "0", "timeout": "120"}
    try:
        values, rest = _options(arguments, known)
        if len(rest) != 1:
            raise Failed(USAGE, "push takes one path", _USAGE)
        limit, wait, timeout = (_number(values[key]) for key in ("spool-limit", "wait", "timeout"))
        push(rest[0], values["socket"], spool=values["spool"], spool_limit=int(limit), wait=wait, timeout=timeout)
    except Failed as error:
        _complain(error)
        return error.code if 0 < error.code <= 125 else LOCAL_FAILURE
    except Exception as error:  # noqa: BLE001 - whatever it is, PostgreSQL must keep the segment and count it
        _say(f"unexpected {type(error).__name__}: {error}")
        return LOCAL_FAILURE
    return DONE


def _main_get(arguments: list[str]) -> int:
    try:
        known = {"socket": "", "absent": str(ABSENT), "wait": "30", "timeout": "300"}
        values, rest = _options(arguments, known)
        if len(rest) != 2:
            raise Failed(USAGE, "get takes a name and a path", _USAGE)
        absent = int(_number(values["absent"]))
        get(rest[0], rest[1], values["socket"], wait=_number(values["wait"]), timeout=_number(values["timeout"]))
    except Absent:
        return absent
    except Failed as error:
        _complain(error)
        return REFUSED
    except BaseException as error:  # noqa: BLE001 - Python's own exit code 1 would mean "proved absent"
        _say(f"unexpected {type(error).__name__}: {error}")
        return REFUSED
    return DONE


def _complain(error: Failed) -> None:
    _say(error.message)
    if error.hint:
        _say(f"hint: {error.hint}")


def main(arguments: list[str]) -> int:
    """Run `push …` or `get …` and return the exit code."""
    if arguments[:1] == ["push"]:
        return _main_push(arguments[1:])
    if arguments[:1] == ["get"]:
        return _main_get(arguments[1:])
    _say(_USAGE)
    # Even a command that was mistyped as restore_command must not look like the end of WAL.
    return REFUSED


if __name__ == "__main__":
    # No interpreter shutdown: nothing is left to flush, and it would cost as much as the work itself.
    os._exit(main(sys.argv[1:]))
