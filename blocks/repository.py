"""A repository as a Prefect block."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from seawall.errors import SettingsError
from seawall.settings import RepositorySettings

# Which block class holds the credentials of which storage; imported only for a repository that lies there.
CREDENTIALS_OF = {
    "s3": ("prefect_aws", "AwsCredentials"),
    "azure": ("prefect_azure", "AzureBlobStorageCredentials"),
    "gcs": ("prefect_gcp", "GcpCredentials"),
}


class BackupRepository(Block):
    """Where backups lie, and the name of the credentials block that opens it, if it needs one."""

    _block_type_name: ClassVar[str] = "Seawall repository"
    _block_type_slug: ClassVar[str] = "seawall-repository"
    _description: ClassVar[str] = "A storage location for backups."

    url: str = Field(default="", description="an absolute path or file:///absolute/path")
    credentials: str = Field(default="", description="name of a credentials block, for storage in a cloud")
    bandwidth_bytes_per_second: int = Field(default=0, ge=0, description="0 for no limit")
    concurrency: int = Field(default=8, ge=1)
    attempts: int = Field(default=5, ge=1)


def repository_settings(block: BackupRepository) -> RepositorySettings:
    """The engine's settings of the repository that a block describes.

    Raises:
        SettingsError: it has no URL, or lies in a storage that this version has no driver for.
    """
    if not block.url:
        raise SettingsError("the repository block has no url")
    scheme = block.url.partition("://")[0] if "://" in block.url else "file"
    if scheme in CREDENTIALS_OF:
        raise SettingsError(
            f"the repository block names {scheme} storage, and this version writes local storage only",
            hint="Use an absolute path, such as a mounted share; cloud drivers come with a later version.",
        )
    if block.credentials:
        raise SettingsError("the repository block names credentials, which local storage does not take")
    return RepositorySettings(
        url=block.url,
        bandwidth_bytes_per_second=block.bandwidth_bytes_per_second,
        concurrency=block.concurrency,
        attempts=block.attempts,
    )
