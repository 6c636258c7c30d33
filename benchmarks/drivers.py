"""Seawall's drivers beside the vendors' own tools, file to server and back, on the tests' loopback servers.

python -m benchmarks.drivers [--megabytes 256] [--rounds 3] [--place DIRECTORY]

Each line is a whole process: start, one file up (or down), end. Both sides of a pair run one after the other in each
round, in turns, and medians are told. The servers are written in Python or JavaScript and share the processors, so wall
time says how the two compare and nothing about a cloud; CPU seconds are the client's own. Every download is compared
with what was uploaded. Azure's and Google's own tools are no Python packages, so their libraries stand for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from benchmarks.measure import run
from seawall.settings import RepositorySettings
from seawall.storage import open_driver
from seawall.storage.access import bucket_place
from tools import awscli
from tools.storage_servers import Servers

_AT_ONCE = 8
_TOLD = ("url", "endpoint", "region", "credentials_file", "known_hosts_file")
_PIECE = 1 << 20


# ---- what runs in a process of its own


def seawall_up(settings: RepositorySettings, name: str, file: Path) -> None:
    def chunks() -> Iterator[bytes]:
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE):
                yield piece

    storage = open_driver(settings.url, settings)
    storage.put(name, chunks())
    storage.close()


def seawall_down(settings: RepositorySettings, name: str, file: Path) -> None:
    storage = open_driver(settings.url, settings)
    with file.open("wb") as opened:
        for piece in storage.get(name):
            opened.write(piece)
    storage.close()


def _boto3(settings: RepositorySettings) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=settings.endpoint, region_name=settings.region, aws_access_key_id="a",
        aws_secret_access_key="b",
    )  # fmt: skip


def boto3_up(settings: RepositorySettings, name: str, file: Path) -> None:
    place = bucket_place(settings.url, "s3")
    _boto3(settings).upload_file(str(file), place.bucket, place.prefix + name)


def boto3_down(settings: RepositorySettings, name: str, file: Path) -> None:
    place = bucket_place(settings.url, "s3")
    _boto3(settings).download_file(place.bucket, place.prefix + name, str(file))


def _blob(settings: RepositorySettings, name: str) -> Any:
    from azure.storage.blob import BlobServiceClient

    place = bucket_place(settings.url, "azure")
    text = Path(str(settings.credentials_file)).read_text(encoding="utf-8")
    return BlobServiceClient.from_connection_string(text).get_blob_client(place.bucket, place.prefix + name)


def azure_up(settings: RepositorySettings, name: str, file: Path) -> None:
    with file.open("rb") as opened:
        _blob(settings, name).upload_blob(opened, length=file.stat().st_size, max_concurrency=_AT_ONCE)


def azure_down(settings: RepositorySettings, name: str, file: Path) -> None:
    with file.open("wb") as opened:
        _blob(settings, name).download_blob(max_concurrency=_AT_ONCE).readinto(opened)


def _gcs_blob(settings: RepositorySettings, name: str) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    place = bucket_place(settings.url, "gs")
    client = storage.Client(
        project="tests", credentials=AnonymousCredentials(), client_options={"api_endpoint": settings.endpoint}
    )
    return client.bucket(place.bucket).blob(place.prefix + name)


def gcs_up(settings: RepositorySettings, name: str, file: Path) -> None:
    # The emulator does not know the multipart API of upload_chunks_concurrently.
    _gcs_blob(settings, name).upload_from_filename(str(file))


def gcs_down(settings: RepositorySettings, name: str, file: Path) -> None:
    from google.cloud.storage import transfer_manager

    blob = _gcs_blob(settings, name)
    blob.reload()
    transfer_manager.download_chunks_concurrently(
        blob, str(file), chunk_size=16 << 20, max_workers=_AT_ONCE, worker_type=transfer_manager.THREAD
    )


Transfer = Callable[[RepositorySettings, str, Path], None]
IN_PYTHON: dict[str, tuple[Transfer, Transfer]] = {
    "seawall": (seawall_up, seawall_down),
    "boto3": (boto3_up, boto3_down),
    "azure-storage-blob": (azure_up, azure_down),
    "google-cloud-storage": (gcs_up, gcs_down),
}


# ---- how each is started


class Way(Protocol):
    """How a tool is told to carry a file up (or down)."""

    def __call__(self, settings: RepositorySettings, name: str, file: Path, *, up: bool) -> list[str]: ...


def python_way(tool: str) -> Way:
    def command(settings: RepositorySettings, name: str, file: Path, *, up: bool) -> list[str]:
        told = {key: str(value) for key in _TOLD if (value := getattr(settings, key))}
        verb = "up" if up else "down"
        return [sys.executable, "-m", "benchmarks.drivers", "--run", tool, verb, name, str(file), json.dumps(told)]

    return command


def aws(settings: RepositorySettings, name: str, file: Path, *, up: bool) -> list[str]:
    there = f"{settings.url}/{name}"
    ends = (str(file), there) if up else (there, str(file))
    return [str(awscli.PROGRAM), "s3", "cp", *ends, "--endpoint-url", settings.endpoint, "--only-show-errors"]


def scp(settings: RepositorySettings, name: str, file: Path, *, up: bool) -> list[str]:
    place = urlsplit(settings.url)
    there = f"{place.username}@{place.hostname}:{unquote(place.path)}/{name}"
    ends = (str(file), there) if up else (there, str(file))
    known = f"UserKnownHostsFile={settings.known_hosts_file}"
    return ["scp", "-q", "-B", "-P", str(place.port), "-i", str(settings.credentials_file), "-o", known, *ends]


def pairs() -> dict[str, tuple[str, Way]]:
    s3 = ("aws s3 cp", aws) if awscli.PROGRAM.exists() else ("boto3", python_way("boto3"))
    found: dict[str, tuple[str, Way]] = {
        "s3": s3,
        "azure": ("azure-storage-blob", python_way("azure-storage-blob")),
        "gs": ("google-cloud-storage", python_way("google-cloud-storage")),
    }
    # OpenSSH's client is wherever people work with SSH, and not fetched for this.
    return {**found, "sftp": ("scp", scp)} if shutil.which("scp") else found


def compare(kinds: list[str], megabytes: int, rounds: int, place: Path) -> None:
    wanted = place / "sent"
    with wanted.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    expected = _sha256(wanted)
    print(f"{megabytes} MiB, medians of {rounds}; ratio: Seawall's MB/s by the other's", flush=True)
    with Servers(place) as servers:
        for kind in kinds:
            _pair(kind, servers, wanted, expected, rounds)


def _pair(kind: str, servers: Servers, wanted: Path, expected: str, rounds: int) -> None:
    settings: RepositorySettings = servers[kind].settings()
    storage = open_driver(settings.url, settings)
    other, way = pairs()[kind]
    ways = {"seawall": python_way("seawall"), other: way}
    found: dict[tuple[str, bool], list[tuple[float, float, int]]] = {}
    for number in range(rounds):
        # Who goes first changes: what the server has warmed up for one must not always serve the other.
        for tool in sorted(ways, reverse=bool(number % 2)):
            name, back = f"{tool.replace(' ', '-')}-{number}", wanted.with_name("back")
            for up in (True, False):
                command = ways[tool](settings, name, wanted if up else back, up=up)
                found.setdefault((tool, up), []).append(run(command, environment=_surroundings()))
            if _sha256(back) != expected:
                raise SystemExit(f"{tool} brought back something else than was sent")
            storage.delete(name)
    for up in (True, False):
        _tell(kind, "up" if up else "down", {tool: found[tool, up] for tool in ways}, wanted.stat().st_size)


def _tell(kind: str, verb: str, found: dict[str, list[tuple[float, float, int]]], size: int) -> None:
    speeds = {tool: size / 1e6 / median(wall for wall, _, _ in runs) for tool, runs in found.items()}
    for tool, runs in found.items():
        cpu = median(cpu for _, cpu, _ in runs)
        walls = " ".join(f"{wall:.2f}" for wall, _, _ in runs)
        about = f"{speeds[tool]:8.1f} MB/s  CPU {cpu:6.2f} s  wall {walls}"
        print(f"{kind:6} {verb:5} {tool:22} {about}", flush=True)
    ours, theirs = speeds.values()
    print(f"{kind:6} {verb:5} ratio {ours / theirs:.2f}", flush=True)


def _surroundings() -> dict[str, str]:
    here = {"PYTHONPATH": str(Path(__file__).parents[1])}
    return {**here, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _run(tool: str, verb: str, name: str, file: str, told: str) -> None:
    about: dict[str, Any] = json.loads(told)
    paths = {key: Path(value) for key, value in about.items() if key.endswith("_file")}
    up, down = IN_PYTHON[tool]
    (up if verb == "up" else down)(RepositorySettings(**(about | paths)), name, Path(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="of s3, azure, gs, sftp (default: all)")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where the files lie (default: the usual place for such)")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        _run(*asked.run)
        return
    with tempfile.TemporaryDirectory(dir=asked.place) as place:
        compare(asked.kinds or list(pairs()), asked.megabytes, asked.rounds, Path(place))


if __name__ == "__main__":
    main()
