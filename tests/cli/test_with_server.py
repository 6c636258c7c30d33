"""The verbs on a real cluster: what they prove, what they refuse, and that they clean up."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from seawall.catalog import Catalog, JobType, RecoveryType, RunStatus, VerificationType
from seawall.model import BackupLabel
from seawall.postgres.binaries import Account, Binaries, find
from seawall.postgres.instance import Instance
from seawall.repository import Repository, documents
from seawall.settings import load
from seawall.storage import open_storage

pytestmark = pytest.mark.postgres
Run = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """A running cluster with a receiver, sealed settings, and one backup."""

    home: Path
    server: Instance
    config: Path
    label: str
    run: Run
    start: Run

    def seawall(self, *arguments: str | Path, config: Path | None = None) -> Any:
        return self.run(*arguments, "--config", config or self.config, "--json")

    def variant(self, name: str, *changes: tuple[str, str]) -> Path:
        """A copy of the settings with texts replaced."""
        text = self.config.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.home / f"{name}.toml"
        path.write_text(text)
        return path

    @contextmanager
    def catalog(self) -> Iterator[Catalog]:
        with Catalog.open(f"sqlite:///{self.config.parent}/catalog.db") as opened:
            yield opened

    def scalar(self, statement: str) -> Any:
        with self.server.connect() as session:
            row = session.execute(statement).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row[0]


def instance(home: Path, binaries: Binaries) -> Instance:
    account = Account.for_servers()
    home.mkdir()
    account.own(home)
    made = Instance(home / "data", binaries, account)
    made.initdb()
    return made


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def binaries() -> Binaries:
    return find(18)


@pytest.fixture(scope="module")
def site(open_directory: Path, binaries: Binaries, program: Run, start: Run) -> Iterator[Site]:
    home = open_directory / "site"
    home.mkdir()
    home.chmod(0o755)
    server = instance(home / "pg", binaries)
    server.start(options={"fsync": "off", "max_slot_wal_keep_size": "1GB"})
    receiver: subprocess.Popen[str] | None = None
    try:
        with server.connect() as session:
            session.execute("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 50000) AS n")
        made = program("init", "--directory", home / "s", "--source", "shop", "--conninfo", server.conninfo, "--json")
        assert made.code == 0, made.out + made.err
        config = Path(made.json["config"])
        receiver = start("wal", "receive", "shop", "--config", config)
        found = Site(home, server, config, "", program, start)
        until(lambda: bool(found.scalar("SELECT count(*) FROM pg_replication_slots WHERE active")))
        taken = found.seawall("backup")
        assert taken.code == 0, taken.out + taken.err
        yield Site(home, server, config, taken.json["backup"]["label"], program, start)
    finally:
        if receiver is not None:
            end(receiver)
        server.stop("immediate")


def named(done: Any) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["checks"]}


class TestCheck:
    def test_proves_the_whole_way_and_fails_nothing(self, site: Site) -> None:
        done = site.seawall("check")
        assert done.code == 0, done.out + done.err
        found = named(done)
        for name in ("storage", "recipients", "private-key", "identity", "data-directory", "slot", "archiving", "rpo"):
            assert found[name]["status"] == "ok", found[name]
        assert "was stored" in found["archiving"]["sentence"]

    def test_a_backup_that_a_quota_has_no_room_for_is_refused_with_the_numbers(self, site: Site) -> None:
        config = site.variant("tight", ("[repository]", "[repository]\nquota_bytes = 1000"))
        before = site.seawall("list").json
        refused = site.seawall("backup", config=config)
        assert refused.code == 23
        assert refused.error["code"] == "storage-full"
        assert "0 bytes are left of a quota of 1,000 (" in refused.error["message"]
        assert "it was not begun" in refused.error["message"]
        assert refused.error["hint"].startswith("Raise quota_bytes")
        assert site.seawall("list").json == before
        assert site.seawall("backup", "--dry-run", config=config).json["plan"]["free_bytes"] == 0

    def test_leaves_the_segment_open_when_asked(self, site: Site) -> None:
        before = site.scalar("SELECT pg_walfile_name(pg_current_wal_lsn())")
        done = site.seawall("check", "--no-switch")
        assert done.code == 0
        assert named(done)["archiving"]["status"] == "skipped"
        assert site.scalar("SELECT pg_walfile_name(pg_current_wal_lsn())") == before

    def test_writes_out_the_grants_that_a_role_lacks_and_is_content_with_them(self, site: Site) -> None:
        with site.server.connect() as session:
            session.execute("CREATE ROLE meek LOGIN")
        config = site.variant("meek", ("user=postgres", "user=meek"))
        done = site.seawall("check", "--no-switch", config=config)
        assert done.code == 52
        assert named(done)["data-directory"]["status"] == "failed"
        hint = named(done)["privileges"]["hint"]
        with site.server.connect() as session:
            session.execute(hint.removeprefix("As a superuser: "))
        again = site.seawall("check", config=config)
        assert again.code == 0, again.out
        assert named(again)["privileges"]["status"] == "ok"
        assert site.seawall("backup", config=config).code == 0, "what check promises, backup keeps"

    def test_names_another_cluster_an_absent_receiver_and_a_foreign_directory(
        self, site: Site, binaries: Binaries
    ) -> None:
        other = instance(site.home / "other", binaries)
        other.start(options={"fsync": "off"})
        try:
            config = site.variant("other", (site.server.conninfo, other.conninfo))
            done = site.seawall("check", config=config)
            found = named(done)
            assert (done.code, found["identity"]["code"]) == (53, "cluster-mismatch")
            assert "does not exist" in found["slot"]["sentence"]
            assert found["archiving"]["status"] == "failed"
            assert found["archiving"]["seconds"] < 10, "nobody waits for what cannot come"
            taken = site.seawall("backup", config=config)
            assert taken.code in (53, 64)
            foreign = site.variant(
                "foreign", ('mode = "direct"', f'mode = "direct"\ndata_directory = "{other.data_directory}"')
            )
            done = site.seawall("check", "--no-switch", config=foreign)
            assert (done.code, named(done)["data-directory"]["code"]) == (53, "cluster-mismatch")
        finally:
            other.stop("immediate")


class TestRecords:
    """What the command line does is in the catalog as if a flow had done it; the catalog is never in its way."""

    def test_a_backup_that_is_verified_is_known_and_check_says_so(self, site: Site) -> None:
        taken = site.seawall("backup")
        assert taken.code == 0, taken.out + taken.err
        head, record = taken.json["backup"], taken.json["record"]
        with site.catalog() as catalog:
            execution = catalog.execution(UUID(record["id"]))
            (file,) = catalog.backup_files(execution_id=execution.id)
            job = catalog.job(execution.job_id)
        assert (execution.status, execution.host) == (RunStatus.COMPLETED, socket.gethostname())
        assert (execution.backup_size_bytes, execution.checksum) == (head["plain_bytes"], file.checksum)
        assert (file.label, file.verified_at) == (head["label"], None)
        assert (job.job_type, job.schedule_cron) == (JobType.FULL, None)
        done = site.seawall("verify", "shop", head["label"], "--up-to", "present")
        assert done.json["records"][0]["recorded"] is True
        with site.catalog() as catalog:
            assert catalog.backup_file(file.id).verified_at is None, "nothing was read back"
        assert site.seawall("verify", "shop", head["label"]).code == 0
        with site.catalog() as catalog:
            assert catalog.backup_file(file.id).verified_at is not None
            newest, _ = catalog.verifications(file.id)
        assert (newest.status, newest.verification_type) == (RunStatus.COMPLETED, VerificationType.INTEGRITY)
        found = named(site.seawall("check", "--no-switch"))["verified"]
        assert found["status"] == "ok"
        assert head["label"] in found["sentence"]

    def test_a_catalog_that_is_missing_is_told_of_and_rebuild_finds_the_backup(self, site: Site) -> None:
        lost = site.home / "lost.db"
        config = site.variant("lost", (f"{site.config.parent}/catalog.db", str(lost)))
        told = site.run("backup", "--config", config)
        assert told.code == 0, told.out + told.err
        assert "this run of backup is not in the catalog" in told.err
        assert "`seawall catalog rebuild` makes it known" in told.err
        quiet = site.seawall("verify", config=config)
        assert (quiet.code, quiet.json["records"][0]["recorded"]) == (0, False)
        label = site.seawall("list", config=config).json["backups"][-1]["label"]
        assert site.seawall("catalog", "rebuild", config=config).json["rebuilt"]["files_created"] > 0
        with Catalog.open(f"sqlite:///{lost}") as catalog:
            assert label in [file.label for file in catalog.backup_files()]
        assert site.seawall("catalog", "rebuild").code == 0

    def test_a_catalog_that_is_locked_does_not_fail_a_backup(
        self, site: Site, seawall: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("seawall.catalog.place.BUSY_TIMEOUT", timedelta(seconds=0.2))
        holder = sqlite3.connect(site.config.parent / "catalog.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            done = seawall("backup", "--config", site.config, "--json")
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        assert done.code == 0, done.out
        assert "locked" in done.json["record"]["why"]
        label = done.json["backup"]["label"]
        with site.catalog() as catalog:
            assert label not in [file.label for file in catalog.backup_files()]
            assert site.seawall("catalog", "rebuild").code == 0
            assert label in [file.label for file in catalog.backup_files()]

    def test_a_job_that_is_running_is_not_run_a_second_time(self, site: Site) -> None:
        with site.catalog() as catalog:
            (job,) = [job for job in catalog.jobs() if job.job_type is JobType.FULL]
            running = catalog.begin_execution(job.id, now=datetime.now(UTC), lease=timedelta(minutes=1))
            done = site.seawall("backup")
            catalog.finish_execution(running, status=RunStatus.CANCELLED, now=datetime.now(UTC))
        assert (done.code, done.error["code"]) == (35, "lease-held")

    def test_a_failure_is_recorded_with_its_reason_and_an_alert_until_the_next_success(self, site: Site) -> None:
        config = site.variant("nobody", (f"port={site.server.port}", "port=1"))
        assert site.seawall("backup", config=config).code == 51
        with site.catalog() as catalog:
            newest = catalog.executions(limit=1)[0]
            assert newest.status is RunStatus.FAILED
            assert "[server-unreachable]" in (newest.error_message or "")
            assert "backup-failed" in [alert.alert_type for alert in catalog.alerts()]
            assert site.seawall("backup").code == 0
            assert "backup-failed" not in [alert.alert_type for alert in catalog.alerts()]

    def test_restores_and_restore_tests_are_recorded_with_what_they_reached(self, site: Site) -> None:
        destination = site.home / "pg" / "recorded"
        done = site.seawall("restore", "shop", "--into", destination)
        assert done.code == 0, done.out + done.err
        with site.catalog() as catalog:
            recovery = catalog.recovery(UUID(done.json["record"]["id"]))
            assert recovery.backup_file_id is not None
            assert catalog.backup_file(recovery.backup_file_id).label == done.json["plan"]["label"]
        assert (recovery.status, recovery.recovery_type) == (RunStatus.COMPLETED, RecoveryType.FULL)
        assert recovery.recovery_details["reached_lsn"] == done.json["report"]["reached"]["lsn"]
        refused = site.seawall("restore", "shop", "--into", site.home / "pg" / "misnamed", "--to-name", "never said")
        assert (refused.code, refused.error["code"]) == (71, "target-unreachable")
        assert "was not met" in refused.error["message"]
        tested = site.seawall("restore-test", "shop", "--random")
        assert tested.code == 0, tested.out + tested.err
        with site.catalog() as catalog:
            assert catalog.recoveries(limit=1)[0].status is RunStatus.FAILED
            proof = catalog.verification(UUID(tested.json["record"]["id"]))
            assert catalog.backup_file(proof.backup_file_id).label == tested.json["label"]
        assert proof.verification_type is VerificationType.RESTORE_TEST
        assert proof.verification_results["seed"] == tested.json["seed"]

    def test_expiry_is_a_run_of_the_sites_job_and_a_withdrawn_mark_is_audited_twice(self, site: Site) -> None:
        label = site.seawall("list").json["backups"][0]["label"]
        area = Repository.open(open_storage(load(site.config).repository)).source("shop")
        mark = {"label": label, "actor": "ada", "marked_at": datetime.now(UTC).isoformat()}
        documents.put(area.storage, area.layout.expiry(BackupLabel.parse(label)), mark)
        done = site.seawall("expire", "shop")
        assert done.code == 0, done.out
        with site.catalog() as catalog:
            execution = catalog.execution(UUID(done.json["sources"][0]["record"]["id"]))
            assert catalog.job(execution.job_id).job_type is JobType.RETENTION
        undone = site.seawall("expire", "shop", "--undo", label)
        assert (undone.code, undone.json["record"]["recorded"]) == (0, True)
        assert site.seawall("audit").json["records"][-1]["action"] == "unexpire"
        with site.catalog() as catalog:
            assert catalog.audit_entries(limit=1)[0].action == "retention.withdraw"

    def test_an_audit_that_was_cut_is_found_by_check_and_verify(self, site: Site) -> None:
        for reason in ("one", "two"):
            held = site.seawall("hold", "place", "shop", "--label", site.label, "--reason", reason).json["hold"]
            assert site.seawall("hold", "release", "shop", "--id", held).code == 0
        copy = shutil.copytree(site.config.parent / "repository", site.home / "cut")
        config = site.variant("cut", (f"{site.config.parent}/repository", str(copy)))
        sound = named(site.seawall("check", "--no-switch", config=config))["audit"]
        assert (sound["status"], "ends with record" in sound["sentence"]) == ("ok", True)
        max(copy.glob("audit/*.json")).unlink()
        found = named(site.seawall("check", "--no-switch", config=config))["audit"]
        assert (found["status"], found["code"]) == ("failed", "damaged")
        assert "cut" in found["sentence"]
        assert site.run("verify", "--config", config).err.count("critical: the audit was cut") == 1
        with site.catalog() as catalog:
            assert "audit-damaged" in [alert.alert_type for alert in catalog.alerts()]


class TestDryRuns:
    def test_change_nothing(self, site: Site, tree: Run) -> None:
        destination = site.home / "pg" / "never"
        before = tree(site.config.parent / "repository")
        for arguments in (
            ["backup"],
            ["restore", "shop", "--into", str(destination)],
            ["expire", "--days", "1"],
            ["keys", "rotate"],
            ["keys", "rotate", "--retire"],
        ):
            done = site.seawall(*arguments, "--dry-run")
            assert done.code == 0, done.out + done.err
            assert done.json["dry_run"] is True
        after = tree(site.config.parent / "repository")
        # The receiver beside us renews its lease and saves the open segment.
        ours = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert {name for name in ours if "/wal/" not in name and not name.startswith("leases/")} == set()
        assert not destination.exists()


class TestReading:
    def test_every_reading_verb_answers_in_one_json_object(self, site: Site) -> None:
        assert site.seawall("list").json["backups"][0]["label"] == site.label
        assert site.seawall("info").json["sources"][0]["source"] == "shop"
        assert site.seawall("info", "shop", site.label).json["backup"]["label"] == site.label
        assert site.seawall("verify", "shop", site.label).json["verdicts"][0]["reached"] == "wal-continuous"
        assert site.seawall("wal", "switch").json["segment"]
        assert site.seawall("wal", "status").json["windows"][0]["gap"] is None
        assert "push" in site.seawall("wal", "command").json["archive_command"]
        assert site.seawall("audit").json["count"] >= 0
        assert site.seawall("keys", "kit").json["kit"]
        assert site.seawall("catalog", "check").json["differences"] == []
        assert site.seawall("catalog", "rebuild").json["rebuilt"]["sources"] == 1

    def test_no_output_holds_a_secret(self, site: Site) -> None:
        secrets = [p.read_text().strip() for p in site.config.parent.rglob("*passphrase") if p.is_file()]
        assert len(secrets) == 2
        password, passfile = "correct-horse", site.home / "passfile"
        passfile.write_text(f"*:*:*:*:{password}\n")
        passfile.chmod(0o600)
        config = site.variant("passfile", ('mode = "direct"', f'mode = "direct"\npassfile = "{passfile}"'))
        for arguments in (
            ["check", "--no-switch"], ["backup", "--dry-run"], ["info"], ["verify"], ["keys", "list"], ["keys", "kit"],
            ["wal", "command"], ["audit"], ["restore", "nobody", "--into", "/nowhere/x"],
        ):  # fmt: skip
            done = site.seawall(*arguments, config=config)
            assert not [secret for secret in (*secrets, password) if secret in done.out + done.err], arguments

    def test_a_verification_that_fails_still_tells_what_it_found(self, site: Site) -> None:
        repository = site.home / "damaged"
        subprocess.run(["cp", "-r", site.config.parent / "repository", repository], check=True)
        config = site.variant("damaged", (str(site.config.parent / "repository"), str(repository)))
        bundle = max((repository / "sources/shop/backups" / site.label / "bundles").iterdir())
        data = bytearray(bundle.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.chmod(0o640)
        bundle.write_bytes(data)
        done = site.seawall("verify", "shop", site.label, config=config)
        assert done.code == 80
        assert done.json["verdicts"][0]["findings"][0]["subject"].endswith(bundle.name)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--to", "2020-01-01T00:00:00Z"], "before"),
            (["--to", "2099-01-01T00:00:00Z"], "future"),
            (["--to", "2026-11-23T14:05:00"], "offset"),
            (["--to", "yesterday"], "yesterday"),
            (["--to-lsn", "nowhere"], "nowhere"),
            (["--to-lsn", "FFFF/0"], "FFFF/0"),
            (["--to-xid", "12a"], "12a"),
            (["--timeline", "9"], "9"),
            (["--timeline", "soon"], "soon"),
        ],
    )
    def test_a_target_that_cannot_be_reached(self, site: Site, arguments: list[str], said: str) -> None:
        destination = site.home / "pg" / "unmade"
        done = site.seawall("restore", "shop", "--into", destination, *arguments)
        assert done.code == 71, done.out + done.err
        assert said in done.error["message"]
        assert done.error["hint"]
        assert not destination.exists()

    def test_a_destination_that_is_in_use(self, site: Site) -> None:
        full = site.home / "full"
        full.mkdir()
        (full / "letter").write_text("dear")
        for arguments in ([full], [site.server.data_directory], [site.server.data_directory, "--delta"]):
            done = site.seawall("restore", "shop", "--into", *arguments)
            assert (done.code, done.error["code"]) == (72, "destination-in-use"), arguments
        assert (full / "letter").read_text() == "dear"
        assert site.scalar("SELECT count(*) FROM t") == 50000

    def test_a_backup_or_source_that_does_not_exist(self, site: Site) -> None:
        assert site.seawall("verify", "shop", "20200101T000000Z-full").code == 33
        assert site.seawall("info", "shop", "20200101T000000Z-full").code == 33
        assert site.seawall("restore", "elsewhere", "--into", site.home / "x").code in (2, 33)

    def test_a_missing_key(self, site: Site) -> None:
        empty = site.home / "empty-ring"
        config = site.variant("empty-ring", (f'keyring = "{site.config.parent}/keyring"', f'keyring = "{empty}"'))
        for arguments in (["verify"], ["restore", "shop", "--into", str(site.home / "pg" / "unmade")], ["backup"]):
            done = site.seawall(*arguments, config=config)
            assert done.code == 41, done.out + done.err
            assert done.error["hint"]
        assert named(site.seawall("check", "--no-switch", config=config))["recipients"]["code"] == "key-missing"
        assert not (site.home / "pg" / "unmade").exists()

    def test_a_wrong_passphrase(self, site: Site) -> None:
        wrong = site.home / "wrong"
        wrong.write_text("wrong")
        wrong.chmod(0o600)
        config = site.variant("wrong", (f"{site.config.parent}/keyring.passphrase", str(wrong)))
        done = site.seawall("verify", config=config)
        assert done.code == 42, done.out + done.err
        done = site.seawall("check", "--no-switch", config=config)
        assert (done.code, named(done)["private-key"]["code"]) == (42, "key-unusable")


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_backup_that_is_stopped_leaves_nothing_listed_and_nobody_behind(
        self, site: Site, number: signal.Signals
    ) -> None:
        config = site.variant("slow", ('mode = "direct"', 'mode = "direct"\nmax_rate_bytes_per_second = 2000000'))
        backups = site.config.parent / "repository" / "sources" / "shop" / "backups"
        before = [backup["label"] for backup in site.seawall("list").json["backups"]]
        known = set(backups.iterdir())
        running = site.start("backup", "--config", config, "--json")
        try:
            until(lambda: bool(set(backups.iterdir()) - known))
            running.send_signal(number)
            out, _ = running.communicate(timeout=90)
        finally:
            end(running)
        assert running.returncode == 130
        assert json.loads(out)["error"]["code"] == "cancelled"
        assert [backup["label"] for backup in site.seawall("list").json["backups"]] == before
        sessions = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'seawall' AND pid <> pg_backend_pid()"
        )
        until(lambda: site.scalar(sessions) == 0)
        # The lease was given back: the next backup need not wait for it to run out.
        assert site.seawall("backup").code == 0
