"""Storage services of tests and benchmarks, on loopback ports of their own, ended by process.

Each is the real thing, or an emulator of what Seawall asks of it. A server is started when
it is first asked for; `settings` of a server makes a new, empty place in it and tells how to reach that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from seawall.settings import RepositorySettings
from seawall.storage import open_driver
from seawall.storage.base import Storage
from tools import azurite, debian
from tools.surroundings import ROOT, Refused

_READY_SECONDS = 60.0

# The emulator's published account; its key opens nothing else (Azurite, README, "Default Storage Account").
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Server(Protocol):
    """A running service."""

    port: int

    def settings(self) -> RepositorySettings:
        """A new place without objects in it."""
        ...

    def storage(self) -> Storage:
        """The bare driver at a new place, as cheap as it can be made."""
        ...


class S3Server:
    """moto's server: Amazon S3, with versions, conditions, checksums and Object Lock."""

    def __init__(self, port: int, place: Path) -> None:
        self.port = port
        self._credentials = secret_file(
            place / "s3.credentials", "[default]\naws_access_key_id = tests\naws_secret_access_key = of the tests\n"
        )
        self._client = self.client(self._settings("s3://any", port))

    def settings(self, *, lock: bool = False, port: int = 0) -> RepositorySettings:
        """A new bucket and prefix.

        Args:
            lock: with Object Lock, which brings versions.
            port: of something in between, such as a proxy.
        """
        bucket = f"bucket-{secrets.token_hex(6)}"
        self._client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=lock)
        return self._settings(f"s3://{bucket}/a/prefix", port or self.port)

    def storage(self) -> Storage:
        from seawall.storage import s3  # noqa: PLC0415 - see `client`
        from seawall.storage.access import bucket_place  # noqa: PLC0415 - see `client`

        settings = self.settings()
        return s3.S3Storage(s3.S3Bucket(bucket_place(settings.url, "s3"), self._client, settings.lock_mode))

    def _settings(self, url: str, port: int) -> RepositorySettings:
        return RepositorySettings(
            url=url,
            endpoint=f"http://127.0.0.1:{port}",
            region="us-east-1",
            credentials_file=self._credentials,
        )

    def client(self, settings: RepositorySettings) -> Any:
        """boto3's own, to look behind Seawall's back."""
        from seawall.storage import s3  # noqa: PLC0415 - a third of a second that other servers need not pay

        return s3.client(settings)


@contextlib.contextmanager
def s3_server(place: Path) -> Iterator[S3Server]:
    port = free_port()
    with process([sys.executable, "-m", "tools.s3_server", str(port)], port, place):
        yield S3Server(port, place)


class SftpServer:
    """OpenSSH's sftp-server; asyncssh carries its sessions."""

    def __init__(self, port: int, place: Path) -> None:
        self.port = port
        self._place = place

    def settings(self, *, port: int = 0) -> RepositorySettings:
        folder = self._place / f"folder {secrets.token_hex(6)}"
        folder.mkdir()
        asked = port or self.port
        host_key = (self._place / "host.key.pub").read_text(encoding="utf-8")
        known_hosts = self._place / f"known_hosts.{asked}"
        known_hosts.write_text(f"[127.0.0.1]:{asked} {host_key}", encoding="utf-8")
        return RepositorySettings(
            url=f"sftp://tests@127.0.0.1:{asked}{quote(str(folder))}",
            credentials_file=self._place / "client.key",
            known_hosts_file=known_hosts,
        )

    def storage(self) -> Storage:
        settings = self.settings()
        return open_driver(settings.url, settings)


@contextlib.contextmanager
def sftp_server(place: Path, *, links: bool = True) -> Iterator[SftpServer]:
    """One server.

    Args:
        links: whether it offers hard links; one that does not is as over a file system that has none.
    """
    import asyncssh  # noqa: PLC0415 - only where this server is wanted

    for package in (debian.SFTP_SERVER, debian.SSH):
        if not package.present:
            raise Refused(f"{package.program} is not there; `make test` installs {package.name}")
    for name in ("host", "client"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        secret_file(place / f"{name}.key", key.export_private_key().decode())
        (place / f"{name}.key.pub").write_bytes(key.export_public_key())
    (place / "authorized_keys").write_bytes((place / "client.key.pub").read_bytes())
    port = free_port()
    program = debian.SFTP_SERVER.program
    command = [sys.executable, "-m", "tools.sftp_server", str(port), str(place), program]
    if not links:
        command += ["-P", "hardlink"]
    with process(command, port, place):
        yield SftpServer(port, place)


class AzureServer:
    """Azurite, with its own published account."""

    def __init__(self, port: int, place: Path) -> None:
        self.port = port
        self._place = place

    def settings(self, *, port: int = 0) -> RepositorySettings:
        container = f"container-{secrets.token_hex(6)}"
        settings = self._settings(f"azure://{container}/a/prefix", port or self.port)
        self.client(self._settings("azure://any", self.port)).create_container(container)
        return settings

    def storage(self) -> Storage:
        settings = self.settings()
        return open_driver(settings.url, settings)

    def client(self, settings: RepositorySettings) -> Any:
        """The vendor's own, to look behind Seawall's back."""
        from seawall.storage import azure  # noqa: PLC0415 - a third of a second that other servers need not pay

        return azure.client(settings)

    def _settings(self, url: str, port: int) -> RepositorySettings:
        text = (
            f"DefaultEndpointsProtocol=http;AccountName={_AZURITE_ACCOUNT};AccountKey={_AZURITE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{_AZURITE_ACCOUNT};"
        )
        return RepositorySettings(url=url, credentials_file=secret_file(self._place / f"azure.{port}", text))


@contextlib.contextmanager
def azure_server(place: Path) -> Iterator[AzureServer]:
    if not azurite.PROGRAM.exists():
        raise Refused("Azurite is not there; `make test` fetches it")
    port = free_port()
    command = [
        *azurite.node(), str(azurite.PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--location", str(place), "--silent", "--skipApiVersionCheck", "--disableTelemetry",
    ]  # fmt: skip
    with process(command, port, place):
        yield AzureServer(port, place)


class GcsServer:
    """gcp-storage-emulator, made stricter by `tools/gcs_server.py`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def settings(self, *, lock: bool = False, port: int = 0) -> RepositorySettings:
        """A new bucket and prefix.

        Args:
            lock: with object retention.
            port: of something in between, such as a proxy.
        """
        bucket = f"bucket-{secrets.token_hex(6)}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/storage/v1/b?project=tests&enableObjectRetention={str(lock).lower()}",
            data=json.dumps({"name": bucket}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):  # noqa: S310 - a loopback address
            return RepositorySettings(url=f"gs://{bucket}/a/prefix", endpoint=f"http://127.0.0.1:{port or self.port}")

    def storage(self) -> Storage:
        settings = self.settings()
        return open_driver(settings.url, settings)


@contextlib.contextmanager
def gcs_server(place: Path) -> Iterator[GcsServer]:
    port = free_port()
    command = [sys.executable, "-m", "tools.gcs_server", str(port)]
    with process(command, port, place):
        yield GcsServer(port)


class _Tokens(BaseHTTPRequestHandler):
    """Gives a token to whoever asks, as Google does to a service account; the emulator asks for none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = json.dumps({"access_token": "of-the-tests", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is for failures."""


@contextlib.contextmanager
def google_account() -> Iterator[dict[str, str]]:
    """The JSON key of a service account whose tokens come from this process."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only where it is wanted
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415 - see the line above

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tokens) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "type": "service_account", "project_id": "tests", "private_key_id": "1", "private_key": pem.decode(),
            "client_email": "a@example.com", "token_uri": f"http://127.0.0.1:{server.server_port}/token",
        }  # fmt: skip
        server.shutdown()


SERVERS = {"s3": s3_server, "azure": azure_server, "gs": gcs_server, "sftp": sftp_server}


class Servers:
    """All of them, each started when it is first asked for and ended with this."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._running: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, kind: str) -> Any:
        if kind not in self._running:
            place = self._place / kind
            place.mkdir()
            self._running[kind] = self._stack.enter_context(SERVERS[kind](place))
        return self._running[kind]


@contextlib.contextmanager
def process(command: list[str], port: int, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, ready for connections; it is ended with the block.

    Raises:
        Refused: it ended at once, or did not listen in time; its own words are repeated.
    """
    with (place / "server.log").open("wb") as log:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        _wait(running, port, place)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _wait(running: subprocess.Popen[bytes], port: int, place: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while not listening(port):
        if running.poll() is not None or time.monotonic() > end:
            said = (place / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise Refused(f"the server {running.args!r} does not listen on port {port}: {said}")
        time.sleep(0.05)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path
