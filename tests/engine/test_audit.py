"""The audit: appended before the deed, unbroken, and broken visibly by any change."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.audit import AuditLog
from seawall.errors import Damaged
from seawall.repository import documents
from seawall.storage.memory import MemoryStorage

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def a_log(count: int) -> tuple[MemoryStorage, AuditLog]:
    storage = MemoryStorage()
    log = AuditLog(storage)
    for number in range(count):
        log.append("ada", "expire", f"shop {number}", {"why": "old"}, now=NOW)
    return storage, log


def test_records_come_back_in_order_and_chained() -> None:
    _, log = a_log(3)
    records = list(log.records())
    assert [r.subject for r in records] == ["shop 0", "shop 1", "shop 2"]
    assert [r.previous for r in records[1:]] == [r.digest for r in records[:-1]]
    assert log.verify() == (3, records[-1].digest)


@given(st.integers(2, 6), st.data())
def test_a_removed_or_rewritten_record_breaks_the_chain(count: int, data: st.DataObject) -> None:
    storage, log = a_log(count)
    number = data.draw(st.integers(1, count - 1))
    name = f"audit/{number:012d}.json"
    document = documents.get(storage, name)
    storage.delete(name)
    if data.draw(st.booleans()):
        # A forger who knows the format writes a record that is right in itself.
        documents.put(storage, name, {**document, "actor": "mallory"})
    with pytest.raises(Damaged):
        log.verify()


def test_writers_at_the_same_time_never_share_a_number() -> None:
    storage, _ = a_log(0)
    threads = [
        threading.Thread(target=lambda n=n: AuditLog(storage).append(f"w{n}", "x", "s", {}, now=NOW)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AuditLog(storage).verify()[0] == 8


@given(st.integers(2, 6), st.data())
def test_a_cut_or_regrown_chain_is_sound_in_itself_and_found_by_an_end_that_was_kept(
    count: int, data: st.DataObject
) -> None:
    storage, log = a_log(count)
    kept = log.verify()
    for number in range(data.draw(st.integers(1, count)), count + 1):
        storage.delete(f"audit/{number:012d}.json")
    for number in range(data.draw(st.integers(0, count + 2))):
        log.append("mallory", "nothing", f"to see {number}", {}, now=NOW)
    log.verify()
    with pytest.raises(Damaged, match=r"cut|not the one"):
        log.verify(kept)


def test_a_grown_chain_still_has_the_end_that_was_kept_and_only_what_follows_is_read_again() -> None:
    _storage, log = a_log(3)
    kept = log.verify()
    log.append("ada", "expire", "shop 4", {}, now=NOW)
    assert log.verify(kept) == log.verify() == log.end()
    assert [record.number for record in log.records(kept)] == [4]


def test_an_empty_chain_ends_at_nothing() -> None:
    _, log = a_log(0)
    assert log.verify() == log.end() == (0, "0" * 64)
