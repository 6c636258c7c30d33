"""Debian packages: install what is missing where that is allowed, else say the exact command.

PostgreSQL's package would create and start a server of its own; while it is installed here, a drop-in file
tells it not to, and is removed again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tools.surroundings import Refused

_DROP_IN = Path("/etc/postgresql-common/createcluster.d/seawall-setup.conf")
_UPDATE = ("apt-get", "update", "-q")
_INSTALL = ("apt-get", "install", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")


class Package(NamedTuple):
    """A package, a program by which its presence shows, and what for."""

    name: str
    program: str
    purpose: str

    @property
    def present(self) -> bool:
        return shutil.which(self.program) is not None


GNUPG = Package("gnupg", "gpg", "wraps the keys that seal backups")
POSTGRESQL = Package("postgresql-15", "/usr/lib/postgresql/15/bin/postgres", "tests on PostgreSQL 15")
SSH = Package("openssh-client", "ssh", "carries what is stored on SFTP servers")
SFTP_SERVER = Package("openssh-sftp-server", "/usr/lib/openssh/sftp-server", "tests of storage over SFTP")
PGBACKREST = Package("pgbackrest", "pgbackrest", "the benchmark's opponent")
VENV = Package("python3-venv", "ensurepip", "brings pip, which brings uv")  # a module: asked for only when it is absent

NEEDED = {
    "demo": (GNUPG,),
    "lint": (),
    "test": (GNUPG, POSTGRESQL, SSH, SFTP_SERVER),
    "bench": (GNUPG, POSTGRESQL, PGBACKREST, SSH, SFTP_SERVER),
}


def provide(packages: tuple[Package, ...]) -> None:
    """Install those of `packages` that are missing.

    Raises:
        Refused: one is missing and may not be installed, or its installation failed.
    """
    missing = tuple(package for package in packages if not package.present)
    if not missing:
        return
    names = [package.name for package in missing]
    by_hand = f"apt-get update && apt-get install --no-install-recommends {' '.join(names)}"
    wanted = "".join(f"\n    {package.name}: {package.purpose}" for package in missing)
    if shutil.which("apt-get") is None:
        raise Refused(f"These Debian packages, or what your system calls them, are missing:{wanted}")
    privilege = _privilege()
    if privilege is None:
        raise Refused(
            f"These Debian packages are missing, and this account may not install them:{wanted}\n"
            f"Ask an administrator to run\n    sudo sh -c '{by_hand}'\nand run this command again."
        )
    print(f"set-up: installing Debian packages {', '.join(names)} on this machine (outside the checkout)", flush=True)
    _install(privilege, names)


def _privilege() -> tuple[str, ...] | None:
    """What to put before a command so that it runs as root without a question, or None."""
    if os.geteuid() == 0:
        return ()
    if (
        shutil.which("sudo")
        and subprocess.run(("sudo", "-n", "true"), capture_output=True, check=False).returncode == 0
    ):
        return ("sudo", "-n")
    return None


def _install(privilege: tuple[str, ...], names: list[str]) -> None:
    own_cluster = any(name.startswith("postgresql") for name in names) and not _DROP_IN.exists()
    try:
        if own_cluster:
            _place_drop_in(privilege)
        for command in (_UPDATE, (*_INSTALL, *names)):
            _run((*privilege, "env", "DEBIAN_FRONTEND=noninteractive", *command))
    finally:
        if own_cluster:
            _run((*privilege, "rm", "-f", str(_DROP_IN)))


def _place_drop_in(privilege: tuple[str, ...]) -> None:
    """Keep `postgresql-15` from making a server (createcluster.conf(5), `create_main_cluster`)."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as text:
        text.write("create_main_cluster = false\n")
        text.flush()
        _run((*privilege, "install", "-D", "-m", "644", text.name, str(_DROP_IN)))


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise Refused(f"`{' '.join(command)}` failed; its output is above.")
