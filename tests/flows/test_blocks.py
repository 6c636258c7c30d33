from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from asyncssh import generate_private_key
from prefect_aws import AwsCredentials
from prefect_azure import AzureBlobStorageCredentials
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from blocks.cluster import PostgresCluster, passfile_line, source_settings
from blocks.credentials import SftpKey, credentials_of, kind_of
from blocks.notification import NotificationChannel, send, wanted
from blocks.repository import BackupRepository, repository_settings
from blocks.sealing import SealingKeys, sealing_settings
from blocks.site import BlockNames, secret_file, settings_for, with_blocks
from seawall.catalog import Severity
from seawall.errors import NameRefused, SettingsError
from seawall.limits import LimitWindow
from seawall.model import CopyMode, LockMode
from seawall.settings import Confirm, Locking, RepositorySettings, Settings, SourceSettings
from seawall.storage import open_driver
from tools import debian

BLOCKS = (PostgresCluster, BackupRepository, SealingKeys, NotificationChannel, SftpKey)
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("block", BLOCKS)
def test_every_field_has_a_default_so_that_old_documents_stay_readable(block):
    own = [name for name in block.model_fields if name in block.__annotations__]
    for name in own:
        field = block.model_fields[name]
        assert field.default is not PydanticUndefined or field.default_factory is not None, name


def test_a_cluster_block_becomes_a_source():
    block = PostgresCluster(conninfo="host=db port=5433", mode=CopyMode.STREAM, workers=4, wal_timeout_seconds=30)
    source = source_settings(block, "main", passfile=Path("/w/main.pgpass"))
    assert (source.name, source.conninfo, source.passfile) == ("main", "host=db port=5433", Path("/w/main.pgpass"))
    assert (source.mode, source.workers, source.wal_timeout.total_seconds()) == (CopyMode.STREAM, 4, 30.0)


def test_a_cluster_block_with_two_passwords_or_a_bad_name_or_path_is_refused():
    with pytest.raises(SettingsError, match="both"):
        source_settings(PostgresCluster(passfile="/etc/pgpass"), "main", passfile=Path("/w/x"))
    with pytest.raises(NameRefused):
        source_settings(PostgresCluster(), "../main", passfile=None)
    with pytest.raises(SettingsError, match="absolute"):
        source_settings(PostgresCluster(data_directory="pgdata"), "main", passfile=None)


def test_a_password_survives_the_passfiles_own_notation():
    assert passfile_line("a:b\\c") == "*:*:*:*:a\\:b\\\\c\n"
    with pytest.raises(SettingsError):
        passfile_line("two\nlines")


def test_a_password_is_in_no_representation_of_its_block():
    block = PostgresCluster(password=SecretStr("hunter2"))
    assert "hunter2" not in repr(block) + str(block) + block.model_dump_json()


def test_a_local_repository_block_becomes_settings_and_takes_no_credentials():
    assert repository_settings(BackupRepository(url="/backup", concurrency=3)).concurrency == 3
    with pytest.raises(SettingsError, match="no url"):
        repository_settings(BackupRepository())
    with pytest.raises(SettingsError, match="does not take"):
        kind_of("file")


def test_a_repository_block_takes_what_its_credentials_block_knows_of_the_place():
    block = AwsCredentials(
        aws_access_key_id="a",
        aws_secret_access_key="hunter2",
        region_name="eu-central-1",
        aws_client_parameters={"endpoint_url": "https://minio.example.com"},
    )
    found = credentials_of("s3", block)
    settings = repository_settings(
        BackupRepository(url="s3://bucket/prefix", credentials="aws"), credentials=found, file=Path("/w/aws")
    )
    assert (settings.endpoint, settings.region) == ("https://minio.example.com", "eu-central-1")
    assert settings.credentials_file == Path("/w/aws")
    assert "hunter2" not in repr(settings) + repr(found)


@pytest.mark.parametrize(
    ("scheme", "block"),
    [
        ("s3", AwsCredentials(aws_access_key_id="a", aws_secret_access_key="hunter2")),
        ("azure", AzureBlobStorageCredentials(connection_string="AccountName=a;AccountKey=aHVudGVyMg==")),
        (
            "azure",
            AzureBlobStorageCredentials(
                account_url="https://a.blob.core.windows.net", tenant_id="t", client_id="c", client_secret="hunter2"
            ),
        ),
        pytest.param(
            "sftp",
            SftpKey(private_key=generate_private_key("ssh-ed25519").export_private_key().decode()),
            marks=pytest.mark.skipif(not debian.SSH.present, reason=f"{debian.SSH.name} is not there"),
        ),
    ],
)
def test_the_engine_reads_the_file_that_a_credentials_block_becomes(tmp_path, scheme, block):
    assert isinstance(block, kind_of(scheme))
    found = credentials_of(scheme, block)
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    settings = RepositorySettings(
        endpoint=found.endpoint,
        credentials_file=secret_file(tmp_path / "secrets" / "file", found.text),
        known_hosts_file=known_hosts if scheme == "sftp" else None,
    )
    opened = open_driver(f"{scheme}://box/prefix", settings)
    assert opened.url.startswith(f"{scheme}://box/prefix")
    opened.close()


@pytest.mark.parametrize(
    ("scheme", "block"),
    [
        ("s3", AwsCredentials(profile_name="default")),
        (
            "s3",
            AwsCredentials(aws_access_key_id="a", aws_secret_access_key="b", assume_role_arn="arn:aws:iam::1:role/r"),
        ),
        (
            "s3",
            AwsCredentials(aws_access_key_id="a", aws_secret_access_key="b", aws_client_parameters={"verify": False}),
        ),
        ("azure", AzureBlobStorageCredentials(account_url="https://a.blob.core.windows.net")),
        ("sftp", SftpKey()),
    ],
)
def test_a_credentials_block_that_holds_no_secret_or_asks_for_what_is_not_done_is_refused(scheme, block):
    with pytest.raises(SettingsError) as caught:
        credentials_of(scheme, block)
    assert "credentials" in caught.value.message or "private key" in caught.value.message


def test_a_sealing_block_becomes_settings():
    block = SealingKeys(keyring="/k", operations="A" * 40, escrow="B" * 40, recipients=["C" * 40])
    settings = sealing_settings(block, passphrase_file=Path("/w/p"))
    assert settings.all_recipients == ("A" * 40, "B" * 40, "C" * 40)
    assert settings.passphrase_file == Path("/w/p")
    with pytest.raises(SettingsError):
        sealing_settings(SealingKeys(keyring="relative"), passphrase_file=None)


def test_what_a_block_says_takes_the_place_of_the_files_section_only():
    before = Settings(sources={"one": SourceSettings("one"), "two": SourceSettings("two")})
    after = with_blocks(before, source=SourceSettings("two", conninfo="host=elsewhere"))
    assert after.sources["two"].conninfo == "host=elsewhere"
    assert after.sources["one"] is before.sources["one"]
    assert after.repository is before.repository


def test_what_a_repository_block_leaves_open_stays_as_the_file_says_it():
    """A limit on locks above all: what is locked for years cannot be unlocked."""
    before = RepositorySettings(
        url="/old",
        region="eu-central-1",
        lock_at_most_days=30,
        lock_mode=LockMode.GOVERNANCE,
        lock=Locking.OFF,
        quota_bytes=10,
        prices="ours",
        cold_classes=("none",),
        confirm=Confirm.HASH,
        limits=(LimitWindow(bytes_per_second=1),),
    )
    after = repository_settings(BackupRepository(url="/new"), before=before)
    assert after == replace(before, url="/new", region="")
    said = BackupRepository(url="/new", lock="auto", lock_mode="compliance", lock_at_most_days=0, quota_bytes=0)
    after = repository_settings(said, before=before)
    assert (after.lock, after.lock_mode, after.lock_at_most_days) == (Locking.AUTO, LockMode.COMPLIANCE, 0)
    assert (after.quota_bytes, after.confirm) == (0, Confirm.HASH)


def test_a_block_is_no_location_that_the_file_does_not_know(site):
    for name in ("primary", "offsite"):
        with pytest.raises(SettingsError, match=name):
            settings_for("", str(site[0]), BlockNames(locations={name: "offsite"}))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A settings file, and blocks of a repository that one account writes and another cleans up; what was loaded."""
    keys = {"writer": "hunter2", "deleter": "hunter3"}
    known = {
        name: AwsCredentials(aws_access_key_id=name, aws_secret_access_key=secret) for name, secret in keys.items()
    }
    known["offsite"] = BackupRepository(url="s3://box/shop", credentials="writer", deleting_credentials="deleter")
    loaded = []

    def load(kind, name):
        loaded.append(name)
        assert isinstance(known[name], kind)
        return known[name]

    monkeypatch.setattr("blocks.site.loaded", load)
    file = tmp_path / "seawall.toml"
    file.write_text(f'[repository]\nurl = "memory:"\n[server]\nwork_directory = "{tmp_path}/work"\n[sources.shop]\n')
    return file, loaded


def test_a_host_that_only_writes_never_has_the_credentials_that_delete(site, tmp_path):
    file, loaded = site
    settings = settings_for("", str(file), BlockNames(repository="offsite"))
    assert settings.repository.deleting_credentials_file is None
    assert loaded == ["offsite", "writer"]
    written = [one.read_text() for one in (tmp_path / "work" / "secrets").iterdir()]
    assert len(written) == 1
    assert "hunter2" in written[0]


def test_work_that_deletes_gets_credentials_of_its_own_and_writes_with_the_others(site):
    file, loaded = site
    repository = settings_for("", str(file), BlockNames(repository="offsite"), deleting=True).repository
    assert loaded == ["offsite", "writer", "deleter"]
    for path, secret in ((repository.credentials_file, "hunter2"), (repository.deleting.credentials_file, "hunter3")):
        assert secret in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert replace(repository.deleting, credentials_file=None) == replace(repository, credentials_file=None)


def test_a_secret_of_a_block_is_written_for_its_owner_only_and_replaced_whole(tmp_path):
    path = tmp_path / "secrets" / "main.pgpass"
    for secret in ("a much longer first secret", "second"):
        secret_file(path, SecretStr(secret))
    assert path.read_text() == "second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["main.pgpass"]


def test_a_channel_hears_only_of_what_is_severe_enough():
    channel = NotificationChannel(minimum_severity=Severity.HIGH)
    assert wanted(channel, Severity.CRITICAL)
    assert not wanted(channel, Severity.MEDIUM)
    assert send(channel, Severity.LOW, "t", "b")


def test_a_wrong_url_of_a_channel_is_named_by_number_not_by_its_text():
    channel = NotificationChannel(urls=[SecretStr("nonsense://user:hunter2@host")])
    with pytest.raises(SettingsError) as caught:
        send(channel, Severity.CRITICAL, "t", "b")
    assert "URL 1" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_flow_modules_import_no_cloud_package():
    script = """
import sys
import flows.backup, flows.archive_wal, flows.verify, flows.restore, flows.restore_test, flows.retention_cleanup
cloud = ("prefect_aws", "prefect_azure", "prefect_gcp", "boto3", "azure", "google", "apprise", "fastapi")
print([name for name in sys.modules if name.split(".")[0] in cloud and name != "google"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
