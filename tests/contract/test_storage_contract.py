"""What every storage promises, checked for every driver and for the wrappers around them.

A wrapper that stands for a worse storage keeps all of it but what `CANNOT` names, with its reason; each exception is
strict, so a promise that such a storage keeps after all fails here. Where lists lag behind (as `capabilities` says), a
test lets the time pass that they need before it looks: what is promised then is promised in the end.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.errors import (
    NameRefused,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    ObjectTruncated,
    StorageError,
    StorageUnreachable,
    UsageError,
)
from seawall.model import LockMode
from seawall.settings import RepositorySettings
from seawall.storage import open_driver, open_storage
from seawall.storage.base import LARGEST_PIECE_BYTES, Replayable, Storage, checked_object_name, read
from seawall.storage.draft import by_claim, by_rename
from seawall.storage.faulty import OPERATIONS, Fault, Faulty, Locking, Trouble
from seawall.storage.lagging import Lagging
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Limited, Retrying, RetryPolicy, Throttled, TokenBucket
from tests.contract import azure_locks
from tools.storage_servers import Servers

Make = Callable[[Path], Storage]
MakeRemote = Callable[[Servers], Storage]


def _every_call_fails_once(inner: Storage) -> Storage:
    """Each call fails before it is done, then its answer is lost, then it is cut short; the fourth try succeeds."""
    script = []
    for operation in OPERATIONS:
        script += [
            Fault(Trouble.FAIL_BEFORE, operation),
            Fault(Trouble.FAIL_AFTER, operation),
            Fault(Trouble.CUT_SHORT, operation, skip=1, after_bytes=3),
        ]
    return Retrying(Faulty(inner, script), RetryPolicy(attempts=6), sleep=lambda _seconds: None)


def _delayed(inner: Storage) -> Storage:
    return Faulty(inner, [Fault(Trouble.HANG, times=0, seconds=0.001)])


def _lagging(inner: Storage) -> Storage:
    """Lists show each change up to so many calls late; a test makes fewer between a put and its list."""
    return Lagging(inner, 40, random.Random(4))


def _locked() -> Storage:
    return Locking(MemoryStorage(), timedelta(hours=1))


STORAGES: dict[str, Make] = {
    "memory": lambda _path: MemoryStorage(),
    "local": LocalStorage,
    "local without hard links": lambda path: LocalStorage(path, ways=(by_rename, by_claim)),
    "local with claims only": lambda path: LocalStorage(path, ways=(by_claim,)),
    "retrying local": lambda path: Retrying(LocalStorage(path)),
    "throttled local": lambda path: Throttled(LocalStorage(path), TokenBucket(1 << 30)),
    "limited memory": lambda _path: Limited(MemoryStorage(), 1),
    "limited local": lambda path: Limited(LocalStorage(path), 1),
    "faulty without faults": lambda path: Faulty(LocalStorage(path)),
    "slow memory": lambda _path: _delayed(MemoryStorage()),
    "lagging memory": lambda _path: _lagging(MemoryStorage()),
    "lagging local": lambda path: _lagging(LocalStorage(path)),
    "retried faulty lagging memory": lambda _path: _every_call_fails_once(_lagging(MemoryStorage())),
    "locked memory": lambda _path: _locked(),
    "retried faulty slow lagging locked memory": lambda _path: _every_call_fails_once(_delayed(_lagging(_locked()))),
    "retried faulty memory": lambda _path: _every_call_fails_once(MemoryStorage()),
    "retried faulty local": lambda path: _every_call_fails_once(LocalStorage(path)),
    "opened file": lambda path: open_storage(RepositorySettings(url=path.as_uri())),
    "opened memory": lambda _path: open_storage(RepositorySettings(url="memory:", concurrency=1)),
}


_LAGS = "a list shows a change some time after it was made"
_LOCKS = "what was put is immutable for an hour, so that a delete is refused"

# What a kind of storage cannot keep: the tests of that promise, and why.
CANNOT = {
    "lagging": {"test_a_list_shows_at_once_what_was_put_and_what_was_deleted": _LAGS},
    "locked": {
        "test_a_list_shows_at_once_what_was_put_and_what_was_deleted": _LOCKS,
        "test_a_folder_is_gone_with_its_last_object": _LOCKS,
        "test_deleting_again_is_success": _LOCKS,
        "test_writers_and_cleaners_of_one_folder_do_not_disturb_each_other": _LOCKS,
    },
}


def _reasons(storage: str, test: str) -> list[str]:
    return [reasons[test] for kind, reasons in CANNOT.items() if kind in storage.split() and test in reasons]


def _driver(kind: str) -> MakeRemote:
    return lambda servers: servers[kind].storage()


def _troubled(kind: str) -> MakeRemote:
    """Behind a network that is slow and loses each kind of request and answer once."""
    return lambda servers: _every_call_fails_once(
        Faulty(servers[kind].storage(), [Fault(Trouble.HANG, times=0, seconds=0.0005)])
    )


def _late(kind: str) -> MakeRemote:
    return lambda servers: _lagging(servers[kind].storage())


def _locking(kind: str) -> MakeRemote:
    """Where the service itself locks each object that comes; its bucket is told to, as its owner would."""

    def make(servers: Servers) -> Storage:
        if kind == "azure":
            inner: Storage = azure_locks.storage(servers[kind].settings(), azure_locks.Locking(), LockMode.COMPLIANCE)
            return Locking(inner, timedelta(hours=1))
        place: RepositorySettings = servers[kind].settings(lock=True)
        return Locking(open_driver(place.url, place), timedelta(hours=1))

    return make


KINDS = ("s3", "azure", "gs", "sftp")
DRIVERS = {kind: _driver(kind) for kind in KINDS}
# SFTP knows no locks.
AGAIN = {f"lagging {kind}": _late(kind) for kind in KINDS} | {f"locked {kind}": _locking(kind) for kind in KINDS[:3]}
REMOTE = DRIVERS | {f"troubled {kind}": _troubled(kind) for kind in KINDS} | AGAIN


def _made(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if name in REMOTE:
        opened = REMOTE[name](request.getfixturevalue("servers"))
    else:
        root = tmp_path / "a repository"
        root.mkdir()
        opened = STORAGES[name](root)
    yield opened
    opened.close()


_LOCAL = [pytest.param(name, id=name) for name in STORAGES]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.servers, *([pytest.mark.repeats] if name in AGAIN else [])]


@pytest.fixture(params=[*_LOCAL, *(pytest.param(name, id=name, marks=_marks(name)) for name in REMOTE)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if reasons := _reasons(request.param, request.function.__name__):
        request.applymarker(pytest.mark.xfail(strict=True, reason="; ".join(reasons)))
    yield from _made(request.param, request, tmp_path)


# A property takes hundreds of requests: the bare driver proves it for those that go over a network. And it deletes
# between its examples, which a lock forbids.
_UNLOCKED = [pytest.param(name, id=name) for name in STORAGES if "locked" not in name]


@pytest.fixture(params=[*_UNLOCKED, *(pytest.param(name, id=name, marks=pytest.mark.servers) for name in DRIVERS)])
def storage_once(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    yield from _made(request.param, request, tmp_path)


def settled(storage: Storage) -> Storage:
    """The storage, after the time that its lists need."""
    inner: object = storage
    while inner is not None:
        if isinstance(inner, Lagging):
            inner.settle()
        inner = getattr(inner, "inner", None)
    return storage


def names(storage: Storage, prefix: str = "") -> list[str]:
    return [stat.name for stat in settled(storage).list(prefix)]


def children(storage: Storage, folder: str) -> tuple[str, ...]:
    return settled(storage).children(folder)


def test_every_driver_and_wrapper_is_a_storage(storage: Storage) -> None:
    assert isinstance(storage, Storage)
    assert ":" in storage.url
    assert storage.capabilities.create_only


def test_what_was_put_is_read_back_whole(storage: Storage) -> None:
    before = storage.now()
    put = storage.put("sources/main/head.json", [b"one ", bytearray(b"two "), memoryview(b"three")])
    assert (put.name, put.size_bytes) == ("sources/main/head.json", 13)
    assert read(storage, "sources/main/head.json") == b"one two three"
    assert storage.stat("sources/main/head.json") == put
    assert put.modified_at.tzinfo is not None
    assert before - timedelta(seconds=1) <= put.modified_at <= storage.now() + timedelta(seconds=1)


def test_an_empty_object_exists(storage: Storage) -> None:
    storage.put("empty", [])
    assert storage.stat("empty").size_bytes == 0
    assert list(storage.get("empty")) == []
    assert names(storage) == ["empty"]


def test_a_buffer_may_be_reused_as_soon_as_the_next_chunk_is_asked_for(storage: Storage) -> None:
    def chunks() -> Iterator[memoryview]:
        buffer = bytearray(4)
        for number in range(5):
            buffer[:] = bytes([number]) * 4
            yield memoryview(buffer)
            buffer[:] = b"\xff" * 4

    storage.put("reused", Replayable(chunks))
    assert read(storage, "reused") == b"".join(bytes([number]) * 4 for number in range(5))


def test_an_object_is_never_overwritten(storage: Storage) -> None:
    storage.put("a/b", [b"first"])
    for content in (b"second", b"first", b""):
        with pytest.raises(ObjectExists):
            storage.put("a/b", [content])
    assert read(storage, "a/b") == b"first"


def test_one_of_many_writers_of_a_name_wins_and_its_content_stays(storage: Storage) -> None:
    writers = 8
    start = threading.Barrier(writers)

    def write(number: int) -> int | None:
        start.wait()
        try:
            storage.put("race/one", [bytes([number]) * 100_000])
        except ObjectExists:
            return None
        except StorageError as error:
            # The claim of another writer is a passing obstacle, not a reason to believe the name free.
            return None if error.retryable else -1
        return number

    with ThreadPoolExecutor(writers) as pool:
        winners = [number for number in pool.map(write, range(writers)) if number is not None]
    assert len(winners) == 1
    assert read(storage, "race/one") == bytes([winners[0]]) * 100_000
    assert names(storage) == ["race/one"]


def test_an_error_in_the_source_reaches_the_caller_and_stores_nothing(storage: Storage) -> None:
    class SourceBroke(Exception):
        pass

    def chunks() -> Iterator[bytes]:
        yield b"some bytes"
        raise SourceBroke

    with pytest.raises(SourceBroke):
        storage.put("torn/object", Replayable(chunks))
    with pytest.raises(SourceBroke):
        storage.put("torn/object", chunks())
    assert names(storage) == []
    assert children(storage, "") == ()
    with pytest.raises(ObjectMissing):
        storage.stat("torn/object")


def test_an_operating_system_error_in_the_source_is_not_taken_for_the_storages(storage: Storage) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some bytes"
        raise FileNotFoundError("the source vanished")

    with pytest.raises(FileNotFoundError, match="the source vanished"):
        storage.put("torn", Replayable(chunks))
    assert names(storage) == []


def test_what_is_not_there_is_missing(storage: Storage) -> None:
    storage.put("there/one", [b"1"])
    for name in ("nowhere", "there/two", "elsewhere/one", "there", "there/one/below"):
        with pytest.raises(ObjectMissing):
            storage.stat(name)
        with pytest.raises(ObjectMissing):
            list(storage.get(name))


def test_no_object_lies_below_another_where_that_would_matter(storage: Storage) -> None:
    storage.put("a/b", [b""])
    if not storage.capabilities.folders:
        storage.put("a/b/c", [b""])
        assert names(storage) == ["a/b", "a/b/c"]
        return
    with pytest.raises(ObjectExists):
        storage.put("a/b/c", [b""])
    with pytest.raises(ObjectExists):
        storage.put("a", [b""])
    assert names(storage) == ["a/b"]


def test_pieces_are_of_at_most_four_mebibytes(storage: Storage) -> None:
    content = bytes(range(256)) * 20_000
    storage.put("large", [content])
    pieces = list(storage.get("large"))
    assert b"".join(pieces) == content
    assert all(0 < len(piece) <= LARGEST_PIECE_BYTES for piece in pieces)


def test_a_range_beyond_the_end_is_an_error_and_never_a_short_answer(storage: Storage) -> None:
    storage.put("ten", [b"0123456789"])
    assert b"".join(storage.get("ten", 10)) == b""
    assert b"".join(storage.get("ten", 3, 0)) == b""
    for offset, length in ((0, 11), (9, 2), (11, None), (11, 0), (100, 1)):
        with pytest.raises(ObjectTruncated):
            list(storage.get("ten", offset, length))
    for offset, length in ((-1, None), (0, -1)):
        with pytest.raises(UsageError):
            list(storage.get("ten", offset, length))


def test_a_list_shows_at_once_what_was_put_and_what_was_deleted(storage: Storage) -> None:
    for number in range(5):
        storage.put(f"a/{number}", [b"x"])
        assert len(list(storage.list())) == len(storage.children("a/")) == number + 1
    for number in range(5):
        storage.delete(f"a/{number}")
        assert len(list(storage.list())) == len(storage.children("a/")) == 4 - number


def test_list_is_ordered_by_the_whole_name(storage: Storage) -> None:
    made = ["a", "b/c", "b-c", "b.c/d", "b.c/a/z", "b0", "b/c.copy", "b/C", "z/1/2/3", "b+/x", "b=/x"]
    for name in made:
        storage.put(name, [name.encode()])
    assert names(storage) == sorted(made)
    assert [stat.size_bytes for stat in settled(storage).list()] == [len(name) for name in sorted(made)]


def test_a_prefix_is_a_string_and_not_a_folder(storage: Storage) -> None:
    for name in ("wal/0001/a", "wal/0001.history", "wal/0002/b", "walk", "x"):
        storage.put(name, [b""])
    assert names(storage, "wal") == ["wal/0001.history", "wal/0001/a", "wal/0002/b", "walk"]
    assert names(storage, "wal/") == ["wal/0001.history", "wal/0001/a", "wal/0002/b"]
    assert names(storage, "wal/0001") == ["wal/0001.history", "wal/0001/a"]
    assert names(storage, "wal/0001/a") == ["wal/0001/a"]
    assert names(storage, "wal/0001/a/b") == []
    assert names(storage, "nothing/here") == []


def test_children_are_the_distinct_parts_below_a_folder(storage: Storage) -> None:
    for name in ("sources/b/x", "sources/a/y", "sources/a/z/1", "seawall.json"):
        storage.put(name, [b""])
    assert children(storage, "") == ("seawall.json", "sources")
    assert children(storage, "sources/") == ("a", "b")
    assert children(storage, "sources/a/") == ("y", "z")
    assert children(storage, "sources/none/") == ()
    with pytest.raises(NameRefused):
        storage.children("sources")


def test_a_folder_is_gone_with_its_last_object(storage: Storage) -> None:
    storage.put("a/b/c", [b"1"])
    storage.put("a/d", [b"2"])
    storage.delete("a/b/c")
    assert children(storage, "a/") == ("d",)
    storage.delete("a/d")
    assert children(storage, "") == ()
    assert names(storage) == []
    storage.put("a/b/c", [b"again"])
    assert read(storage, "a/b/c") == b"again"


def test_deleting_again_is_success(storage: Storage) -> None:
    storage.put("a/b", [b"1"])
    storage.put("a/c", [b"2"])
    for name in ("a/b", "a/b", "never/was", "never", "a"):
        storage.delete(name)
    assert names(storage) == ["a/c"]
    with pytest.raises(ObjectMissing):
        storage.stat("a/b")


def test_writers_and_cleaners_of_one_folder_do_not_disturb_each_other(storage: Storage) -> None:
    def work(worker: int) -> None:
        for turn in range(15):
            name = f"shared/folder/{worker}-{turn}"
            storage.put(name, [b"x"])
            assert read(storage, name) == b"x"
            storage.delete(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert names(storage) == []


def test_an_object_can_be_copied_within_the_storage(storage: Storage) -> None:
    storage.put("one", [b"x" * 3_000_000])
    storage.put("two", Replayable(lambda: storage.get("one")))
    assert read(storage, "two") == b"x" * 3_000_000


def test_two_streams_can_be_read_in_turns(storage: Storage) -> None:
    for name in ("one", "two"):
        storage.put(name, [name.encode() * 1_000_000])
    read_both = list(itertools.zip_longest(storage.get("one"), storage.get("two")))
    assert b"".join(one for one, _ in read_both) == b"one" * 1_000_000


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".tmp-x", "a/.hidden", "~", "%2e%2e/a"],
)
def test_names_that_could_escape_or_hide_are_refused(storage: Storage, name: str) -> None:
    _refused_everywhere(storage, name)


@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "a\n", "a\0", "ä", "a\\b", "a:b", "-a", "a/-b", "x" * 201, "/".join(["x" * 100] * 10)]
)
def test_names_that_some_storage_cannot_carry_are_refused(storage: Storage, name: str) -> None:
    _refused_everywhere(storage, name)


def _refused_everywhere(storage: Storage, name: str) -> None:
    for call in (
        lambda: storage.put(name, [b"x"]),
        lambda: list(storage.get(name)),
        lambda: storage.stat(name),
        lambda: storage.delete(name),
    ):
        with pytest.raises(NameRefused):
            call()
    assert names(storage) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", ".t", "a/.t", "a b"])
def test_prefixes_that_no_name_has_are_refused(storage: Storage, prefix: str) -> None:
    with pytest.raises(NameRefused):
        list(storage.list(prefix))
    with pytest.raises(NameRefused):
        storage.children(prefix if prefix.endswith("/") else f"{prefix}/")


def test_the_clock_is_aware_and_runs(storage: Storage) -> None:
    first, second = storage.now(), storage.now()
    assert first <= second
    assert abs(second - datetime.now(UTC)) < timedelta(minutes=1)
    assert names(storage) == []


def test_free_space_is_a_number_where_the_storage_says_so(storage: Storage) -> None:
    free = storage.free_bytes()
    assert (free is not None and free > 0) == storage.capabilities.free_space


_parts = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,12}", fullmatch=True)
_names = st.lists(_parts, min_size=1, max_size=4).map("/".join)
_slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def _without_folders_that_are_objects(chosen: set[str]) -> set[str]:
    return {name for name in chosen if not any(other.startswith(f"{name}/") for other in chosen)}


@settings(max_examples=15, deadline=None, suppress_health_check=_slow)
@given(chosen=st.sets(_names, max_size=10), prefixes=st.lists(_names, max_size=4))
def test_listing_agrees_with_a_set_of_names(
    request: pytest.FixtureRequest, storage_once: Storage, chosen: set[str], prefixes: list[str]
) -> None:
    chosen = _without_folders_that_are_objects(chosen)
    try:
        for name in chosen:
            storage_once.put(name, [name.encode()])
        beginnings = [name[:cut] for name in chosen for cut in range(len(name)) if name[cut - 1] != "/"]
        # Each is a request or several, so a storage behind a network answers for some of them.
        stride = 1 + (len(beginnings) // 20 if request.node.get_closest_marker("servers") else 0)
        for prefix in ["", *prefixes, *beginnings[::stride]]:
            assert names(storage_once, prefix) == sorted(name for name in chosen if name.startswith(prefix))
        assert children(storage_once, "") == tuple(sorted({name.partition("/")[0] for name in chosen}))
        for name in chosen:
            assert read(storage_once, name) == name.encode()
    finally:
        for name in chosen:
            storage_once.delete(name)
    assert children(storage_once, "") == ()


@settings(max_examples=25, deadline=None, suppress_health_check=_slow)
@given(
    chunks=st.lists(st.binary(max_size=300), max_size=8),
    offset=st.integers(0, 2500),
    length=st.none() | st.integers(0, 2500),
)
def test_a_range_is_a_slice(storage_once: Storage, chunks: list[bytes], offset: int, length: int | None) -> None:
    content = b"".join(chunks)
    storage_once.delete("ranged")
    storage_once.put("ranged", chunks)
    whole = offset <= len(content) and (length is None or offset + length <= len(content))
    if whole:
        end = len(content) if length is None else offset + length
        assert b"".join(storage_once.get("ranged", offset, length)) == content[offset:end]
    else:
        with pytest.raises(ObjectTruncated):
            list(storage_once.get("ranged", offset, length))


@pytest.mark.parametrize("trouble", [Trouble.FAIL_BEFORE, Trouble.FAIL_AFTER, Trouble.CUT_SHORT])
@pytest.mark.parametrize("after", [0, 5, 10])
@pytest.mark.parametrize("kind", ["memory", "local", "lagging local", "locked memory"])
def test_a_put_that_failed_left_the_whole_object_or_nothing(
    kind: str, trouble: Trouble, after: int, tmp_path: Path
) -> None:
    storage = Faulty(STORAGES[kind](tmp_path), [Fault(trouble, "put", after_bytes=after)])
    with pytest.raises(StorageUnreachable):
        storage.put("torn/object", [b"01234", b"56789"])
    left = ["torn/object"] if trouble is Trouble.FAIL_AFTER else []
    assert names(storage) == left
    assert [read(storage, name) for name in left] == [b"0123456789" for _ in left]
    assert all(not path.name.startswith(".tmp") for path in tmp_path.rglob("*"))


def test_a_locked_object_stays_as_it_is_until_its_time_has_come() -> None:
    clock = [datetime(2026, 6, 1, tzinfo=UTC)]
    storage = Locking(MemoryStorage(clock=lambda: clock[0]), timedelta(hours=1))
    storage.put("a/b", [b"1"])
    for minutes in (0, 59):
        clock[0] = datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=minutes)
        with pytest.raises(ObjectLocked):
            storage.delete("a/b")
        assert read(storage, "a/b") == b"1"
    clock[0] += timedelta(minutes=2)
    storage.delete("a/b")
    assert names(storage) == []


@given(name=st.text(max_size=30))
def test_an_accepted_name_stays_below_the_root(name: str) -> None:
    try:
        checked_object_name(name)
    except NameRefused:
        return
    path = Path("/storage") / name
    assert path.as_posix() == f"/storage/{name}"
    assert not any(part.startswith(".") for part in path.parts)
