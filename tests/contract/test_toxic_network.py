"""Every remote driver behind a network that cuts, delays and refuses: whole objects or clear errors, never a half."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall.errors import ObjectExists, ObjectMissing, StorageUnreachable
from seawall.settings import RepositorySettings
from seawall.storage import open_driver, open_storage
from seawall.storage.base import Storage, read
from seawall.storage.sftp_session import Lost, Session
from seawall.storage.ssh import Ending
from seawall.storage.wrappers import Retrying, RetryPolicy
from tools.storage_servers import Servers, sftp_server
from tools.toxic import Toxic, toxic_proxy

pytestmark = pytest.mark.servers
MIB = 1 << 20
CONTENT = bytes(range(256)) * (20 * MIB // 256)


@dataclass
class Line:
    """One storage over two lines: a sound one, and one whose trouble is scripted."""

    sound: Storage
    settings: RepositorySettings
    toxic: Toxic

    def poisoned(self, attempts: int = 8) -> Storage:
        settings = replace(self.settings, attempts=attempts)
        driver: Any = open_driver(settings.url, settings)
        if hasattr(driver, "_sleep"):
            driver._sleep = lambda _seconds: None
        return Retrying(driver, RetryPolicy(attempts=attempts), sleep=lambda _seconds: None)


@pytest.fixture(params=["s3", "azure", "gs", "sftp"])
def line(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Line]:
    server = servers[request.param]
    with toxic_proxy(server.port) as (port, toxic):
        settings = server.settings(port=port)
        sound = open_storage(_straight(settings, port, server))
        yield Line(sound, settings, toxic)
        sound.close()


def _straight(settings: RepositorySettings, port: int, server: Any) -> RepositorySettings:
    """The same place without the proxy."""
    if settings.url.startswith("sftp:"):
        own = server.settings()
        return replace(own, url=settings.url.replace(f":{port}/", f":{server.port}/"))
    if settings.url.startswith("azure:"):
        return replace(server.settings(), url=settings.url)
    return replace(settings, endpoint=settings.endpoint.replace(str(port), str(server.port)))


def test_a_large_object_arrives_whole_through_cut_connections(line: Line) -> None:
    line.toxic.cut_after, line.toxic.cuts = 6 * MIB, 3
    # Chunks that cannot be made anew: what was cut is sent again part by part.
    stored = line.poisoned().put("large", (CONTENT[:MIB] for _ in range(20)))
    # A storage that goes on where it was cut meets fewer of them.
    assert line.toxic.was_cut >= 2
    assert stored.size_bytes == len(CONTENT)
    assert read(line.sound, "large") == CONTENT[:MIB] * 20


def test_a_large_object_is_read_whole_through_cut_connections(line: Line) -> None:
    line.sound.put("large", [CONTENT])
    line.toxic.cut_after, line.toxic.cuts = 3 * MIB, 3
    assert read(line.poisoned(), "large") == CONTENT
    assert line.toxic.was_cut == 3


def test_a_small_object_arrives_once_however_often_the_answer_is_lost(line: Line) -> None:
    storage = line.poisoned()
    for cut in range(200, 2200, 400):
        line.toxic.cut_after, line.toxic.cuts, line.toxic.was_cut = cut, 2, 0
        storage.put(f"small-{cut}", [b"y" * 300])
        assert read(line.sound, f"small-{cut}") == b"y" * 300


def test_a_line_that_is_always_cut_leaves_no_part_of_an_object(line: Line) -> None:
    line.toxic.cut_after = 200_000
    with pytest.raises(StorageUnreachable):
        line.poisoned(attempts=2).put("never", (CONTENT[:MIB] for _ in range(20)))
    assert [stat.name for stat in line.sound.list()] == []
    with pytest.raises(ObjectMissing):
        line.sound.stat("never")


def test_a_storage_that_refuses_connections_is_unreachable_and_never_empty(line: Line) -> None:
    line.sound.put("there", [b"1"])
    line.toxic.refuse = True
    storage = line.poisoned(attempts=2)
    for call in (
        lambda: storage.stat("there"),
        lambda: read(storage, "there"),
        lambda: list(storage.list()),
        lambda: storage.children(""),
        lambda: storage.put("more", [b"2"]),
        lambda: storage.delete("there"),
        storage.now,
    ):
        with pytest.raises(StorageUnreachable):
            call()
    line.toxic.refuse = False
    assert storage.stat("there").size_bytes == 1


def test_a_slow_line_delays_and_breaks_nothing(line: Line) -> None:
    line.toxic.delay_seconds = 0.005
    storage = line.poisoned()
    began = time.monotonic()
    storage.put("slow", [CONTENT[:MIB]])
    assert read(storage, "slow") == CONTENT[:MIB]
    assert time.monotonic() > began
    assert line.toxic.passed > 2 * MIB


@pytest.fixture(params=["hard links", "no hard links"])
def publishing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    """An SFTP server that gives names by hard links, or by a rename alone."""
    with (
        sftp_server(tmp_path, links=request.param == "hard links") as server,
        toxic_proxy(server.port) as (port, toxic),
    ):
        settings = server.settings(port=port)
        sound = open_storage(_straight(settings, port, server))
        yield Line(sound, settings, toxic)
        sound.close()


def lose_the_answer_to_the_name(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request that gives a draft its name arrives and is done; its answer does not come back."""
    for request in ("link", "rename"):
        monkeypatch.setattr(Session, request, _unanswered(getattr(Session, request), line.toxic))


def _unanswered(send: Callable[..., None], toxic: Toxic) -> Callable[..., None]:
    def sent(session: Session, draft: str, path: str) -> None:
        toxic.lose_answers = 1 if not toxic.was_cut else 0
        try:
            send(session, draft, path)
        finally:
            toxic.lose_answers = 0

    return sent


def test_an_object_whose_naming_was_not_answered_is_ours_and_counts_as_stored(
    publishing: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = publishing.poisoned()
    storage.put("before", [b"x"])
    lose_the_answer_to_the_name(publishing, monkeypatch)
    # Chunks that cannot be made anew, so that no second put may hide what the first one thinks.
    stored = storage.put("a/b", iter([b"y" * 300_000]))
    assert publishing.toxic.was_cut == 1
    assert stored.size_bytes == 300_000
    assert read(publishing.sound, "a/b") == b"y" * 300_000
    assert [stat.name for stat in publishing.sound.list()] == ["a/b", "before"]
    assert publishing.sound.sweep(timedelta(0)) == 0, "no draft is left"
    with pytest.raises(ObjectExists):
        storage.put("a/b", [b"y" * 300_000])


def test_an_object_of_another_writer_is_not_taken_for_ours_though_naming_was_not_answered(
    publishing: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = publishing.poisoned()
    storage.put("before", [b"x"])

    def outrun(*_: object) -> None:
        """The request is lost, and another writer is quicker than the next one."""
        monkeypatch.undo()
        publishing.sound.put("a/b", [b"z" * 1000])
        raise Lost(Ending("the line went away"))

    monkeypatch.setattr(Session, "link", outrun)
    with pytest.raises(ObjectExists):
        storage.put("a/b", iter([b"y" * 1000]))
    assert read(publishing.sound, "a/b") == b"z" * 1000
