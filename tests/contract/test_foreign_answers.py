"""What lies between a driver and its service: another that answers in its place, or one that asks to slow down."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from seawall import locations
from seawall.errors import ObjectMissing, SeawallError, StorageUnreachable
from seawall.events import Observer
from seawall.settings import LocationSettings, RepositorySettings, Settings
from seawall.storage import open_driver, open_storage
from seawall.storage.base import Storage, read
from seawall.storage.immutability import lockable
from tools.storage_servers import Servers, secret_file

KINDS = ("s3", "azure", "gs")
PAGE = "<!doctype html><html><body>Console<br></body></html>"

# A console's page, a server that does nothing, another service, a login page, a gateway that knows no such route.
ANSWERS = {
    "a-page": (200, {"Content-Type": "text/html"}, PAGE),
    "nothing": (200, {}, ""),
    "another-service": (200, {"Content-Type": "application/json"}, '{"status": "ok"}'),
    "a-list": (200, {"Content-Type": "application/json"}, "[]"),
    "another-page": (302, {"Location": "http://127.0.0.1:1/login", "Content-Type": "text/html"}, PAGE),
    "moved": (301, {"Location": "http://127.0.0.1:1/"}, ""),
    "no-such-route": (404, {"Content-Type": "text/plain"}, "404 page not found"),
    "no-such-page": (404, {"Content-Type": "text/html"}, "<html><body>Not Found</body></html>"),
    "no-words": (404, {}, ""),
}

CALLS: dict[str, Callable[[Storage], object]] = {
    "stat": lambda storage: storage.stat("a"),
    "read": lambda storage: read(storage, "a"),
    "read a range": lambda storage: list(storage.get("a", 5, 5)),
    "put": lambda storage: storage.put("a", [b"x"]),
    "put a large one": lambda storage: storage.put("a", [bytes(3000)]),
    "list": lambda storage: list(storage.list()),
    "children": lambda storage: storage.children(""),
    "delete": lambda storage: storage.delete("a"),
    "now": lambda storage: storage.now(),
}


class Answering(BaseHTTPRequestHandler):
    """Answers every request in one way."""

    protocol_version = "HTTP/1.1"
    said: tuple[int, dict[str, str], str] | None
    behind: int
    swallows = ""
    asked = 0
    refuses = 0
    with_status = 503

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).asked += 1
        if self.refuses:
            type(self).refuses -= 1
            self._tell(self.with_status, {"Content-Length": "0"}, b"")
            return
        if self.said is None:
            self._pass_on(body)
            return
        status, headers, text = self.said
        self._tell(status, {**headers, "Content-Length": str(len(text))}, text.encode())

    def _pass_on(self, body: bytes) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        told = {name: value for name, value in self.headers.items() if name != self.swallows}
        there.request(self.command, self.path, body, told)
        answer = there.getresponse()
        content = answer.read()
        own = {"Content-Length": str(len(content))} if self.command != "HEAD" else {}
        self._tell(answer.status, {**_told(answer.getheaders()), **own}, content)
        there.close()

    def _tell(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer  # noqa: N815 - the handler's own names

    def log_message(self, format: str, *args: Any) -> None:
        """A test's output is for failures."""


def _told(headers: list[tuple[str, str]]) -> dict[str, str]:
    """What a gateway hands on; how the content is cut into pieces is its own business."""
    return {name.title(): value for name, value in headers if name.lower() not in ("transfer-encoding", "connection")}


@dataclass
class Impostor:
    """A server in the place of a service, what it says, or the service that it is a gateway to."""

    port: int
    handler: type[Answering]

    def says(self, name: str) -> None:
        self.handler.said = ANSWERS[name]

    def passes_to(self, port: int) -> None:
        self.handler.said, self.handler.behind = None, port


@contextmanager
def impostor() -> Iterator[Impostor]:
    handler = type("Handler", (Answering,), {"said": ANSWERS["nothing"]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Impostor(server.server_port, handler)
        server.shutdown()
        thread.join()


def at(kind: str, port: int, tmp_path: Path) -> RepositorySettings:
    """Settings of a bucket at a port of this host."""
    where = f"http://127.0.0.1:{port}"
    if kind == "azure":
        text = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=aHVudGVyMg==;BlobEndpoint={where}/a;"
        return RepositorySettings(
            url="azure://box/p", credentials_file=secret_file(tmp_path / "azure", text), attempts=1
        )
    found = RepositorySettings(url=f"{kind}://box/p", endpoint=where, region="eu-central-1", attempts=1)
    keys = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"
    return replace(found, credentials_file=secret_file(tmp_path / "aws", keys)) if kind == "s3" else found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_another_server_says_is_an_outage_and_never_success_or_absence(
    kind: str, answer: str, tmp_path: Path
) -> None:
    with impostor() as there:
        there.says(answer)
        settings = at(kind, there.port, tmp_path)
        storage: Any = open_driver(settings.url, settings)
        storage.bucket.part_bytes = 1000
        for name, call in CALLS.items():
            with pytest.raises(SeawallError) as caught:
                call(storage)
            assert isinstance(caught.value, StorageUnreachable), f"{name}: {caught.value!r}"
            assert storage.url in caught.value.message, name
        locks = lockable(storage)
        assert locks is not None
        if (kind, answer) != ("s3", "nothing"):  # so speaks a service that has no such configuration
            with pytest.raises(StorageUnreachable):
                locks.can_lock()
        storage.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_sent_elsewhere_where_tls_may_end(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with impostor() as there, impostor() as elsewhere:
        said = (301, {"Location": f"http://127.0.0.1:{elsewhere.port}/"}, "")
        monkeypatch.setitem(ANSWERS, "moved", said)
        there.says("moved")
        settings = at(kind, there.port, tmp_path)
        storage = open_driver(settings.url, settings)
        for call in CALLS.values():
            with pytest.raises(StorageUnreachable):
                call(storage)
        assert elsewhere.handler.asked == 0
        storage.close()


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_named_a_wrong_address_is_told_to_look_at_it(kind: str, tmp_path: Path) -> None:
    with impostor() as there:
        there.says("a-page")
        settings = at(kind, there.port, tmp_path)
        storage = open_storage(settings)
        with pytest.raises(StorageUnreachable, match="does not speak as") as caught:
            storage.stat("a")
        assert "endpoint" in caught.value.hint
        storage.close()


@pytest.mark.servers
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_is_proved_by_the_service_and_not_by_a_gateway_that_lost_it(kind: str, servers: Servers) -> None:
    """As where WAL ends: whoever takes a gateway's 404 for the end of it promotes a server too early."""
    with impostor() as gateway:
        gateway.passes_to(servers[kind].port)
        settings = replace(servers[kind].settings(port=gateway.port), attempts=1)
        storage = open_driver(settings.url, settings)
        storage.put("here", [b"1"])
        for name in ("stat", "read", "read a range"):
            with pytest.raises(ObjectMissing):
                CALLS[name](storage)
        assert storage.delete("a") is None
        for answer in ("no-such-route", "no-such-page", "no-words"):
            gateway.says(answer)
            for call in CALLS.values():
                with pytest.raises(StorageUnreachable):
                    call(storage)
        gateway.passes_to(servers[kind].port)
        assert read(storage, "here") == b"1"
        storage.close()


@pytest.mark.servers
def test_a_service_that_overwrites_whatever_it_was_told_is_refused_as_a_location(servers: Servers) -> None:
    with impostor() as gateway:
        gateway.passes_to(servers["s3"].port)
        place = servers["s3"].settings(port=gateway.port)
        location = LocationSettings("vault", storage=place)
        sound = locations.check(location, Settings(), Observer())
        assert sound.good and sound.capabilities is not None and sound.capabilities.create_only
        gateway.handler.swallows = "If-None-Match"
        found = locations.check(location, Settings(), Observer())
        assert "overwrote the probe" in found.problem
        assert list(open_driver(place.url, place).list("probes/")) == []


@pytest.mark.servers
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_service_that_asks_to_slow_down_is_obeyed_in_every_call_and_none_fails(
    kind: str, status: int, servers: Servers
) -> None:
    """Locks as well, of which a pass over a large backup sets thousands, one after the other."""
    pauses: list[float] = []
    with impostor() as gateway:
        gateway.passes_to(servers[kind].port)
        gateway.handler.with_status = status
        settings = replace(servers[kind].settings(lock=True, port=gateway.port), attempts=1)
        storage = open_storage(settings, sleep=pauses.append)
        locks = lockable(storage)
        assert locks is not None
        until = storage.now().replace(microsecond=0) + timedelta(days=1)
        calls: dict[str, Callable[[], object]] = {
            "ask whether it locks": locks.can_lock,
            "put": lambda: storage.put("a", [b"0123456789"]),
            **{
                name: partial(CALLS[name], storage)
                for name in ("stat", "read", "read a range", "list", "children", "now")
            },
            "sweep": lambda: storage.sweep(timedelta(days=1)),
            "lock": lambda: locks.retain("a", until),
            "look at the lock": lambda: locks.retention("a"),
            "hold": lambda: locks.hold("a", True),
            "lift": lambda: locks.hold("a", False),
            "put a large one": lambda: storage.put("b", [bytes(17 << 20)]),
            "put a locked one": lambda: locks.put_locked("c", [b"1"], until),
            "delete": lambda: storage.delete("b"),
        }
        for name, call in calls.items():
            pauses.clear()
            gateway.handler.refuses = 2
            call()
            assert gateway.handler.refuses == (2 if (kind, name) == ("gs", "sweep") else 0), name
            assert len(pauses) == 2 - gateway.handler.refuses, name
        gateway.handler.refuses = 0
        assert locks.retention("a").until == until
        storage.close()
