"""A repository's identity: two objects that say the same, and writing them again where one is lost."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import repair
from seawall.audit import AuditLog
from seawall.errors import Damaged, FormatTooNew, NotARepository, StorageDenied, UsageError
from seawall.repository import Repository, documents, identity
from seawall.repository.identity import Identity
from seawall.repository.layout import IDENTITY, IDENTITY_COPY, REPAIRS
from seawall.storage.base import Storage, read
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = datetime(2027, 1, 1, tzinfo=UTC)


class Locked(Wrapper):
    """A storage that lets nothing go."""

    def delete(self, name: str) -> None:
        raise StorageDenied(f"{name} is locked")


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    Repository.create(made, now=NOW).source("shop")
    made.put("sources/shop/holds/x.json", [b"{}"])
    return made


def damage(storage: Storage, name: str) -> None:
    data = read(storage, name)
    storage.delete(name)
    storage.put(name, [data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]])


def repaired(storage: Storage, **told: object) -> tuple[str, ...]:
    return repair.run(repair.plan(storage, now=LATER, **told), storage, actor="ada", now=LATER)  # type: ignore[arg-type] # as the test says


def test_what_is_written_beside_a_locked_identity_is_locked_at_once_as_long_as_that(storage: MemoryStorage) -> None:
    damage(storage, IDENTITY)
    until = datetime.now(UTC) + timedelta(days=9)
    storage.retain(IDENTITY, until)
    assert repaired(storage) == (f"{REPAIRS}{IDENTITY}",)
    assert storage.retention(f"{REPAIRS}{IDENTITY}").until == until


@pytest.mark.parametrize("name", identity.NAMES)
@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_either_object_opens_the_repository_and_makes_the_other_whole(
    storage: MemoryStorage, name: str, how: str
) -> None:
    before, wanted = read(storage, name), Repository.open(storage).id
    storage.delete(name) if how == "lost" else damage(storage, name)
    assert (Repository.open(storage).id, Repository.open(storage).created_at) == (wanted, NOW)
    plan = repair.plan(storage, now=LATER)
    assert [(step.name, step.replaces) for step in plan.steps] == [(name, how == "damaged")]
    assert repair.run(plan, storage, actor="ada", now=LATER) == (name,)
    assert read(storage, name) == before
    (record,) = AuditLog(storage).records()
    assert (record.action, record.subject, record.details["repository"]) == ("repair-identity", name, wanted)
    assert repair.plan(storage, now=LATER).steps == ()


@pytest.mark.parametrize("name", identity.NAMES)
def test_what_is_damaged_and_locked_is_repaired_beside(storage: MemoryStorage, name: str) -> None:
    wanted = Repository.open(storage).id
    for each in identity.NAMES:
        damage(storage, each)
    damaged = read(storage, name)
    assert repaired(Locked(storage), repository_id=wanted) == tuple(f"{REPAIRS}{each}" for each in identity.NAMES)
    assert read(storage, name) == damaged
    assert Repository.open(storage).id == wanted
    assert repair.plan(storage, now=LATER).steps == ()


def test_an_older_repository_gets_its_second_object(storage: MemoryStorage) -> None:
    storage.delete(IDENTITY_COPY)
    assert repaired(storage) == (IDENTITY_COPY,)
    assert identity.one(storage, IDENTITY_COPY) == identity.one(storage, IDENTITY)


def test_where_both_are_lost_another_location_or_the_administrator_tells(storage: MemoryStorage) -> None:
    first = identity.one(storage, IDENTITY)
    for name in identity.NAMES:
        storage.delete(name)
    with pytest.raises(NotARepository, match="holds backups, but nothing says which"):
        Repository.open(storage)
    with pytest.raises(UsageError, match="nothing here and no other location"):
        repair.plan(storage, now=LATER)
    with pytest.raises(UsageError, match="no id"):
        repair.plan(storage, repository_id="the shop's", now=LATER)
    told = repair.plan(storage, {"offsite": first}, now=LATER)
    assert (told.identity, told.told_by) == (first, "location offsite")
    other = str(uuid.uuid4())
    assert repair.plan(storage, {"offsite": first}, repository_id=other, now=LATER).identity == Identity(other, LATER)
    assert repaired(storage, repository_id=first.repository_id.upper()) == identity.NAMES
    assert Repository.open(storage).id == first.repository_id


def test_two_that_disagree_stop_the_repair_until_somebody_says_which(storage: MemoryStorage) -> None:
    first, other = identity.one(storage, IDENTITY), Identity(str(uuid.uuid4()), NOW)
    storage.delete(IDENTITY_COPY)
    identity.put(storage, IDENTITY_COPY, other)
    with pytest.raises(Damaged, match="not certain"):
        repair.plan(storage, now=LATER)
    assert repaired(storage, repository_id=other.repository_id) == (IDENTITY,)
    assert Repository.open(storage).id == other.repository_id
    for name in identity.NAMES:
        storage.delete(name)
    with pytest.raises(Damaged, match="not certain"):
        repair.plan(storage, {"offsite": first, "vault": other}, now=LATER)


def test_nothing_is_made_a_repository_by_a_repair() -> None:
    with pytest.raises(NotARepository):
        repair.plan(MemoryStorage(), repository_id=str(uuid.uuid4()), now=LATER)


def test_a_newer_format_is_refused_and_left_alone(storage: MemoryStorage) -> None:
    storage.delete(IDENTITY)
    document = {"format": 2, "repository_id": "x", "created_at": NOW.isoformat()}
    documents.put(storage, IDENTITY, document)
    for act in (Repository.open, lambda place: repair.plan(place, now=LATER)):
        with pytest.raises(FormatTooNew):
            act(storage)


@given(at=st.integers(0, 10_000), mask=st.integers(1, 255))
def test_no_flip_in_one_object_changes_who_the_repository_is(at: int, mask: int) -> None:
    storage = MemoryStorage()
    wanted = Repository.create(storage, now=NOW).id
    data = bytearray(read(storage, IDENTITY))
    data[at % len(data)] ^= mask
    storage.delete(IDENTITY)
    storage.put(IDENTITY, [bytes(data)])
    assert Repository.open(storage).id == wanted
