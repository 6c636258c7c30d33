"""Which library carries the bytes to and from remote storage: candidates side by side, on the tests' loopback servers.

python -m benchmarks.data_paths [WAY …] [--megabytes 512]

It needs obstore and paramiko beside what the tests need. Each line is one process of its own: wall seconds, the
client's own CPU seconds (and those of a process that it runs beside it, for put and get together), and its peak memory.
The server shares the processors, so wall time says more about it than about the client; CPU seconds are the figure to
compare.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from seawall.settings import RepositorySettings
from seawall.storage import open_driver
from tools.storage_servers import Servers

OBJECT_MIB = 64  # what a bundle holds
PART = 16 << 20
BUCKET = "figures"
_BLOCK = hashlib.sha256(b"seawall").digest() * (1 << 15)  # 1 MiB
_ACCOUNT = "devstoreaccount1"
# The emulator's published key; it opens nothing else (Azurite, README, "Default Storage Account").
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def chunks() -> Iterator[bytes]:
    for _ in range(OBJECT_MIB):
        yield _BLOCK


def parts() -> Iterator[bytes]:
    buffer = bytearray()
    for chunk in chunks():
        buffer += chunk
        if len(buffer) >= PART:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


class Boto3:
    """boto3's client, part by part, each with its SHA-256, written once."""

    def __init__(self, port: int) -> None:
        import boto3

        self._client: Any = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
            aws_access_key_id="a", aws_secret_access_key="b",
        )  # fmt: skip

    def make(self) -> None:
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, name: str) -> None:
        where = {"Bucket": BUCKET, "Key": name}
        upload = self._client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
        done = []
        for number, part in enumerate(parts(), 1):
            checksum = base64.b64encode(hashlib.sha256(part).digest()).decode()
            answer = self._client.upload_part(
                **where, UploadId=upload, PartNumber=number, Body=part, ChecksumSHA256=checksum
            )
            done.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum})
        self._client.complete_multipart_upload(
            **where, UploadId=upload, MultipartUpload={"Parts": done}, IfNoneMatch="*"
        )

    def get(self, name: str) -> int:
        body = self._client.get_object(Bucket=BUCKET, Key=name)["Body"]
        return sum(len(piece) for piece in body.iter_chunks(1 << 20))


class Obstore:
    """obstore on S3 with checksums; it cannot make a multipart upload conditional."""

    def __init__(self, port: int) -> None:
        from obstore.store import S3Store

        self._store: Any = S3Store(
            BUCKET, endpoint=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key="b",
            region="us-east-1", checksum_algorithm="SHA256", client_options={"allow_http": True},
        )  # fmt: skip

    def make(self) -> None:
        """The other's bucket serves."""

    def put(self, name: str) -> None:
        self._store.put(name, chunks(), chunk_size=PART, max_concurrency=2)

    def get(self, name: str) -> int:
        return sum(len(piece) for piece in self._store.get(name).stream(min_chunk_size=1 << 20))


class AzureBlob:
    """azure-storage-blob, block by block, each with its MD5, written once."""

    def __init__(self, port: int) -> None:
        from azure.storage.blob import ContainerClient

        self._client: Any = ContainerClient(
            f"http://127.0.0.1:{port}/{_ACCOUNT}", BUCKET, credential={"account_name": _ACCOUNT, "account_key": _KEY},
            max_single_get_size=PART, max_chunk_get_size=PART,
        )  # fmt: skip

    def make(self) -> None:
        self._client.create_container()

    def put(self, name: str) -> None:
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock

        blob = self._client.get_blob_client(name)
        blocks = []
        for number, part in enumerate(parts()):
            block = base64.b64encode(f"{number:08d}".encode()).decode()
            blob.stage_block(block, part, length=len(part), validate_content=True)
            blocks.append(BlobBlock(block))
        blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)

    def get(self, name: str) -> int:
        return sum(len(piece) for piece in self._client.download_blob(name).chunks())


class ObstoreAzure(Obstore):
    """obstore on Azure; it sends no checksum there."""

    def __init__(self, port: int) -> None:
        from obstore.store import AzureStore

        self._store = AzureStore(
            BUCKET, account_name=_ACCOUNT, account_key=_KEY, endpoint=f"http://127.0.0.1:{port}/{_ACCOUNT}",
            client_options={"allow_http": True},
        )  # fmt: skip


class Paramiko:
    """paramiko with its own ways of writing and reading ahead."""

    def __init__(self, settings: RepositorySettings) -> None:
        import paramiko

        place = urlsplit(settings.url)
        self._root = unquote(place.path)
        ssh = paramiko.SSHClient()
        ssh.load_host_keys(str(settings.known_hosts_file))
        ssh.connect(
            place.hostname, place.port, place.username, key_filename=str(settings.credentials_file),
            allow_agent=False, look_for_keys=False,
        )  # fmt: skip
        self._ssh, self._client = ssh, ssh.open_sftp()

    def put(self, name: str) -> None:
        with self._client.open(f"{self._root}/{name.replace('/', '-')}", "wxb") as file:
            file.set_pipelined(True)
            for chunk in chunks():
                file.write(chunk)

    def get(self, name: str) -> int:
        total = 0
        with self._client.open(f"{self._root}/{name.replace('/', '-')}", "rb") as file:
            file.prefetch()
            while piece := file.read(1 << 20):
                total += len(piece)
        return total


class Driver:
    """Seawall's own driver, with all that it adds: conditions, checks, a look at what was stored, reading ahead."""

    def __init__(self, settings: RepositorySettings) -> None:
        self._storage = open_driver(settings.url, settings)

    def put(self, name: str) -> None:
        self._storage.put(name, chunks())

    def get(self, name: str) -> int:
        return sum(len(piece) for piece in self._storage.get(name))

    def close(self) -> None:
        self._storage.close()


WAYS: dict[str, tuple[str, Callable[..., Any]]] = {
    "boto3": ("s3", Boto3),
    "obstore-s3": ("s3", Obstore),
    "driver-s3": ("s3", Driver),
    "azure-storage-blob": ("azure", AzureBlob),
    "obstore-azure": ("azure", ObstoreAzure),
    "driver-azure": ("azure", Driver),
    "driver-gs": ("gs", Driver),
    "driver-sftp": ("sftp", Driver),
    "paramiko": ("sftp", Paramiko),
}
_BY_SETTINGS = (Driver, Paramiko)


def measure(way: str, megabytes: int, told: dict[str, Any]) -> None:
    """One way in this process; prints a line of JSON."""
    make = WAYS[way][1]
    paths = {name: Path(value) for name, value in told["settings"].items() if name.endswith("_file")}
    client = make(RepositorySettings(**(told["settings"] | paths)) if make in _BY_SETTINGS else told["port"])
    figures: dict[str, float] = {}
    names = [f"{way}/{number}" for number in range(megabytes // OBJECT_MIB)]
    for verb, call in (("put", client.put), ("get", client.get)):
        wall, cpu = time.perf_counter(), time.process_time()
        for name in names:
            call(name)
        figures[f"{verb}_seconds"] = time.perf_counter() - wall
        figures[f"{verb}_cpu_seconds"] = time.process_time() - cpu
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if isinstance(client, Driver):
        client.close()  # what a process beside this one spent is known when it is gone
        others = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures["beside_cpu_seconds"] = others.ru_utime + others.ru_stime
    print(json.dumps(figures), flush=True)


def compare(megabytes: int, ways: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place, Servers(Path(place)) as servers:
        Boto3(servers["s3"].port).make()
        AzureBlob(servers["azure"].port).make()
        for way in ways:
            kind = WAYS[way][0]
            settings = servers[kind].settings()
            about = {name: getattr(settings, name) for name in _TOLD if getattr(settings, name)}
            told = {"port": servers[kind].port, "settings": {name: str(value) for name, value in about.items()}}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.data_paths", "--way", way, "--megabytes", str(megabytes)],
                check=True, stdout=subprocess.PIPE, text=True, input=json.dumps(told),
            )  # fmt: skip
            figures = json.loads(done.stdout)
            print(f"{way:20}", *(f"{name} {value:7.2f}" for name, value in figures.items()), sep="  ", flush=True)


_TOLD = ("url", "endpoint", "region", "credentials_file", "known_hosts_file")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ways", nargs="*", help=f"of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--way", choices=WAYS)
    asked = parser.parse_args()
    if asked.way:
        measure(asked.way, asked.megabytes, json.load(sys.stdin))
    else:
        compare(asked.megabytes, asked.ways or list(WAYS))


if __name__ == "__main__":
    main()
