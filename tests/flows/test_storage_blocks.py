"""Blocks of storage, saved in a real Prefect server, loaded as flows do, and opened on real services."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas
from prefect.blocks.core import Block
from prefect_aws import AwsCredentials
from prefect_azure import AzureBlobStorageCredentials
from prefect_gcp import GcpCredentials

from blocks.credentials import SftpKey, kind_of
from blocks.loading import loaded
from blocks.repository import BackupRepository
from blocks.site import BlockNames, settings_for
from seawall import mirror
from seawall.catalog import Catalog, JobType
from seawall.errors import SettingsError
from seawall.events import Observer
from seawall.locations import opened
from seawall.repository import Repository
from seawall.settings import PRIMARY, RepositorySettings, load
from seawall.storage import open_storage
from seawall.storage.base import read
from tools.storage_servers import google_account

pytestmark = [pytest.mark.prefect, pytest.mark.servers, pytest.mark.slow]


@pytest.fixture(scope="module")
def account() -> Iterator[dict[str, str]]:
    with google_account() as made:
        yield made


def text_of(place: RepositorySettings) -> str:
    assert place.credentials_file is not None
    return place.credentials_file.read_text(encoding="utf-8")


def aws(place: RepositorySettings, **more: str) -> AwsCredentials:
    said = dict(line.split(" = ") for line in text_of(place).splitlines() if " = " in line)
    about = {"endpoint_url": place.endpoint}
    return AwsCredentials(**said, **more, region_name=place.region, aws_client_parameters=about)


def signed(place: RepositorySettings) -> AzureBlobStorageCredentials:
    """Instead of the account's key a signature, which ends."""
    known = dict(part.split("=", 1) for part in text_of(place).split(";") if part)
    token = generate_account_sas(
        known["AccountName"],
        known["AccountKey"],
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True),
        datetime.now(UTC) + timedelta(hours=1),
    )
    said = f"BlobEndpoint={known['BlobEndpoint']};SharedAccessSignature={token}"
    return AzureBlobStorageCredentials(connection_string=said)


def service_account_file(account: dict[str, str], tmp_path: Path) -> GcpCredentials:
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account), encoding="utf-8")
    return GcpCredentials(service_account_file=str(path))


Form = Callable[[RepositorySettings, dict[str, str], Path], Block]

FORMS: dict[str, Form] = {
    "s3 key": lambda place, _account, _path: aws(place),
    "s3 session": lambda place, _account, _path: aws(place, aws_session_token="of-a-session"),
    "azure key": lambda place, _account, _path: AzureBlobStorageCredentials(connection_string=text_of(place)),
    "azure signature": lambda place, _account, _path: signed(place),
    "gs info": lambda _place, account, _path: GcpCredentials(service_account_info=account),
    "gs file": lambda _place, account, path: service_account_file(account, path),
    "sftp key": lambda place, _account, _path: SftpKey(private_key=text_of(place)),
}


def saved(name: str, place: RepositorySettings, credentials: Block) -> str:
    """A repository block with its credentials block, in Prefect's server; its name."""
    credentials.save(f"{name}-credentials", overwrite=True)
    # Where the credentials say it, the repository need not.
    about = {} if isinstance(credentials, AwsCredentials) else {"endpoint": place.endpoint, "region": place.region}
    BackupRepository(
        url=place.url, credentials=f"{name}-credentials", known_hosts_file=str(place.known_hosts_file or ""), **about
    ).save(name, overwrite=True)
    return name


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_credentials_that_a_block_has_opens_its_storage(form, prefect_stack, servers, account, tmp_path):
    kind = form.partition(" ")[0]
    place = servers[kind].settings()
    block = saved(form.replace(" ", "-"), place, FORMS[form](place, account, tmp_path))
    settings = settings_for("", str(prefect_stack.settings_file), BlockNames(repository=block))
    storage = open_storage(settings.repository)
    storage.put("through/a/block", [form.encode()])
    assert read(storage, "through/a/block") == form.encode()
    storage.close()


def test_a_flow_reaches_the_primary_and_its_copies_by_blocks_alone(prefect_stack, servers, account, tmp_path):
    places = {kind: servers[kind].settings() for kind in ("s3", "azure", "gs", "sftp")}
    names = {kind: f"site-{kind}" for kind in places}
    for kind, form in (("s3", "s3 key"), ("azure", "azure signature"), ("gs", "gs info"), ("sftp", "sftp key")):
        saved(names[kind], places[kind], FORMS[form](places[kind], account, tmp_path))
    file = tmp_path / "seawall.toml"
    sections = "".join(f'[locations.{kind}]\nurl = "{places[kind].url}"\n' for kind in ("azure", "gs", "sftp"))
    file.write_text(
        f'[repository]\nurl = "/nowhere"\n{sections}[catalog]\nurl = "sqlite:///{tmp_path}/catalog.db"\n'
        f'[server]\nwork_directory = "{tmp_path}/work"\n[sources.shop]\nmirrors = ["azure", "gs", "sftp"]\n',
        encoding="utf-8",
    )
    blocks = BlockNames(repository=names["s3"], locations={kind: names[kind] for kind in ("azure", "gs", "sftp")})
    settings = settings_for("", str(file), blocks)
    repository = Repository.create(opened(settings, PRIMARY, Observer()), now=datetime.now(UTC))
    for name in settings.locations:
        mirror.begin(repository, opened(settings, name, Observer()))

    with Catalog.open(load(file).catalog.url, create=True) as catalog:
        deployment = prefect_stack.client.read_deployment_by_name("location-health/location-health")
        given = {"settings_file": str(file), "blocks": blocks.model_dump()}
        run = prefect_stack.client.create_flow_run_from_deployment(deployment.id, parameters=given)
        ended = prefect_stack.ended(run)
        assert ended.state.type.value == "COMPLETED", ended.state.message
        (job,) = [job for job in catalog.jobs() if job.job_type is JobType.LOCATION_HEALTH]
        done = catalog.newest_success(job.id)
        assert done is not None
        assert {name for name in done.details if name in (PRIMARY, *settings.locations)} == {
            PRIMARY,
            "azure",
            "gs",
            "sftp",
        }
    for secret in ("of the tests", account["private_key"].splitlines()[1]):
        assert secret not in json.dumps([one.message for one in prefect_stack.client.read_logs()])


def test_a_block_that_cannot_work_on_this_host_is_told_apart_from_one_that_is_not_there(
    prefect_stack, account, tmp_path
):
    service_account_file(account, tmp_path).save("moved-away", overwrite=True)
    (tmp_path / "account.json").unlink()
    with pytest.raises(SettingsError, match=r"makes no sense on this host: service_account_file"):
        loaded(kind_of("gs"), "moved-away")
    with pytest.raises(SettingsError, match="Prefect has no block 'nowhere'"):
        loaded(kind_of("gs"), "nowhere")
