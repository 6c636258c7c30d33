"""Everything that a make target needs, from a bare checkout; done in moments when nothing is missing.

python3 -m tools.setup {demo,lint,test,bench}
python3 -m tools.setup lock [--upgrade]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tools import awscli, azurite, debian, environment
from tools.surroundings import ROOT, Account, Refused, base_interpreter, refuse_closed, server_account


def prepare(purpose: str) -> None:
    """Packages, environment and a proof that servers can start, in this order.

    Raises:
        Refused: something is missing and cannot be provided; the text says what to do.
    """
    account = server_account()
    refuse_closed(ROOT, account)
    _provide_packages(purpose)
    environment.provide(base_interpreter(account))
    if purpose in ("test", "bench"):
        _provide_azurite()
    if purpose == "bench":
        _provide_awscli(account)
    prove_startable(server_account())


def prove_startable(account: Account) -> None:
    """Start, as the account for servers, what will be started as it.

    Raises:
        Refused: one does not start, or the sources cannot be read.
    """
    refuse_closed(environment.VENV / "bin", account)
    servers = sorted(environment.VENV.glob("lib/python3.*/site-packages/*/pginstall/bin/postgres"))
    for command in ((environment.PYTHON, "-I", "-S", "-c", "pass"), *((server, "--version") for server in servers)):
        answer = account.run(*map(str, command))
        if answer.returncode != 0:
            raise Refused(
                f"The account `{account.name}` cannot run {command[0]}: {answer.stderr.strip() or 'no reason given'}\n"
                f"Try: chmod -R go+rX '{environment.VENV}'"
            )
    if not account.may("r", ROOT / "seawall" / "__init__.py"):
        raise Refused(f"The account `{account.name}` cannot read the sources. Try: chmod -R go+rX '{ROOT}'")


def _provide_packages(purpose: str) -> None:
    """PostgreSQL 15 and OpenSSH are Debian's; without them, and the right to install, their tests are left out."""
    try:
        debian.provide(debian.NEEDED[purpose])
    except Refused as refusal:
        essential = purpose != "test" or not debian.GNUPG.present or os.environ.get("CI") == "true"
        if essential:
            raise
        print(f"set-up: {refusal}\nset-up: going on without: tests on what is missing will be skipped.", flush=True)


def _provide_azurite() -> None:
    """Tests of one driver only need it, so a machine without npm's registry goes on without them."""
    try:
        azurite.provide()
    except Refused as refusal:
        if os.environ.get("CI") == "true":
            raise
        print(f"set-up: {refusal}\nset-up: going on without: tests of Azure storage will be skipped.", flush=True)


def _provide_awscli(account: Account) -> None:
    """One comparison only needs it, so the others are made without."""
    try:
        awscli.provide(base_interpreter(account))
    except Refused as refusal:
        print(f"set-up: {refusal}\nset-up: going on without: boto3 will stand in for the AWS command line.", flush=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Two makes at once would build the same environment over each other: the second waits."""
    environment.UV_HOME.mkdir(exist_ok=True)
    with (environment.UV_HOME / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.setup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("purpose", choices=[*debian.NEEDED, "lock"])
    parser.add_argument("--upgrade", action="store_true", help="with lock: take the newest versions that are allowed")
    asked = parser.parse_args()
    if os.geteuid() == 0:
        os.umask(0o022)  # what root makes here, the account for servers has to read
    try:
        with _alone():
            if asked.purpose == "lock":
                environment.write_lock(base_interpreter(server_account()), upgrade=asked.upgrade)
            else:
                prepare(asked.purpose)
    except Refused as refusal:
        print(f"set-up: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
