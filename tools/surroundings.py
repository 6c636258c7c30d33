"""What this checkout stands on: the account that servers run under, and an interpreter that it may run.

PostgreSQL refuses to run as root. When root works in this checkout, its servers, and the archive commands that
those start, run under another account, which must be able to reach the interpreter, the server binaries and
the sources. Whether it can is tried, not computed: a child process takes on the account and does it.

    python3 -m tools.surroundings     exits 0 if this checkout lies where that account reaches it, else says why not
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
_STANDARD_LIBRARY = "import bz2, ctypes, hashlib, lzma, sqlite3, ssl, sys, zlib; print(*sys.version_info[:2])"


class Refused(Exception):
    """The surroundings do not allow set-up to go on; the text says what to do."""


class Account(NamedTuple):
    """Who servers run as; `uid` is None where that is simply the current user."""

    name: str
    uid: int | None = None
    gid: int | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this account, from the root directory; its output is captured."""
        groups: list[int] | None = None if self.uid is None else []
        return subprocess.run(
            command, cwd="/", user=self.uid, group=self.gid, extra_groups=groups,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def may(self, permission: str, path: Path) -> bool:
        """Whether `test -<permission> <path>` says yes to this account."""
        return self.run("test", f"-{permission}", str(path)).returncode == 0


def server_account() -> Account:
    """The account for servers: the current user, or for root the first of the configured one, postgres, nobody."""
    if os.geteuid() != 0:
        return Account(pwd.getpwuid(os.geteuid()).pw_name if _is_named(os.geteuid()) else str(os.geteuid()))
    for name in (os.environ.get("SEAWALL_SERVER_ACCOUNT", ""), "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise Refused("PostgreSQL refuses to run as root, and there is neither an account `postgres` nor `nobody`.")


def _is_named(uid: int) -> bool:
    return any(entry.pw_uid == uid for entry in pwd.getpwall())


def closed_directory(path: Path, account: Account) -> Path | None:
    """The first directory on the way to `path` (also behind links) that the account may not pass, or None."""
    for way in dict.fromkeys((path.absolute(), path.resolve())):
        for directory in reversed(way.parents):
            if not account.may("x", directory):
                return directory
    return None


def refuse_closed(path: Path, account: Account) -> None:
    """Say which directory on the way to `path` is closed to the account, and what to do.

    Raises:
        Refused: there is one.
    """
    closed = closed_directory(path / "_", account)
    if closed is not None:
        raise Refused(
            f"{path} lies below {closed}, which the account `{account.name}` may not enter; but root's PostgreSQL\n"
            f"servers run under that account, and start programs of this checkout. Either open the directory,\n"
            f"    chmod o+x '{closed}'\n"
            f"or clone to a place that everybody may enter, such as /srv or /opt, or work as a plain user."
        )


def base_interpreter(account: Account) -> Path:
    """A Python of a supported version, whole, that the account may run; Debian's own before any other.

    Raises:
        Refused: there is none.
    """
    tried: list[str] = []
    for candidate in _candidates():
        answer = account.run(str(candidate), "-I", "-S", "-c", _STANDARD_LIBRARY)
        if answer.returncode == 0 and OLDEST <= tuple(map(int, answer.stdout.split())) <= NEWEST:
            return candidate
        tried.append(f"    {candidate}: {_why_not(candidate, account, answer)}")
    raise Refused(
        f"Python 3.11 to 3.13 is needed, and the account `{account.name}` must be able to run it. Tried:\n"
        + "\n".join(tried or ["    (no python3 was found)"])
        + "\nOn Debian 12: apt-get install python3"
    )


def _candidates() -> list[Path]:
    named = os.environ.get("PYTHON", "")
    names = ["python3", "python3.11", "python3.12", "python3.13"]
    places = [Path("/usr/bin") / name for name in names] + [Path("/usr/local/bin") / name for name in names]
    on_path = [shutil.which(name) for name in ([named] if named else []) + names]
    found = [Path(p) for p in on_path if p] + [Path(sys.executable)]
    chosen = found[:1] if named else []
    return [path for path in dict.fromkeys([*chosen, *places, *found]) if path.exists()]


def _why_not(candidate: Path, account: Account, answer: subprocess.CompletedProcess[str]) -> str:
    if answer.returncode == 0:
        return f"is Python {'.'.join(answer.stdout.split())}"
    closed = closed_directory(candidate, account)
    if closed is not None:
        return f"lies below {closed}, which `{account.name}` may not enter"
    return (answer.stderr.strip().splitlines() or ["does not start"])[-1]


def main() -> int:
    try:
        refuse_closed(ROOT, server_account())
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
