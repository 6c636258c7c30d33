"""One use of GnuPG: a private session directory, an agent that cannot outlive us, and data through pipes.

The session directory is short, of mode 0700 and made anew; it refers to the ring's private keys by a symbolic
link, while the public key ring is named by its own path. Hence the path of the ring may be as long as it likes (an
agent's socket may not), two processes may use one ring without ending each other's agents, and no `gpg.conf` of
the ring changes what is written.

The agent is started as the parent's watcher: it ends by itself some seconds after this process does, however that
came about, and at once on `close`.

python-gnupg cannot stream safely: it reports success after its source failed or its callback raised, and holds or
discards output without back pressure. `pump` therefore talks to gpg itself: one loop, bounded memory, and an end
that is reached only when gpg ended well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from seawall.errors import Damaged, KeyUnusable
from seawall.storage.base import Bytes
from seawall.temporary import Temporary

_PIPE_BYTES = 1024 * 1024
# A socket's address has room for 107 bytes; the agent adds "/S.gpg-agent.browser".
_LONGEST_SESSION = 80
# What protects private keys that the agent writes: the highest count that OpenPGP can state (RFC 4880, 3.7.1.3), about
# 0.1 s for each use. Left alone, the agent calibrates itself for a second at its start.
STRETCHED = 65011712
# The lowest count that gpg-agent takes, for passphrases that nobody can guess (docs/adr/0021-random-passphrases.md).
UNSTRETCHED = 65536
_STDERR_BYTES = 256 * 1024
_SHORT_TEMPORARY = Path("/tmp")  # noqa: S108 - Temporary makes a private directory below it

# Seawall's profile of OpenPGP, whatever the defaults of the gpg at hand: AES-256, no compression (gpg's costs twelve
# times the encryption), binary, and trust in exactly the fingerprints that were named.
ENCRYPTION = ("--cipher-algo", "AES256", "--compress-algo", "none", "--trust-model", "always")

JudgeStatus = Callable[[int, str], None]


class Session:
    """The directory that gpg works in, made when first used.

    Args:
        home: of the key ring.
        count: how often the agent hashes the passphrases that protect what it writes, `STRETCHED` or `UNSTRETCHED`.
    """

    def __init__(self, home: Path, count: int = STRETCHED) -> None:
        self.home = home
        self._count = count
        self._directory: Path | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._finalizer: Callable[[], object] = lambda: None

    @property
    def directory(self) -> Path:
        """Raises KeyUnusable if neither ring nor session can be made."""
        with self._lock:
            if self._directory is None:
                links = self._prepared_home()
                made = Temporary("seawall-gpg-", _short_temporary())
                self._finalizer = weakref.finalize(self, _discard, made, os.getpid())
                for folder in links:
                    (made.path / folder.name).symlink_to(folder)
                self._directory = made.path
            return self._directory

    def _prepared_home(self) -> tuple[Path, ...]:
        folders = self.home / "private-keys-v1.d", self.home / "openpgp-revocs.d"
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.home.stat().st_mode & 0o077:
                self.home.chmod(0o700)
            for folder in folders:
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KeyUnusable(
                f"key ring {self.home} cannot be used: {error.strerror}",
                hint="Name a directory that this account owns in [sealing] keyring.",
            ) from error
        return folders

    @property
    def keyring(self) -> Path:
        """The file of public keys; older GnuPG wrote pubring.gpg."""
        modern, old = self.home / "pubring.kbx", self.home / "pubring.gpg"
        return old if old.exists() and not modern.exists() else modern

    def has_private_part(self, keygrip: str) -> bool:
        return bool(keygrip) and (self.home / "private-keys-v1.d" / f"{keygrip}.key").exists()

    def options(self) -> list[str]:
        """What every call of gpg gets besides its home and key ring."""
        return ["--no-options", "--no-autostart", "--pinentry-mode", "loopback", "--display-charset", "utf-8"]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A command line for gpg, with its status among its messages."""
        where = ["--homedir", str(self.directory), "--no-default-keyring", "--keyring", str(self.keyring)]
        return ["gpg", "--status-fd", "2", "--batch", "--no-tty", *where, *self.options(), *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        """Ours without what would lead gpg to another ring, a terminal or another language."""
        unwanted = {"GNUPGHOME", "GPG_TTY", "GPG_AGENT_INFO", "DISPLAY", "LANGUAGE"}
        kept = {name: value for name, value in os.environ.items() if name not in unwanted}
        return kept | {"LC_ALL": "C.UTF-8"}

    def start_agent(self) -> None:
        """Have an agent for private keys. It remembers a passphrase for some minutes, and never after `close`.

        Raises:
            KeyUnusable: it does not start.
        """
        with self._lock:
            if self._agent is None or self._agent.poll() is not None:
                self._agent = _watched_agent(self.directory, self.environment(), self._count)

    def close(self) -> None:
        """End the agent and remove the directory; the session can be used again."""
        with self._lock:
            agent, self._agent, self._directory = self._agent, None, None
            if agent is not None:
                _end(agent)
            self._finalizer()


def _short_temporary() -> Path:
    usual = Path(tempfile.gettempdir())
    chosen = usual if len(os.fsencode(usual)) <= _LONGEST_SESSION - len("/seawall-gpg-12345678") else _SHORT_TEMPORARY
    if not os.access(chosen, os.W_OK):
        raise KeyUnusable(f"{chosen} is not writable", hint="Set TMPDIR to a directory with a short path.")
    return chosen


def _discard(session: Temporary, owner: int) -> None:
    """End what works in a session directory, then remove it (the links to the ring's folders, never those)."""
    if os.getpid() != owner:
        # A forked child inherits the finalizer, but not the session.
        return
    if (session.path / "S.gpg-agent").exists():
        kill = ["gpgconf", "--homedir", str(session.path), "--kill", "gpg-agent"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(kill, check=False, capture_output=True, timeout=10)
    session.close()


def _watched_agent(directory: Path, environment: Mapping[str, str], count: int) -> subprocess.Popen[bytes]:
    """An agent that watches `cat`, which ends when our end of its pipe is closed: by us, or by our death."""
    options = ["--no-options", "--s2k-count", str(count)]
    command = ["gpg-agent", "--homedir", str(directory), *options, "--daemon", "--", "cat"]
    try:
        watched = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
    except OSError as error:
        raise KeyUnusable(f"gpg-agent does not start: {error.strerror}", hint="Install GnuPG 2.2 or later.") from error
    stdin, stdout = _pipes(watched)
    # The echo proves that the agent has made its socket: only then does it turn into the watched program.
    with contextlib.suppress(BrokenPipeError):
        stdin.write(b".\n")
        stdin.flush()
    if stdout.readline() != b".\n":
        _end(watched)
        raise KeyUnusable("gpg-agent does not start", hint=f"Try `gpg-agent --homedir {directory} --server`.")
    return watched


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise KeyUnusable("a pipe is missing", hint="This is a defect in Seawall.")
    return process.stdin, process.stdout


def _end(watched: subprocess.Popen[bytes]) -> None:
    for pipe in _pipes(watched):
        with contextlib.suppress(OSError):
            pipe.close()
    try:
        watched.wait(timeout=5)
    except subprocess.TimeoutExpired:
        watched.kill()
        watched.wait()


def pump(
    command: Sequence[str],
    environment: Mapping[str, str],
    chunks: Iterable[Bytes],
    judge: JudgeStatus,
    *,
    passphrase: str | None = None,
) -> Iterator[bytes]:
    """What gpg makes of `chunks`, in pieces of at most 1 MiB; memory stays bounded.

    The iterator ends only after `judge(exit status, messages)` returned. If the source, the consumer or gpg fails,
    gpg is killed before it can complete its output, and the error is raised.

    Args:
        command: from `Session.command`.
        judge: raises if the exit status or the messages tell of anything but success.
        passphrase: handed over in a pipe.
    """
    source = iter(chunks)
    with contextlib.ExitStack() as stack:
        command, inherited = _with_passphrase(command, passphrase, stack)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                pass_fds=inherited,
            )
        except OSError as error:
            raise KeyUnusable(f"gpg does not start: {error.strerror}", hint="Install GnuPG 2.2 or later.") from error
        stack.callback(_kill, process)
        messages = bytearray()
        all_read = yield from _exchange(process, source, messages)
        judge(process.wait(), messages.decode("utf-8", "replace"))
        if not all_read:
            raise Damaged("gpg ended before it had read everything")


def _with_passphrase(
    command: Sequence[str], passphrase: str | None, stack: contextlib.ExitStack
) -> tuple[list[str], tuple[int, ...]]:
    if passphrase is None:
        return list(command), ()
    ours, theirs = os.pipe()
    stack.callback(os.close, ours)
    # A passphrase is far shorter than a pipe's buffer, so this never blocks.
    with open(theirs, "wb") as pipe:
        pipe.write(passphrase.encode() + b"\n")
    return [command[0], "--passphrase-fd", str(ours), *command[1:]], (ours,)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # After success it is gone already. Otherwise it must not be allowed to finish: closing its input first would
    # make it complete a message that holds only a part.
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _exchange(
    process: subprocess.Popen[bytes], source: Iterator[Bytes], messages: bytearray
) -> Generator[bytes, None, bool]:
    """Write, read and listen in one loop, so that no pipe can fill up and stop the others.

    Returns whether gpg took all that the source had.
    """
    stdin, stdout = _pipes(process)
    stderr = process.stderr
    if stderr is None:
        raise KeyUnusable("a pipe is missing", hint="This is a defect in Seawall.")
    _prepare(stdin, stdout, stderr)
    pending, all_read = memoryview(b""), True
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = {key.fileobj for key, _ in selector.select()}
            if stdout in ready and (piece := _read(stdout, selector)):
                yield piece
            if stderr in ready:
                messages += _read(stderr, selector)
                # Nothing that matters is lost: what gpg says of a message's end comes last.
                del messages[:-_STDERR_BYTES]
            if stdin in ready:
                pending = pending or _next(source)
                ended = not pending
                pending, all_read = _write(stdin, pending)
                if ended or not all_read:
                    selector.unregister(stdin)
                    stdin.close()
    return all_read


def _prepare(stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
    for pipe in (stdin, stdout, stderr):
        os.set_blocking(pipe.fileno(), False)
    for pipe in (stdin, stdout):
        # A larger buffer only saves wake-ups; a limit for unprivileged accounts may refuse it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _read(pipe: IO[bytes], selector: selectors.BaseSelector) -> bytes:
    piece = os.read(pipe.fileno(), _PIPE_BYTES)
    if not piece:
        selector.unregister(pipe)
    return piece


def _next(source: Iterator[Bytes]) -> memoryview:
    """The next piece that is not empty; an empty one at the end."""
    for chunk in source:
        if len(chunk):
            return memoryview(chunk).cast("B")
    return memoryview(b"")


def _write(pipe: IO[bytes], pending: memoryview) -> tuple[memoryview, bool]:
    """What remains to be written, and whether gpg still listens; if not, its messages tell why."""
    try:
        return pending[os.write(pipe.fileno(), pending) :] if pending else pending, True
    except BlockingIOError:
        return pending, True
    except BrokenPipeError:
        return memoryview(b""), False
