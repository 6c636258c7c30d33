"""From a settings file and blocks to the engine's settings.

The file says what belongs to the host (catalog, working directory) and may say everything. A block that is named
takes the place of the file's section; of a repository's or a location's, what it has no field for or leaves open stays
as the file says. Secrets of blocks are written to files with mode 0600 below the working
directory, because the engine takes secrets by reference only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field, SecretStr

from blocks.cluster import PostgresCluster, passfile_line, source_settings
from blocks.credentials import Credentials, credentials_of, kind_of
from blocks.loading import loaded
from blocks.repository import BackupRepository, repository_settings, scheme_of
from blocks.sealing import SealingKeys, sealing_settings
from seawall.errors import SettingsError
from seawall.model import checked_name
from seawall.settings import PRIMARY, RepositorySettings, SealingSettings, Settings, SourceSettings, load


class BlockNames(BaseModel):
    """Names of blocks that take the place of sections of the settings file; empty where the file stays."""

    cluster: str = Field(default="", description="a Seawall PostgreSQL cluster")
    repository: str = Field(default="", description="a Seawall repository")
    sealing: str = Field(default="", description="Seawall sealing keys")
    locations: dict[str, str] = Field(
        default_factory=dict, description="a location's name, and a Seawall repository that says how it is reached"
    )


def settings_for(
    source: str, settings_file: str | None = None, blocks: BlockNames | None = None, *, deleting: bool = False
) -> Settings:
    """The settings that a flow works with.

    Args:
        source: whose cluster block is loaded, if one is named; may be empty for work on the whole site.
        settings_file: a path on the worker's host; else `SEAWALL_CONFIG`, else the default file.
        blocks: what is loaded from Prefect instead.
        deleting: whether credentials that may delete are loaded too; a host that only writes never has them.

    Raises:
        SettingsError: the file or a block is wrong.
    """
    settings = load(Path(settings_file) if settings_file else None)
    names = blocks or BlockNames()
    secrets = settings.server.work_directory / "secrets"

    def place(block: str, before: RepositorySettings) -> RepositorySettings:
        return _repository(block, before, secrets, deleting=deleting)

    return with_blocks(
        settings,
        source=_cluster(names.cluster, source, secrets) if names.cluster else None,
        repository=place(names.repository, settings.repository) if names.repository else None,
        sealing=_sealing(names.sealing, secrets) if names.sealing else None,
        locations={name: place(block, _copy(settings, name)) for name, block in names.locations.items()},
    )


def _copy(settings: Settings, name: str) -> RepositorySettings:
    if name == PRIMARY:
        raise SettingsError("the primary location is named as `repository` among the blocks, not as a location")
    return settings.location(name).storage


def with_blocks(
    settings: Settings,
    *,
    source: SourceSettings | None = None,
    repository: RepositorySettings | None = None,
    sealing: SealingSettings | None = None,
    locations: Mapping[str, RepositorySettings] | None = None,
) -> Settings:
    """Settings in which what blocks say takes the place of what the file said."""
    sources: Mapping[str, SourceSettings] = settings.sources
    if source is not None:
        sources = {**settings.sources, source.name: source}
    places = dict(settings.locations)
    for name, storage in (locations or {}).items():
        places[name] = replace(places[name], storage=storage)
    return replace(
        settings,
        sources=sources,
        locations=places,
        repository=repository or settings.repository,
        sealing=sealing or settings.sealing,
    )


def _cluster(name: str, source: str, secrets: Path) -> SourceSettings:
    block = loaded(PostgresCluster, name)
    passfile = None
    if block.password is not None:
        line = passfile_line(block.password.get_secret_value())
        passfile = secret_file(secrets / f"{checked_name(source, what='source name')}.pgpass", SecretStr(line))
    return source_settings(block, source, passfile=passfile)


def _repository(name: str, before: RepositorySettings, secrets: Path, *, deleting: bool) -> RepositorySettings:
    block = loaded(BackupRepository, name)
    found = file = deleting_file = None
    if block.credentials:
        found, file = _credentials(block, block.credentials, secrets)
    if block.deleting_credentials and deleting:
        _, deleting_file = _credentials(block, block.deleting_credentials, secrets)
    return repository_settings(block, before=before, credentials=found, file=file, deleting_file=deleting_file)


def _credentials(block: BackupRepository, name: str, secrets: Path) -> tuple[Credentials, Path]:
    scheme = scheme_of(block)
    found = credentials_of(scheme, loaded(kind_of(scheme), name))
    return found, secret_file(secrets / f"storage-{checked_name(name)}.credentials", found.text)


def _sealing(name: str, secrets: Path) -> SealingSettings:
    block = loaded(SealingKeys, name)
    file = None
    if block.passphrase is not None:
        file = secret_file(secrets / f"sealing-{checked_name(name)}.passphrase", block.passphrase)
    return sealing_settings(block, passphrase_file=file)


def secret_file(path: Path, secret: SecretStr) -> Path:
    """Write a secret where only this account reads it; an existing file is replaced whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret.get_secret_value())
    temporary.replace(path)
    return path
