"""What drivers do at the border: whom they trust, what they refuse, and how they put foreign errors into our words."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
import certifi
import googleapiclient
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from seawall.errors import (
    NotARepository,
    ObjectMissing,
    SettingsError,
    StorageBusy,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.settings import RepositorySettings
from seawall.storage import gcs, open_driver, open_storage
from seawall.storage.base import read
from seawall.storage.parts import PART_BYTES
from tools.storage_servers import Servers, google_account

HTTP = ("s3", "azure", "gs")
AWS = "[default]\naws_access_key_id = a\naws_secret_access_key = hunter2\n"


def closed(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def place(kind: str, endpoint: str, tmp_path: Path) -> RepositorySettings:
    """Settings of a bucket behind an HTTP endpoint of ours."""
    if kind == "azure":
        text = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=aHVudGVyMg==;BlobEndpoint={endpoint}/a;"
        return RepositorySettings(url="azure://box/p", credentials_file=closed(tmp_path / "azure", text), attempts=1)
    found = RepositorySettings(url=f"{kind}://box/p", endpoint=endpoint, region="eu-central-1", attempts=1)
    return replace(found, credentials_file=closed(tmp_path / "aws", AWS)) if kind == "s3" else found


# ---- what they refuse before anything is sent


@pytest.mark.parametrize("kind", HTTP)
def test_plain_http_is_for_this_host_only(kind: str, tmp_path: Path) -> None:
    settings = place(kind, "http://storage.example.com", tmp_path)
    with pytest.raises(SettingsError, match="without TLS"):
        open_driver(settings.url, settings)


@pytest.mark.parametrize("endpoint", ["ftp://host", "https://user:hunter2@host", "https://host/?key=hunter2", "host"])
def test_an_endpoint_that_is_none_is_refused_without_repeating_a_secret(endpoint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_driver("s3://box/p", RepositorySettings(endpoint=endpoint))
    assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@box/p", "s3://", "s3:///p", "s3://box/p?versionId=hunter2", "s3://box/../p", "s3://box:1x/",
        "azure://user@box", "gs://box/a b", "sftp://user:hunter2@host/p", "sftp://host", "sftp://host/a/../b",
    ],
)  # fmt: skip
def test_a_url_that_is_no_place_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises((SettingsError, ValueError)) as caught:
        open_driver(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [*HTTP, "sftp"])
@pytest.mark.parametrize("text", ["hunter2", "{", "[default]\nhunter2", "AccountKey=hunter2", '{"hunter2": 1}'])
def test_a_credentials_file_that_is_none_is_refused_and_not_repeated(kind: str, text: str, tmp_path: Path) -> None:
    known = closed(tmp_path / "known_hosts", "")
    settings = RepositorySettings(
        endpoint="" if kind == "sftp" else "https://localhost",
        credentials_file=closed(tmp_path / "credentials", text),
        known_hosts_file=known,
    )
    with pytest.raises(SettingsError) as caught:
        open_driver(f"{kind}://box/p", settings)
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_credentials_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = closed(tmp_path / "aws", AWS)
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="open to other accounts"):
        open_driver("s3://box/p", RepositorySettings(credentials_file=path))
    with pytest.raises(SettingsError, match="cannot be read"):
        open_driver("s3://box/p", RepositorySettings(credentials_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", HTTP)
def test_a_file_of_certificates_that_holds_none_is_a_mistake_and_no_outage(kind: str, tmp_path: Path) -> None:
    for text in ("", "hunter2", "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n"):
        settings = replace(place(kind, "http://127.0.0.1:1", tmp_path), ca_file=closed(tmp_path / "ca.pem", text))
        with pytest.raises(SettingsError, match="holds no certificates") as caught:
            open_driver(settings.url, settings)
        assert "hunter2" not in caught.value.message + caught.value.hint


def test_settings_of_a_remote_storage_mean_nothing_to_a_local_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="endpoint"):
        open_driver(str(tmp_path), RepositorySettings(endpoint="https://host"))


# ---- whom they trust


@contextmanager
def tls(port: int, place: Path) -> Iterator[tuple[int, Path]]:
    """A TLS end before a server on this host, with a certificate of an authority that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "seawall tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = place / "authority.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = closed(place / "authority.key", "")
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_terminate, args=(listener, context, port), daemon=True)
        thread.start()
        yield listener.getsockname()[1], pem
        # Or it would accept, with its own certificate, what the next one listens for under the same descriptor.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _terminate(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_carry, args=(plain, context, port), daemon=True).start()


def _carry(plain: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """One request and its answer at a time, as these clients speak."""
    try:
        with (
            context.wrap_socket(plain, server_side=True) as outer,
            socket.create_connection(("127.0.0.1", port)) as inner,
        ):
            threading.Thread(target=_copy, args=(inner, outer), daemon=True).start()
            _copy(outer, inner)
    except OSError:
        plain.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.servers
@pytest.mark.parametrize("kind", HTTP)
def test_a_certificate_is_checked_and_an_authority_of_ones_own_is_named(
    kind: str, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers[kind]
    # What the environment names for other programs is no authority of this location.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, certifi.where())
    with tls(server.port, tmp_path) as (port, authority), google_account() as account:
        settings = replace(server.settings(), endpoint=f"https://127.0.0.1:{port}", attempts=1)
        if kind == "gs":
            settings = replace(settings, credentials_file=closed(tmp_path / "account.json", json.dumps(account)))
        if kind == "azure":
            assert settings.credentials_file is not None
            text = settings.credentials_file.read_text().replace(f"http://127.0.0.1:{server.port}", settings.endpoint)
            settings = replace(settings, credentials_file=closed(tmp_path / "azure", text))
        with pytest.raises(StorageUnreachable) as caught:
            open_storage(settings).stat("a")
        assert "ca_file" in caught.value.hint
        trusted = open_storage(replace(settings, ca_file=authority))
        trusted.put("a", [b"over TLS"])
        assert read(trusted, "a") == b"over TLS"
        trusted.close()


def test_an_endpoint_that_the_vendors_own_places_name_is_none_without_tls_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = RepositorySettings(region="eu-central-1", credentials_file=closed(tmp_path / "aws", AWS))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example.com")
    with pytest.raises(SettingsError, match="without TLS"):
        open_driver("s3://box/p", settings)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example.com")
    open_driver("s3://box/p", settings).close()


def test_the_scope_that_google_is_asked_for_reaches_every_request_of_the_driver() -> None:
    """By Google's own description of its API; the emulator admits whatever comes."""
    described = importlib.resources.files(googleapiclient) / "discovery_cache/documents/storage.v1.json"
    methods = json.loads(described.read_text(encoding="utf-8"))["resources"]
    for group, wanted in {"objects": ("get", "insert", "list", "patch", "delete"), "buckets": ("get", "patch")}.items():
        for method in wanted:
            assert gcs._SCOPE in methods[group]["methods"][method]["scopes"], f"{group}.{method}"


@pytest.mark.servers
def test_an_sftp_server_with_another_key_is_not_believed(servers: Servers, tmp_path: Path) -> None:
    settings = servers["sftp"].settings()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    address = settings.url.split("@")[1].split("/")[0]
    host, port = address.split(":")
    known = closed(tmp_path / "known_hosts", f"[{host}]:{port} {other}")
    with pytest.raises(StorageDenied, match=r"(?i)host key") as caught:
        open_storage(replace(settings, known_hosts_file=known)).stat("a")
    assert "find out why" in caught.value.hint


@pytest.mark.servers
def test_an_sftp_server_that_does_not_admit_the_key_denies(servers: Servers, tmp_path: Path) -> None:
    settings = servers["sftp"].settings()
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(StorageDenied) as caught:
        open_storage(replace(settings, credentials_file=closed(tmp_path / "key", stranger))).stat("a")
    assert "authorized_keys" in caught.value.hint


@pytest.mark.servers
def test_azure_denies_another_accounts_key(servers: Servers, tmp_path: Path) -> None:
    settings = servers["azure"].settings()
    assert settings.credentials_file is not None
    text = settings.credentials_file.read_text().replace("AccountKey=E", "AccountKey=F")
    with pytest.raises(StorageDenied, match=r"AuthorizationFailure|AuthenticationFailed") as caught:
        open_storage(replace(settings, credentials_file=closed(tmp_path / "other", text))).stat("a")
    assert "key or signature in credentials_file" in caught.value.hint


# ---- what they say


@pytest.mark.servers
@pytest.mark.parametrize("kind", [*HTTP, "sftp"])
def test_a_place_that_does_not_exist_is_no_repository_and_nothing_is_missing_in_it(kind: str, servers: Servers) -> None:
    settings = servers[kind].settings()
    bucket, slash, rest = settings.url.partition("/a/prefix")
    nowhere = f"{bucket}x{slash}{rest}" if kind != "sftp" else f"{settings.url}/nowhere/at/all"
    storage = open_driver(nowhere, settings)
    for call in (
        lambda: storage.stat("a"),
        lambda: read(storage, "a"),
        lambda: storage.put("a", [b"x"]) if kind != "sftp" else storage.stat("b"),
    ):
        with pytest.raises(NotARepository):
            call()
    storage.close()


class Answering(BaseHTTPRequestHandler):
    """Answers every request with one status, an empty body and the usual headers."""

    status = 500
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """A test's output is for failures."""


@contextmanager
def answering(status: int) -> Iterator[str]:
    verbs = {f"do_{method}": Answering.answer for method in ("GET", "PUT", "POST", "DELETE", "HEAD")}
    handler = type("Handler", (Answering,), {"status": status, **verbs})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, StorageDenied), (403, StorageDenied), (429, StorageBusy), (500, StorageUnreachable),
        (502, StorageUnreachable), (503, StorageBusy), (507, StorageFull),
    ],
)  # fmt: skip
def test_an_answer_of_the_service_is_put_into_our_words(
    kind: str, status: int, error: type[StorageError], tmp_path: Path
) -> None:
    with answering(status) as endpoint:
        settings = place(kind, endpoint, tmp_path)
        storage = open_driver(settings.url, settings)
        for call in (lambda: storage.stat("a"), lambda: list(storage.list()), lambda: storage.delete("a")):
            with pytest.raises(error) as caught:
                call()
            assert settings.url in caught.value.message
        storage.close()


# ---- what the service checks


@pytest.mark.servers
@pytest.mark.parametrize("size", [1000, gcs.GcsBucket.part_bytes + 1000])
def test_bytes_that_arrive_altered_are_refused_by_the_service(
    size: int, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = servers["gs"].storage()
    monkeypatch.setattr(gcs, "_crc32c", lambda _content: "AAAAAQ==")
    monkeypatch.setattr(gcs.GcsUpload, "_crc32c", lambda _self: "AAAAAQ==")
    with pytest.raises(StorageError):
        storage.put("altered", [b"x" * size])
    monkeypatch.undo()
    assert list(storage.list()) == []


@pytest.mark.servers
def test_what_an_interrupted_upload_left_is_swept_when_it_is_old_enough(servers: Servers) -> None:
    storage = servers["s3"].storage()
    upload = storage.bucket.begin("left")
    upload.send(1, bytearray(PART_BYTES))
    # The emulator says of every upload that it began in 2010.
    assert storage.sweep(timedelta(days=365 * 100)) == 0
    assert storage.sweep(timedelta(hours=1)) == 1
    assert storage.sweep(timedelta(hours=1)) == 0
    with pytest.raises(ObjectMissing):
        storage.stat("left")


@pytest.mark.servers
@pytest.mark.parametrize("kind", HTTP)
def test_an_upload_that_was_given_up_leaves_nothing_that_a_later_one_stumbles_over(kind: str, servers: Servers) -> None:
    storage = servers[kind].storage()
    part = storage.bucket.part_bytes

    def breaking() -> Iterator[bytes]:
        yield from (b"old" * (part // 3) for _ in range(2))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.put("large", breaking())
    assert list(storage.list()) == []
    if kind == "s3":
        left = (
            servers["s3"].client(servers["s3"].settings()).list_multipart_uploads(Bucket=storage.bucket._place.bucket)
        )
        assert not left.get("Uploads"), "its parts were aborted at once and wait for no sweep"
    content = b"new" * (part // 2)
    assert storage.put("large", [content]).size_bytes == len(content)
    assert read(storage, "large") == content
    storage.close()


@pytest.mark.servers
def test_drafts_that_a_killed_client_left_on_an_sftp_server_are_swept(servers: Servers) -> None:
    storage = servers["sftp"].storage()
    storage.put("a/b", [b"1"])
    draft = storage._draft("a/c").path
    assert [stat.name for stat in storage.list()] == ["a/b"]
    assert storage.sweep(timedelta(hours=1)) == 0
    assert storage.sweep(timedelta(seconds=-5)) == 1
    assert draft not in [stat.name for stat in storage.list()]
    assert storage.children("a/") == ("b",)
    storage.close()


@pytest.mark.servers
def test_a_reader_that_is_given_up_may_be_finalized_anywhere_in_the_sftp_driver(servers: Servers) -> None:
    """The garbage collector runs finalizers in the middle of whatever a thread does."""
    storage = servers["sftp"].storage()
    storage.put("large", [bytes(3 << 20)])
    reader = storage.get("large")
    next(reader)
    with storage._session._sending:
        reader.close()
    assert storage.stat("large").size_bytes == 3 << 20
    assert b"".join(storage.get("large")) == bytes(3 << 20)
    storage.close()


@pytest.mark.servers
def test_s3_confirms_the_sha256_of_what_it_stores(servers: Servers) -> None:
    storage = servers["s3"].storage()
    stored = storage.put("small", [b"abc"])
    assert stored.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert stored.parts_sha256 == ""
    large = storage.put("large", [b"x" * (PART_BYTES + 1)])
    assert large.sha256 is None
    # Of an object that was sent in parts it says what follows from these, and the same whenever it is asked.
    digests = [hashlib.sha256(b"x" * size).digest() for size in (PART_BYTES, 1)]
    expected = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert large.parts_sha256.partition("-")[0] == expected
    assert storage.stat("large").parts_sha256 == large.parts_sha256


@pytest.mark.servers
@pytest.mark.parametrize("kind", HTTP)
def test_another_writers_object_is_not_taken_for_ours_after_a_lost_answer(kind: str, servers: Servers) -> None:
    storage = servers[kind].storage()
    storage.put("taken", [b"theirs"])
    assert storage.bucket.holds("taken", bytearray(b"theirs"))
    assert not storage.bucket.holds("taken", bytearray(b"ours!!"))
    part = storage.bucket.part_bytes
    upload = storage.bucket.begin("large")
    upload.send(1, bytearray(b"a" * part))
    storage.put("large", [b"b" * part])
    assert not upload.stored()
    upload.abort()
