"""A repository as a Prefect block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from blocks.credentials import Credentials
from seawall.errors import SettingsError
from seawall.model import LockMode
from seawall.settings import Confirm, Locking, RepositorySettings

_LEFT_OPEN = ("lock", "lock_mode", "lock_at_most_days", "quota_bytes", "confirm")


class BackupRepository(Block):
    """Where backups lie, and the name of the credentials block that opens it, if it needs one."""

    _block_type_name: ClassVar[str] = "Seawall repository"
    _block_type_slug: ClassVar[str] = "seawall-repository"
    _description: ClassVar[str] = "A storage location for backups."

    url: str = Field(default="", description="an absolute path, s3://, azure://, gs:// or sftp://")
    credentials: str = Field(default="", description="name of a credentials block, for remote storage")
    deleting_credentials: str = Field(
        default="",
        description="credentials block that may delete, for cleanups; the other may only write then",
    )
    endpoint: str = Field(default="", description="https address of the service, where it is not the vendor's own")
    region: str = Field(default="", description="of an S3 bucket")
    ca_file: str = Field(default="", description="certificates of an authority of your own, on the worker's host")
    known_hosts_file: str = Field(default="", description="public keys of SFTP servers, on the worker's host")
    lock: Locking | None = Field(default=None, description="auto or off; as the settings file says where omitted")
    lock_mode: LockMode | None = Field(
        default=None, description="how objects are locked where they are; as the settings file says where omitted"
    )
    lock_at_most_days: int | None = Field(
        default=None, ge=0, description="how far locks reach, 0 for all; as the settings file says where omitted"
    )
    quota_bytes: int | None = Field(
        default=None,
        ge=0,
        description="how much may lie there, 0 for no limit; as the settings file says where omitted",
    )
    confirm: Confirm | None = Field(
        default=None, description="size or hash of what was written; as the settings file says where omitted"
    )
    bandwidth_bytes_per_second: int = Field(default=0, ge=0, description="0 for no limit")
    concurrency: int = Field(default=8, ge=1)
    attempts: int = Field(default=5, ge=1)


def scheme_of(block: BackupRepository) -> str:
    """The kind of storage that a block names.

    Raises:
        SettingsError: it has no URL.
    """
    if not block.url:
        raise SettingsError("the repository block has no url")
    return "file" if block.url.startswith("/") else block.url.partition(":")[0]


def repository_settings(
    block: BackupRepository,
    *,
    before: RepositorySettings | None = None,
    credentials: Credentials | None = None,
    file: Path | None = None,
    deleting_file: Path | None = None,
) -> RepositorySettings:
    """The engine's settings of the repository that a block describes.

    Args:
        before: what the settings file says of the place: it holds for all that a block has no field for, or leaves
            open. A limit on locks that was lost on the way could not be made good.
        credentials: what the credentials block says, if one is named.
        file: where its text was written.
        deleting_file: where that of the credentials that may delete was written, for work that needs them.

    Raises:
        SettingsError: it has no URL, or a path in it is not absolute.
    """
    scheme_of(block)
    said = credentials
    return replace(
        before or RepositorySettings(),
        url=block.url,
        endpoint=block.endpoint or (said.endpoint if said else ""),
        region=block.region or (said.region if said else ""),
        credentials_file=file,
        deleting_credentials_file=deleting_file,
        ca_file=_path(block.ca_file or (said.ca_file if said else ""), "ca_file"),
        known_hosts_file=_path(block.known_hosts_file, "known_hosts_file"),
        bandwidth_bytes_per_second=block.bandwidth_bytes_per_second,
        concurrency=block.concurrency,
        attempts=block.attempts,
        **{name: said for name in _LEFT_OPEN if (said := getattr(block, name)) is not None},
    )


def _path(text: str, what: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise SettingsError(f"the repository block's {what} = {text!r}: an absolute path is wanted")
    return path
