"""`python -m deployments.stack`: Prefect server, worker, keeper and companions, started and stopped as one.

Used by `seawall up`, the demonstration and the tests. This process imports nothing of Prefect: it starts the others,
watches them, and ends them in the order that lets work unwind: the keeper cancels what runs and waits, then the
worker, the companions, the server; whoever does not end in its time is killed with its process group, and so is
what they left behind.

Guarantees: listens on loopback; leaves no process behind, a database that a restore started excepted (see
`processes`). Not guaranteed: service while parts of it fail; use systemd units for each part where that matters.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from deployments.environment import HOST, STACK_VARIABLE, Environments, Place, Timing, api_url, compose
from deployments.processes import Child, Command, end_marked, until
from seawall.errors import SeawallError, ServerFailed, UsageError
from seawall.model import WalMode
from seawall.settings import Settings, load

logger = logging.getLogger(__name__)

PREFERRED_PORT = 4200
START_SECONDS = 180.0
# What each part may take to end by itself; the worker's and keeper's own limits are below these.
END_SECONDS = {"keeper": 50.0, "worker": 45.0, "server": 15.0}
COMPANION_SECONDS = 20.0
RESTART_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Companion:
    """Something that runs beside Prefect, such as a WAL receiver; it gets the stack's environment."""

    name: str
    arguments: tuple[str, ...]
    account: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How to start a stack.

    Args:
        port: where the Prefect server listens; 0 for any free one.
        worker_limit: how many flow runs at once.
        sweep_seconds: how often the keeper looks for what Prefect left open.
        pending_seconds: how long a run may be about to start.
    """

    port: int = 0
    worker_limit: int = 4
    sweep_seconds: float = 15.0
    pending_seconds: float = 300.0
    timing: Timing = field(default_factory=Timing)


class Stack:
    """One stack of processes; start it in a thread that lives as long as it does."""

    def __init__(
        self,
        settings: Settings,
        settings_file: Path,
        *,
        options: Options | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.id = uuid.uuid4().hex
        self.settings = settings
        self.place = Place(settings.server.work_directory)
        self._settings_file = settings_file
        self._options = options or Options()
        self._companions = tuple(companions)
        self._children: list[Child] = []
        self._hurry = threading.Event()
        self.port = 0
        self._reservation: socket.socket | None = None
        self.environments: Environments | None = None

    @property
    def api_url(self) -> str:
        return api_url(self.port)

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def child(self, name: str) -> Child:
        """The running process of that name."""
        return next(child for child in self._children if child.command.name == name)

    def start(self, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start everything and wait until flows are deployed.

        Raises:
            UsageError: a stack already runs in this work directory.
            ServerFailed: a part ended, or was not ready in time.
        """
        self.place.prepare()
        self._refuse_second()
        self.port = self._options.port or self._reserve_port()
        self.environments = compose(
            self.place,
            port=self.port,
            stack_id=self.id,
            inherited=os.environ | self._extra_environment(),
            timing=self._options.timing,
        )
        try:
            self._children = [self._launch(command) for command in self._commands(self.environments)]
            self._write_state()
            self._await_deployment(cancelled)
        except BaseException:
            self.stop()
            raise

    def _reserve_port(self) -> int:
        self._reservation, port = reserved_port(PREFERRED_PORT)
        return port

    def _extra_environment(self) -> dict[str, str]:
        return {
            "SEAWALL_CONFIG": str(self._settings_file),
            "SEAWALL_WORKER_LIMIT": str(self._options.worker_limit),
            "SEAWALL_SWEEP_SECONDS": str(self._options.sweep_seconds),
            "SEAWALL_PENDING_SECONDS": str(self._options.pending_seconds),
        }

    def _commands(self, environments: Environments) -> list[Command]:
        """Everything at once: each part waits by itself for those that it needs."""
        home = self.place.home
        parts = [
            Command("server", _module("deployments.server"), environments.server, home),
            Command("keeper", _module("deployments.keeper"), environments.client, home),
            Command("worker", _module("deployments.worker"), environments.worker, home),
        ]
        # Companions run the engine; what opens the Prefect API is none of their business.
        plain = {name: value for name, value in environments.client.items() if not name.startswith("PREFECT_")}
        return parts + [Command(one.name, one.arguments, plain, home, one.account) for one in self._companions]

    def _launch(self, command: Command) -> Child:
        return Child(command, self.place.logs / f"{command.name}.log")

    def _await_deployment(self, cancelled: Callable[[], bool]) -> None:
        def settled() -> bool:
            return cancelled() or bool(self._parts_ended()) or self._is_deployed()

        if not until(settled, START_SECONDS, pause=0.2):
            raise ServerFailed(f"the stack was not ready within {START_SECONDS:.0f} s", hint=self._log_hint())
        for child in self._parts_ended():
            raise ServerFailed(
                f"the {child.command.name} ended with exit code {child.exit_code}:\n{child.log_tail()}",
                hint=f"Its log is {child.log}.",
            )

    def _is_deployed(self) -> bool:
        try:
            return self.place.deployed.read_text(encoding="ascii") == self.id
        except FileNotFoundError:
            return False

    def _log_hint(self) -> str:
        return f"The logs are in {self.place.logs}."

    def ended(self) -> list[Child]:
        """Parts and companions that run no more."""
        return [child for child in self._children if child.exit_code is not None]

    def _parts_ended(self) -> list[Child]:
        """Without companions: a database that is down does not keep the rest from starting."""
        companions = {one.name for one in self._companions}
        return [child for child in self.ended() if child.command.name not in companions]

    def tend(self) -> None:
        """Start whatever has ended afresh."""
        for child in self.ended():
            logger.error("the %s ended with exit code %s; starting it again", child.command.name, child.exit_code)
            self.restart(child.command.name)

    def restart(self, name: str) -> None:
        """Start a part afresh that has ended."""
        old = self.child(name)
        self._children[self._children.index(old)] = self._launch(old.command)
        self._write_state()

    def stop(self) -> None:
        """End everything: drain, then TERM, then KILL; nothing is left when it returns.

        `hurry` from another thread or a signal handler cuts the waiting short.
        """
        by_name = {child.command.name: child for child in self._children}
        ordered = [by_name.pop(name) for name in ("keeper", "worker") if name in by_name]
        server = [by_name.pop("server")] if "server" in by_name else []
        for child in (*ordered, *by_name.values(), *server):
            self._end(child)
        self._children = []
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        if self.environments is not None:
            end_marked(
                STACK_VARIABLE, self.id, scratch=self.place.work_directory, seconds=0 if self._hurry.is_set() else 5
            )
        for path in (self.place.state, self.place.deployed):
            path.unlink(missing_ok=True)

    def _end(self, child: Child) -> None:
        child.ask_to_end()
        seconds = END_SECONDS.get(child.command.name, COMPANION_SECONDS)
        until(lambda: self._hurry.is_set() or child.exit_code is not None, seconds)
        if child.exit_code is None:
            logger.warning("the %s did not end by itself and is killed", child.command.name)
        child.kill()

    def hurry(self) -> None:
        """Stop waiting for anybody."""
        self._hurry.set()

    def _refuse_second(self) -> None:
        state = read_state(self.place)
        if state is not None and answers(str(state["api_url"])):
            raise UsageError(
                f"a stack already runs here, at {state['api_url']}",
                hint="Stop it first, or use another work directory.",
            )

    def _write_state(self) -> None:
        state = {
            "stack_id": self.id,
            "pid": os.getpid(),
            "api_url": self.api_url,
            "ui_url": self.ui_url,
            "pids": {child.command.name: child.pid for child in self._children},
        }
        temporary = self.place.state.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(self.place.state)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def read_state(place: Place) -> Mapping[str, object] | None:
    """What a running (or killed) stack wrote about itself, or None."""
    try:
        state = json.loads(place.state.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return state if isinstance(state, dict) and "api_url" in state else None


def answers(url: str) -> bool:
    """Whether a Prefect server is alive at an API URL."""
    # Proxies of the environment are not for this host.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port(preferred: int) -> int:
    """`preferred` if nobody listens there on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerFailed(f"no port is free on {HOST}")


def reserved_port(preferred: int) -> tuple[socket.socket, int]:
    """What keeps a free port for this stack while it is open, and the port: `preferred` if it can be.

    A server takes seconds to listen. Another stack that looks for a port meanwhile would find the same one, and its
    worker would then ask the server of this one. A name in the abstract namespace (unix(7)) goes with its process.
    """
    for candidate in (preferred, *[0] * 20):
        port, mark = free_port(candidate), socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0seawall-stack-port-{port}")
        except OSError:
            mark.close()
            continue
        return mark, port
    raise ServerFailed(f"every free port on {HOST} is kept by another stack that is starting")


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def wal_companions(settings: Settings, settings_file: Path) -> tuple[Companion, ...]:
    """What brings the WAL of each source into the repository."""
    actions = {WalMode.RECEIVE: "receive", WalMode.ARCHIVE_COMMAND: "agent"}
    return tuple(
        Companion(
            f"wal-{source.name}",
            (sys.executable, "-m", "seawall", "wal", actions[source.wal], source.name, "--config", str(settings_file)),
        )
        for source in settings.sources.values()
        if source.wal in actions
    )


def _run(stack: Stack) -> int:
    """Serve until the first SIGINT or SIGTERM, then drain; the second one ends everything at once."""
    asked = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if asked.is_set():
            stack.hurry()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    stack.start(cancelled=asked.is_set)
    try:
        if not asked.is_set():
            logger.info("Prefect UI: %s (its password is in %s)", stack.ui_url, stack.place.secrets / "prefect-auth")
        while not asked.wait(1):
            if stack.ended():
                # What cannot start must not be started as fast as this host can.
                asked.wait(RESTART_SECONDS)
                stack.tend()
        logger.info("stopping: running flows are cancelled and unwind; a second Ctrl-C ends them at once")
    finally:
        stack.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.stack", description="Run Prefect for Seawall.")
    parser.add_argument(
        "--config", type=Path, help="settings file (default: SEAWALL_CONFIG, /etc/seawall/seawall.toml)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help=f"of the Prefect server (default: {PREFERRED_PORT} or any free one)"
    )
    parser.add_argument("--worker-limit", type=int, default=4, help="flow runs at once (default: 4)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        path = (options.config or Path(os.environ.get("SEAWALL_CONFIG", "/etc/seawall/seawall.toml"))).absolute()
        chosen = replace(Options(), port=options.port, worker_limit=options.worker_limit)
        settings = load(path)
        return _run(Stack(settings, path, options=chosen, companions=wal_companions(settings, path)))
    except SeawallError as error:
        logger.error("%s\n%s", error.message, error.hint)  # noqa: TRY400 - an expected error needs no traceback
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
