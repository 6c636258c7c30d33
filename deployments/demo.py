"""`python -m deployments.demo`: protect a real database, lose data, get it back, and prove it row for row.

Everything lies below one directory (default: `var/demo` in the checkout) and on loopback, and ends with this
program. Any difference between what was there before the accident and what came back ends it with a failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments import shop
from deployments.stack import Options, Stack, wal_companions
from seawall.archive.continuity import windows
from seawall.catalog import Catalog
from seawall.cli.console import size, span
from seawall.errors import PrivilegeMissing, SeawallError, ServerFailed, VerificationFailed
from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance, free_port
from seawall.repository import Repository
from seawall.settings import SourceSettings, load
from seawall.storage import open_storage
from seawall.wal import Lsn

SOURCE = "shop"
DEFAULT_PLACE = Path(__file__).resolve().parent.parent / "var" / "demo"
_RPO_SAMPLES = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Difference(VerificationFailed):
    """What came back is not what was there."""

    code = "difference"


@dataclass
class Proved:
    """What the demonstration measured, in the order it is printed."""

    facts: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, value: str) -> None:
        self.facts[what] = value


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)  # noqa: T201 - this is the program's output


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.demo", description=__doc__)
    parser.add_argument("--place", type=Path, default=DEFAULT_PLACE, help="where everything lies (default: var/demo)")
    parser.add_argument("--megabytes", type=int, default=200, help="of sample data (default: 200)")
    parser.add_argument("--stay", action="store_true", help="start the shop and the stack, and stay until Ctrl-C")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    begin = time.monotonic()
    try:
        with ExitStack() as everything:
            demonstration = Demonstration(options.place.absolute(), options.megabytes)
            everything.enter_context(demonstration.running(keep=options.stay))
            if options.stay:
                demonstration.stay()
                return 0
            proved = demonstration.prove()
    except SeawallError as error:
        say(f"FAILED: {error.message}")
        if error.hint:
            say(f"  hint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; nothing is left running")
        return 130
    _print(proved, time.monotonic() - begin)
    return 0


def _print(proved: Proved, seconds: float) -> None:
    width = max(map(len, proved.facts))
    lines = ["", "PROVED", *(f"  {what.ljust(width)}  {value}" for what, value in proved.facts.items())]
    lines.append(f"  {'all in all'.ljust(width)}  {span(seconds)}")
    print("\n".join(lines))  # noqa: T201 - this is the program's output


class Demonstration:
    """One run: a cluster, Seawall's own files, and the Prefect stack, all below `place`."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self.place = place
        self._megabytes = megabytes
        self._account = Account.for_servers()
        self._binaries = find(18)
        self._config = place / "seawall" / "seawall.toml"
        self._stacks: list[Stack] = []

    @contextmanager
    def running(self, *, keep: bool) -> Iterator[None]:
        """The loaded database and the stack; both end with the context, and so do their files unless `keep`."""
        self._make_place(keep=keep)
        self._binaries.usable_by(self._account)
        with ExitStack() as stack:
            stack.enter_context(_interruptible(self._hurry))
            self.instance = Instance(self.place / "postgres" / "data", self._binaries, self._account)
            stack.callback(self.instance.stop)
            self._start_cluster()
            self._initialise()
            self.settings = load(self._config)
            self.source: SourceSettings = self.settings.source(SOURCE)
            say("starting Prefect server, worker and WAL receiver")
            companions = wal_companions(self.settings, self._config)
            self.stack = Stack(self.settings, self._config, options=Options(port=free_port()), companions=companions)
            self._stacks.append(self.stack)
            stack.enter_context(self.stack)
            # Prefect reads its settings from the environment when it is first imported, in `flow`.
            os.environ.update(self.stack.environments.client if self.stack.environments else {})
            yield

    def _hurry(self) -> None:
        for stack in self._stacks:
            stack.hurry()

    def _make_place(self, *, keep: bool) -> None:
        if self.place.exists() and not keep:
            shutil.rmtree(self.place)
        postgres = self.place / "postgres"
        postgres.mkdir(parents=True, exist_ok=True)
        for directory in (self.place, postgres):
            directory.chmod(0o755)
        reason = self._account.can_enter(postgres)
        if reason is not None:
            raise PrivilegeMissing(f"PostgreSQL runs as {self._account.name!r} here, but {reason}", hint="See above.")
        self._account.own(postgres)

    def _start_cluster(self) -> None:
        fresh = not self.instance.data_directory.exists()
        if fresh:
            self.instance.initdb()
        self.instance.start(options={"wal_level": "replica", "max_wal_size": "2GB"})
        say(f"PostgreSQL {self._binaries.version} runs on port {self.instance.port} as {self._account.name}")
        if fresh:
            say(f"loading the shop, about {self._megabytes} MB")
            loaded = shop.load(self.instance.source(SOURCE), self._megabytes)
            say(f"loaded {size(loaded)}")

    def _initialise(self) -> None:
        if self._config.exists():
            text = self._config.read_text(encoding="utf-8").splitlines()
            kept = [line for line in text if not line.startswith("conninfo")]
            self._config.write_text(
                "\n".join([*kept, f'conninfo = "{self.instance.conninfo}"']) + "\n", encoding="utf-8"
            )
            return
        self.seawall("init", "--directory", str(self._config.parent), "--source", SOURCE,
                     "--conninfo", self.instance.conninfo)  # fmt: skip

    def seawall(self, *arguments: str) -> Mapping[str, Any]:
        """One command of Seawall as a user types it, and what it says as JSON."""
        command = [sys.executable, "-m", "seawall", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            said: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            raise ServerFailed(f"seawall {arguments[0]} said: {done.stdout}{done.stderr}") from error
        if not said["ok"]:
            raise ServerFailed(f"seawall {arguments[0]}: {said['error']['message']}", hint=said["error"]["hint"])
        return said

    def stay(self) -> None:
        say(f"the shop: psql '{self.instance.conninfo}'")
        say(f"Seawall's settings: {self._config} (for example: seawall list --config {self._config})")
        say(f"Prefect: {self.stack.ui_url} (user and password are in {self.stack.place.secrets / 'prefect-auth'})")
        say("Ctrl-C ends everything")
        while not self.stack.ended():
            time.sleep(1)
        raise ServerFailed(f"the {self.stack.ended()[0].command.name} ended:\n{self.stack.ended()[0].log_tail()}")

    # ---- the story

    def prove(self) -> Proved:
        proved = Proved()
        self._back_up(proved)
        expected = self._live_on(proved)
        say("the accident: one table is dropped, another is updated without WHERE")
        shop.accident(self.source)
        self.flow("archive-wal", {})
        restored = self.place / "postgres" / "restored"
        self._restore(expected, restored, proved)
        self._compare(expected, restored, proved)
        self._test_restore(proved)
        proved.note("look at it", f"`make up`, or the logs and catalog below {self.place}")
        return proved

    def _back_up(self, proved: Proved) -> None:
        say("flow `backup`: full backup, then verified from the storage")
        result = self.flow("backup", {})
        with Catalog.open(self.settings.catalog.url) as catalog:
            file = catalog.backup_files(source=SOURCE)[-1]
            job = next(e for e in catalog.executions() if e.backup_size_bytes)
            verification = catalog.verifications(file.id)[0]
        took = (job.execution_end or job.execution_start) - job.execution_start
        plain, stored = job.backup_size_bytes or 0, job.compressed_size_bytes or 0
        rate = size(plain / max(took.total_seconds(), 0.001))
        proved.note(
            "full backup", f"{size(plain)} in {span(took)}, {rate}/s, stored as {size(stored)}, sealed AES-256-GCM"
        )
        proved.note("verified", f"{verification.status.value}: every object read back from the storage and opened")
        proved.note("flow run", f"{result} completed")

    def _live_on(self, proved: Proved) -> shop.Contents:
        say("live writes while WAL streams")
        with shop.LiveWrites(self.source) as writes:
            achieved = [self._rpo_sample() for _ in range(_RPO_SAMPLES)]
        proved.note("achieved RPO", f"{max(achieved):.1f} s at worst of {len(achieved)} samples, under live writes")
        proved.note("live writes", f"{writes.placed} orders committed while WAL streamed")
        expected = shop.contents(self.source)
        # The target is the server's own time after the last order; the accident comes visibly later.
        time.sleep(1.0)
        return expected

    def _rpo_sample(self) -> float:
        """How long it takes until what was committed now is in the repository."""
        time.sleep(1.0)
        with self.instance.connect() as session:
            row = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        wanted, begin = Lsn.parse(str(row[0]) if row else "0/0"), time.monotonic()
        storage = open_storage(self.settings.repository)
        try:
            area = Repository.open(storage).source(SOURCE)
            while max((w.until for w in windows(area.wal, area.heads())), default=Lsn(0)) < wanted:
                if time.monotonic() - begin > 60:
                    raise ServerFailed("WAL did not reach the repository within a minute")
                time.sleep(0.1)
        finally:
            storage.close()
        return time.monotonic() - begin

    def _restore(self, expected: shop.Contents, restored: Path, proved: Proved) -> None:
        say(f"flow `restore`: to {expected.taken_at.isoformat()}, just before the accident, into a new directory")
        target = {"target": "time", "value": expected.taken_at.isoformat()}
        begin = time.monotonic()
        self.flow("restore", {"into": str(restored), **target})
        elapsed = time.monotonic() - begin
        with Catalog.open(self.settings.catalog.url) as catalog:
            details = catalog.recoveries(limit=1)[0].recovery_details
        seconds: Mapping[str, float] = details["seconds"]  # type: ignore[assignment] # JSON from the catalog
        written = int(str(details["written_bytes"]))
        rate = size(written / max(seconds["files"], 0.001))
        proved.note("restored", f"{size(written)} at {rate}/s, then WAL to {details['last_commit_at']}")
        rto = f"{seconds['total']:.1f} s in the engine, {elapsed:.1f} s with Prefect around it"
        proved.note("achieved RTO", f"{rto}; promised: {self.settings.server.rto_hours} h")

    def _compare(self, expected: shop.Contents, restored: Path, proved: Proved) -> None:
        say("comparing row for row with what was there")
        instance = Instance(restored, self._binaries, self._account)
        try:
            instance.start()
            found = shop.contents(instance.source(SOURCE))
        finally:
            instance.stop()
        differing = shop.differences(expected, found)
        if differing:
            raise Difference(
                f"the restored shop differs: {'; '.join(differing)}", hint="Keep the files and report this."
            )
        proved.note("compared", f"{found.row_count} rows of {len(shop.TABLES)} tables, every one equal")

    def _test_restore(self, proved: Proved) -> None:
        say("flow `restore-test`: a random position into a scratch instance, amcheck, page checksums")
        self.flow("restore-test", {})
        with Catalog.open(self.settings.catalog.url) as catalog:
            file = catalog.backup_files(source=SOURCE)[-1]
            test = next(v for v in catalog.verifications(file.id) if v.verification_type.value == "restore_test")
        results = test.verification_results or {}
        checks: Mapping[str, int] = results["checks"]  # type: ignore[assignment] # JSON from the catalog
        counted = ", ".join(f"{count} {what}" for what, count in checks.items() if count)
        proved.note("restore test", f"{test.status.value} at {results['target']}: {counted}")

    def flow(self, name: str, parameters: Mapping[str, object]) -> str:
        """Start a deployment and wait for its end; returns the run's name.

        Raises:
            ServerFailed: it did not complete.
        """
        # Prefect reads its settings when it is imported, so that comes after the environment is set.
        from prefect.deployments import run_deployment  # noqa: PLC0415 - see above

        given = {"source": SOURCE, "settings_file": str(self._config), **parameters}
        run: Any = run_deployment(f"{name}/{name}", parameters=given, as_subflow=False, timeout=300, poll_interval=0.5)
        if run.state is None or not run.state.is_completed():
            raise ServerFailed(f"flow {name} ended as {run.state}", hint=f"Its log is in {self.stack.place.logs}.")
        return str(run.name)


@contextmanager
def _interruptible(hurry: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends everything in its order; later ones only stop the waiting for it."""

    def later(_number: int, _frame: object) -> None:
        hurry()

    def first(_number: int, _frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, later)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, first) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
