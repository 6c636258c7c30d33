"""Which library carries the bytes to and from object storage: obstore against the vendors' own, on loopback servers.

python -m benchmarks.data_paths [--megabytes 512] [--node-modules DIRECTORY]

It needs obstore beside what tests need, and the servers of the tests: moto (S3) and, below `--node-modules`, Azurite.
Each line is one process of its own: wall seconds, the client's own CPU seconds, and its peak memory. The server shares
the processors, so wall time says more about it than about the client; CPU seconds are the figure to compare.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
            BUCKET, endpoint=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key="b",  # noqa: S106 - a loopback server's
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


WAYS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "boto3": ("s3", Boto3),
    "obstore-s3": ("s3", Obstore),
    "azure-storage-blob": ("azure", AzureBlob),
    "obstore-azure": ("azure", ObstoreAzure),
}


def measure(way: str, port: int, megabytes: int) -> None:
    """One way in this process; prints a line of JSON."""
    client = WAYS[way][1](port)
    figures: dict[str, float] = {}
    names = [f"{way}/{number}" for number in range(megabytes // OBJECT_MIB)]
    for verb, call in (("put", client.put), ("get", client.get)):
        wall, cpu = time.perf_counter(), time.process_time()
        for name in names:
            call(name)
        figures[f"{verb}_seconds"] = time.perf_counter() - wall
        figures[f"{verb}_cpu_seconds"] = time.process_time() - cpu
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


@contextmanager
def server(*command: str, port: int, place: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place) as process:
        try:
            _wait(port)
            yield
        finally:
            process.terminate()


def _wait(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no server on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compare(megabytes: int, node_modules: Path) -> None:
    ports = {"s3": _free_port(), "azure": _free_port()}
    azurite = str(node_modules / ".bin" / "azurite-blob")
    with tempfile.TemporaryDirectory() as place:
        with (
            server(sys.executable, "-m", "moto.server", "-p", str(ports["s3"]), port=ports["s3"], place=place),
            server(
                azurite, "--blobPort", str(ports["azure"]), "--location", place, "--silent", "--skipApiVersionCheck",
                port=ports["azure"], place=place,
            ),
        ):  # fmt: skip
            Boto3(ports["s3"]).make()
            AzureBlob(ports["azure"]).make()
            for way, (kind, _) in WAYS.items():
                command = [sys.executable, "-m", "benchmarks.data_paths", "--way", way, "--port", str(ports[kind])]
                done = subprocess.run(
                    [*command, "--megabytes", str(megabytes)], check=True, capture_output=True, text=True
                )
                _show(way, json.loads(done.stdout))


def _show(way: str, figures: dict[str, float]) -> None:
    print(f"{way:20}", *(f"{name} {value:7.2f}" for name, value in figures.items()), sep="  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--node-modules", type=Path, default=Path(os.environ.get("NODE_PATH", "node_modules")))
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    if asked.way:
        measure(asked.way, asked.port, asked.megabytes)
    else:
        compare(asked.megabytes, asked.node_modules.absolute())


if __name__ == "__main__":
    main()
