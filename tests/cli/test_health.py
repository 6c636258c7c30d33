"""What the checks make of facts, without any server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from seawall.archive.continuity import Window
from seawall.capacity import Room
from seawall.errors import (
    ArchiveTimeout,
    Cancelled,
    ClockWentBackwards,
    ClusterError,
    ClusterMismatch,
    KeyMissing,
    KeyUnusable,
    PrivilegeMissing,
    SeawallError,
    SettingsError,
    StorageError,
    StorageFull,
    WalGap,
)
from seawall.events import Observer
from seawall.health import first_failure
from seawall.health.cluster import (
    Facts,
    checksums,
    is_same_cluster,
    judge_version,
    missing_grants,
    privileges,
    wal_level,
)
from seawall.health.host import capabilities, judge_clocks, recipients_usable, storage_keeps
from seawall.health.recoverability import (
    Archiver,
    Slot,
    judge_archiver,
    judge_rpo,
    judge_slot,
    judge_space,
    judge_verified,
    storage_lasts,
    wal_is_continuous,
)
from seawall.health.result import Round, Status, good, warning
from seawall.keys import KeyInfo
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    SealingMode,
    WalMode,
)
from seawall.settings import SealingSettings, SourceSettings
from seawall.storage.base import Bytes, Stat
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def a_backup(at: datetime, stored_bytes: int) -> Head:
    return Head(
        label=BackupLabel(at), source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7, 18, (1,)), server_version=180006, timeline=1, start_lsn=Lsn(0), stop_lsn=Lsn(1),
        segment_bytes=1 << 24, began_at=at, ended_at=at, stopped_at=at, plain_bytes=2 * stored_bytes,
        stored_bytes=stored_bytes, file_count=1, object_count=1, compression=Compression.ZSTD,
        sealing=SealingMode.NONE, key_id="", manifest_sha256="", manifest_bytes=0,
    )  # fmt: skip


FACTS = Facts(
    version=180001, system_identifier=7, in_recovery=False, user="backup", wal_level="replica", checksums=True,
    archive_mode="off", max_slot_keep_mb=1024, data_directory="/data", superuser=False, replication=True, monitor=True,
    may_start=True, may_stop=True, may_switch=True, total_bytes=1000,
)  # fmt: skip
SOURCE = SourceSettings("shop")
SLOT = Slot("seawall_shop", "physical", True, "reserved", 4096)


def key(letter: str, **changes: object) -> KeyInfo:
    made = KeyInfo(letter * 40, f"{letter} <a@b>", NOW, None, True, False)
    return replace(made, **changes)  # type: ignore[arg-type]


class TestRound:
    def test_a_failure_keeps_no_other_check_from_being_made(self) -> None:
        def fails() -> object:
            raise StorageFull("nothing is free")

        made = Round(Observer(), clock=iter([1.0, 3.0, 3.0, 3.5]).__next__)
        made.make("one", fails)  # type: ignore[arg-type]
        made.make("two", lambda: good("fine"), "shop")
        assert [(r.name, r.status, r.seconds, r.source) for r in made.results] == [
            ("one", Status.FAILED, 2.0, ""), ("two", Status.OK, 0.5, "shop"),
        ]  # fmt: skip
        failure = first_failure(made.results)
        assert failure is not None
        assert (failure.exit_code, made.results[0].hint) == (23, StorageFull.default_hint)

    def test_what_was_learned_is_there_even_with_a_warning(self) -> None:
        assert Round(Observer()).learn("one", lambda: (5, warning("hm", "look"))) == 5

    def test_it_stops_on_request(self) -> None:
        observer = Observer()
        observer.cancel.set()
        with pytest.raises(Cancelled):
            Round(observer).make("one", lambda: good("fine"))


class TestStorage:
    def test_the_probe_leaves_nothing_behind(self) -> None:
        storage = MemoryStorage()
        assert storage_keeps(storage).status is Status.OK
        assert list(storage.list()) == []

    def test_a_storage_that_overwrites_is_found_out(self) -> None:
        class Overwriting(MemoryStorage):
            def put(self, name: str, chunks: object) -> Stat:
                self.delete(name)
                return super().put(name, chunks)  # type: ignore[arg-type]

        storage = Overwriting()
        with pytest.raises(StorageError, match="overwrote"):
            storage_keeps(storage)
        assert list(storage.list()) == []

    def test_a_storage_that_gives_other_bytes_back_is_found_out(self) -> None:
        class Forgetful(MemoryStorage):
            def put(self, name: str, chunks: object) -> Stat:
                data: list[Bytes] = [bytes(len(bytes(c))) for c in chunks]  # type: ignore[attr-defined]
                return super().put(name, data)

        with pytest.raises(SeawallError, match="other bytes"):
            storage_keeps(Forgetful())

    def test_missing_capabilities_are_named(self) -> None:
        class Weak(MemoryStorage):
            capabilities = replace(MemoryStorage().capabilities, create_only=False, consistent_list=False)

        found = capabilities(Weak())
        assert found.status is Status.WARNING
        assert "create-only writes, consistent listing" in found.sentence


class TestClocks:
    @pytest.mark.parametrize(
        ("apart", "uncertainty", "status"),
        [(0.0, 0.0, Status.OK), (3, 0.1, Status.OK), (-30, 0.1, Status.WARNING), (30, 29, Status.OK)],
    )
    def test_seconds_are_judged_by_what_is_certain(self, apart: float, uncertainty: float, status: Status) -> None:
        found = judge_clocks("the storage", timedelta(seconds=apart), timedelta(seconds=uncertainty))
        assert found.status is status

    @pytest.mark.parametrize("sign", [1, -1])
    def test_minutes_are_a_failure(self, sign: int) -> None:
        with pytest.raises(ClockWentBackwards, match="ahead" if sign > 0 else "behind"):
            judge_clocks("the server", timedelta(minutes=6) * sign, timedelta(0))


class TestKeys:
    SETTINGS = SealingSettings(operations="A" * 40, escrow="B" * 40)

    def test_two_usable_recipients_are_good(self) -> None:
        assert recipients_usable((key("A"), key("B")), self.SETTINGS, NOW).status is Status.OK

    def test_each_thing_that_is_wrong_is_named(self) -> None:
        with pytest.raises(KeyMissing, match="B" * 40):
            recipients_usable((key("A"),), self.SETTINGS, NOW)
        with pytest.raises(KeyUnusable, match="revoked"):
            recipients_usable((key("A"), key("B", can_encrypt=False, problem="revoked")), self.SETTINGS, NOW)

    def test_one_key_named_twice_is_one_key(self) -> None:
        with pytest.raises(SettingsError, match="1 key"):
            recipients_usable((key("A"),), replace(self.SETTINGS, escrow="A" * 40), NOW)
        # A subkey's fingerprint is another name for the same key.
        subkey = (key("A", fingerprints=("B" * 40,)),)
        with pytest.raises(SettingsError, match="1 key"):
            recipients_usable(subkey, self.SETTINGS, NOW)

    def test_an_expiry_that_comes_soon_is_a_warning(self) -> None:
        soon, later = NOW + timedelta(days=29), NOW + timedelta(days=31)
        found = recipients_usable((key("A", expires_at=soon), key("B")), self.SETTINGS, NOW)
        assert found.status is Status.WARNING
        assert "A" * 40 in found.sentence
        assert recipients_usable((key("A", expires_at=later), key("B")), self.SETTINGS, NOW).status is Status.OK

    def test_no_sealing_is_a_warning(self) -> None:
        assert recipients_usable((), SealingSettings(mode=SealingMode.NONE), NOW).status is Status.WARNING


class TestServer:
    def test_another_cluster_is_refused(self) -> None:
        assert is_same_cluster(FACTS, None).status is Status.OK
        assert is_same_cluster(FACTS, ClusterIdentity(7, 17, (1,))).status is Status.OK
        with pytest.raises(ClusterMismatch, match="8"):
            is_same_cluster(FACTS, ClusterIdentity(8, 18, (1,)))
        with pytest.raises(ClusterMismatch, match="19"):
            is_same_cluster(FACTS, ClusterIdentity(7, 19, (1,)))

    def test_every_missing_grant_is_written_out(self) -> None:
        bare = replace(
            FACTS, user='ba"ck', replication=False, monitor=False, may_start=False, may_stop=False, may_switch=False
        )
        with pytest.raises(PrivilegeMissing) as raised:
            privileges(bare, SOURCE)
        assert raised.value.hint.count(' TO "ba""ck";') == 4
        assert 'ALTER ROLE "ba""ck" REPLICATION;' in raised.value.hint

    def test_only_what_the_modes_need_is_asked_for(self) -> None:
        pushed = replace(SOURCE, wal=WalMode.ARCHIVE_COMMAND)
        assert missing_grants(replace(FACTS, replication=False), pushed) == []
        assert (
            missing_grants(replace(FACTS, may_start=False, may_stop=False), replace(SOURCE, mode=CopyMode.STREAM)) == []
        )
        assert privileges(FACTS, SOURCE).status is Status.OK
        assert privileges(replace(FACTS, superuser=True), SOURCE).status is Status.WARNING

    def test_facts_that_endanger_data_are_told(self) -> None:
        assert judge_version(replace(FACTS, version=990000)).status is Status.WARNING
        assert checksums(replace(FACTS, checksums=False)).status is Status.WARNING
        with pytest.raises(ClusterError, match="minimal"):
            wal_level(replace(FACTS, wal_level="minimal"))


class TestWal:
    def test_a_slot_in_use_with_a_limit_is_good(self) -> None:
        assert judge_slot(SLOT, FACTS, SOURCE).status is Status.OK

    @pytest.mark.parametrize(
        ("slot", "error"),
        [
            (None, ArchiveTimeout),
            (replace(SLOT, active=False), ArchiveTimeout),
            (replace(SLOT, status="lost", active=False), WalGap),
            (replace(SLOT, kind="logical"), ClusterError),
        ],
    )
    def test_a_slot_that_keeps_nothing_is_a_failure(self, slot: Slot | None, error: type[SeawallError]) -> None:
        with pytest.raises(error):
            judge_slot(slot, FACTS, SOURCE)

    def test_a_slot_that_may_fill_the_disk_or_break_is_a_warning(self) -> None:
        assert "fill the server's disk" in judge_slot(SLOT, replace(FACTS, max_slot_keep_mb=-1), SOURCE).hint
        assert judge_slot(replace(SLOT, status="unreserved"), FACTS, SOURCE).status is Status.WARNING

    def test_a_slot_is_not_asked_for_when_wal_comes_otherwise(self) -> None:
        assert judge_slot(None, FACTS, replace(SOURCE, wal=WalMode.ARCHIVE_COMMAND)).status is Status.SKIPPED

    def test_a_failing_archive_command_is_a_failure_and_a_past_one_is_not(self) -> None:
        on = replace(FACTS, archive_mode="on")
        with pytest.raises(ArchiveTimeout, match="0A"):
            judge_archiver(Archiver(3, "0A", True, "09"), on, SOURCE)
        assert "3 failures" in judge_archiver(Archiver(3, "0A", False, "0B"), on, SOURCE).sentence

    def test_archiving_that_is_off_matters_where_it_is_meant(self) -> None:
        nothing = Archiver(0, "", False, "")
        assert judge_archiver(nothing, FACTS, SOURCE).status is Status.SKIPPED
        with pytest.raises(ArchiveTimeout, match="off"):
            judge_archiver(nothing, FACTS, replace(SOURCE, wal=WalMode.ARCHIVE_COMMAND))

    def test_a_gap_is_a_failure(self) -> None:
        window = Window("20261123T000000Z-full", 1, Lsn(1), Lsn(9), Segment(1, 5))
        with pytest.raises(WalGap, match=Segment(1, 5).name):
            wal_is_continuous([window], [window.label])
        with pytest.raises(WalGap, match="itself"):
            wal_is_continuous([], [window.label])
        assert wal_is_continuous([], []).status is Status.SKIPPED

    def test_the_rpo_counts_only_while_something_is_not_stored(self) -> None:
        rpo, hour = timedelta(minutes=15), timedelta(hours=1)
        assert judge_rpo(0, hour, rpo).status is Status.OK
        assert judge_rpo(100, timedelta(minutes=1), rpo).status is Status.OK
        with pytest.raises(ArchiveTimeout, match="RPO is 900 s"):
            judge_rpo(100, hour, rpo)


class TestBackups:
    def test_space_is_compared_with_the_cluster(self) -> None:
        assert judge_space(Room(None), 1000, None).status is Status.SKIPPED
        assert judge_space(Room(2000), 1000, None).status is Status.OK
        assert judge_space(Room(1999), 1000, None).status is Status.WARNING
        with pytest.raises(StorageFull, match="999"):
            judge_space(Room(999), 1000, None)
        with pytest.raises(StorageFull, match="100 bytes are left of a quota of 500"):
            judge_space(Room(2000, quota_bytes=500, used_bytes=400), 1000, None)

    def test_room_that_will_not_last_is_told_early(self) -> None:
        assert storage_lasts(None, (), NOW).status is Status.SKIPPED
        assert storage_lasts(10**12, (), NOW).status is Status.OK
        heads = [a_backup(NOW - timedelta(days=n), 10**9) for n in range(9, -1, -1)]
        assert storage_lasts(10**12, heads, NOW).status is Status.OK
        soon = storage_lasts(20 * 10**9, heads, NOW)
        assert soon.status is Status.WARNING
        assert "they last 20 days" in soon.sentence

    def test_a_proof_that_is_old_or_absent_is_a_warning(self) -> None:
        labels = ["a"]
        assert judge_verified([], {}, NOW).status is Status.SKIPPED
        assert judge_verified(labels, {}, NOW).status is Status.WARNING
        for age, status in ((6, Status.OK), (8, Status.WARNING)):
            found = judge_verified(labels, {"a": NOW - timedelta(days=age)}, NOW)
            assert found.status is status
