"""The one place where Prefect is configured: the environments of server, worker, keeper and clients.

Nothing is read from the user's own Prefect profile: every `PREFECT_*` variable of the parent process is dropped,
except the server's database URL, which is the site's to choose. Secrets travel in environments only, never in
arguments; on Linux `/proc/<pid>/environ` shows those to the same account and to root, who can read the files
that the secrets come from anyway.

Guarantees: everything listens on loopback, the API asks for authentication, nothing asks outside hosts, results
are JSON, task caching is off. Not guaranteed: that other processes of the same account cannot use the API.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
POOL = "seawall"
STACK_VARIABLE = "SEAWALL_STACK"
DATABASE_VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
PACKAGES = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stack of one work directory keeps what it needs."""

    work_directory: Path

    @property
    def home(self) -> Path:
        """`PREFECT_HOME`: Prefect's database, its results and its profile."""
        return self.work_directory / "prefect"

    @property
    def secrets(self) -> Path:
        return self.work_directory / "secrets"

    @property
    def logs(self) -> Path:
        return self.work_directory / "logs"

    @property
    def state(self) -> Path:
        """What other commands need to find the running stack; holds no secret."""
        return self.work_directory / "stack.json"

    @property
    def deployed(self) -> Path:
        """Written by the keeper when everything is deployed; holds the stack's id."""
        return self.work_directory / "stack.deployed"

    def prepare(self) -> None:
        """Make the directories; those with secrets are readable for their owner only."""
        self.work_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for private in (self.home, self.secrets, self.logs):
            private.mkdir(mode=0o700, exist_ok=True)
            private.chmod(0o700)

    def auth_string(self) -> str:
        """`user:password` of the Prefect API, random, made at first use."""
        return kept_secret(self.secrets / "prefect-auth", lambda: f"seawall:{secrets.token_urlsafe(32)}")

    def encryption_key(self) -> str:
        """The key of Prefect's block documents; outside its database, so that a copy of that tells nothing."""
        return kept_secret(self.secrets / "prefect-encryption.key", _fernet_key)


@dataclass(frozen=True, slots=True)
class Timing:
    """How often Prefect's parts look around, in seconds; tests make them look more often."""

    poll_seconds: float = 2.0
    heartbeat_seconds: int = 30


@dataclass(frozen=True, slots=True)
class Environments:
    """The environments of one stack, complete (they replace the inherited one)."""

    server: Mapping[str, str]
    worker: Mapping[str, str]
    client: Mapping[str, str]


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def compose(
    place: Place, *, port: int, stack_id: str, inherited: Mapping[str, str], timing: Timing | None = None
) -> Environments:
    """Everything that the processes of a stack have in their environments.

    Args:
        place: prepared; its secrets are read, or made.
        port: where the server listens on loopback.
        stack_id: marks each process of this stack, so that its end can find those that lost their parents.
        inherited: the environment of the process that starts the stack.
        timing: how often the parts look around.
    """
    base = _without_prefect(inherited) | _common(place, stack_id, timing or Timing())
    server = base | _server(place, port)
    if DATABASE_VARIABLE in inherited:
        server[DATABASE_VARIABLE] = inherited[DATABASE_VARIABLE]
    client = base | {"PREFECT_API_URL": api_url(port), "PREFECT_API_AUTH_STRING": place.auth_string()}
    return Environments(server, client, client)


def _common(place: Place, stack_id: str, timing: Timing) -> dict[str, str]:
    return {
        STACK_VARIABLE: stack_id,
        # As `seawall` itself does: numpy's algebra is not used, and its threads would spin at every start.
        "OPENBLAS_NUM_THREADS": "1",
        "PREFECT_HOME": str(place.home),
        "PREFECT_PROFILES_PATH": str(place.home / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "10",
        "PREFECT_WORKER_QUERY_SECONDS": str(timing.poll_seconds),
        "PREFECT_WORKER_WEBSERVER_HOST": HOST,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(timing.heartbeat_seconds),
        "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
        "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "false",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_COLORS": "false",
    }


def _server(place: Place, port: int) -> dict[str, str]:
    origins = f"http://{HOST}:{port},http://localhost:{port}"
    return {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": place.auth_string(),
        "PREFECT_SERVER_ENCRYPTION_KEY": place.encryption_key(),
        # Authentication is a header that no foreign page can make a browser send, so this is the second lock.
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Registering every block type imports all cloud packages into the server; ours register when first saved.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    }


def _without_prefect(inherited: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in inherited.items() if not name.startswith(("PREFECT_", "ORION_"))}
    # A proxy of the site must not get what is meant for the server on this host.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, (kept.get(name, ""), HOST, "localhost")))
    if (PACKAGES / "pyproject.toml").exists():
        # A checkout that is not installed: flow modules must be found from any working directory.
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGES), kept.get("PYTHONPATH", ""))))
    return kept


def kept_secret(path: Path, fresh: Callable[[], str]) -> str:
    """The secret in `path`; if there is none yet, a fresh one, written durably with mode 0600."""
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(fresh() + "\n")
                file.flush()
                os.fsync(file.fileno())
            # Linking never replaces: of two that start at once, both go on with the secret of the first.
            _link(temporary, path)
        finally:
            temporary.unlink()
    return path.read_text(encoding="ascii").strip()


def _link(source: Path, destination: Path) -> None:
    try:
        destination.hardlink_to(source)
    except FileExistsError:
        return


def _fernet_key() -> str:
    """32 random bytes as Fernet wants them (cryptography's documentation, `Fernet.generate_key`)."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii")
