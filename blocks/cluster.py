"""A PostgreSQL cluster as a Prefect block."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from seawall.errors import SettingsError
from seawall.model import CopyMode, checked_name
from seawall.settings import SourceSettings


class PostgresCluster(Block):
    """How to reach a cluster; the password is kept encrypted and leaves the block only into a passfile."""

    _block_type_name: ClassVar[str] = "Seawall PostgreSQL cluster"
    _block_type_slug: ClassVar[str] = "seawall-postgres-cluster"
    _description: ClassVar[str] = "A PostgreSQL cluster that Seawall protects."

    conninfo: str = Field(default="", description="libpq keywords or URI, without a password")
    password: SecretStr | None = Field(default=None, description="of the user in conninfo; or use a passfile")
    passfile: str = Field(default="", description="a libpq passfile (mode 0600) on the worker's host")
    data_directory: str = Field(default="", description="where the server's own answer is not the path on this host")
    bin_directory: str = Field(default="", description="where this version's programs lie; found when empty")
    mode: CopyMode = Field(default=CopyMode.DIRECT, description="direct: on the server's host; stream: from anywhere")
    workers: int = Field(default=0, ge=0, description="parallel readers; 0 for as many as there are processors")
    slot: str = Field(default="", description="replication slot of the WAL receiver; seawall_<source> when empty")
    max_rate_bytes_per_second: int = Field(default=0, ge=0, description="0 for no limit")
    retention_days: int = Field(default=30, ge=1)
    wal_timeout_seconds: float = Field(default=120.0, gt=0)


def source_settings(block: PostgresCluster, name: str, *, passfile: Path | None) -> SourceSettings:
    """The engine's settings of the source that a block describes.

    Args:
        name: of the source.
        passfile: where the block's password was written, or None if it has none.

    Raises:
        SettingsError: the block names a passfile and a password, or a relative path.
        NameRefused: `name` is no source name.
    """
    if block.passfile and passfile is not None:
        raise SettingsError(
            f"the block of source {name} has both a password and a passfile", hint="Remove one of them."
        )
    return SourceSettings(
        name=checked_name(name, what="source name"),
        conninfo=block.conninfo,
        passfile=passfile or _path(block.passfile, "passfile"),
        data_directory=_path(block.data_directory, "data_directory"),
        bin_directory=_path(block.bin_directory, "bin_directory"),
        mode=block.mode,
        workers=block.workers,
        slot=block.slot,
        max_rate_bytes_per_second=block.max_rate_bytes_per_second,
        retention_days=block.retention_days,
        wal_timeout=timedelta(seconds=block.wal_timeout_seconds),
    )


def passfile_line(password: str) -> str:
    r"""A line of a passfile that fits every connection (PostgreSQL documentation, "The Password File").

    Raises:
        SettingsError: the password has a line break, which a passfile cannot carry.
    """
    if "\n" in password or "\r" in password or "\0" in password:
        raise SettingsError("a password with a line break cannot be handed to libpq")
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:*:{escaped}\n"


def _path(text: str, what: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise SettingsError(f"{what} = {text!r}: an absolute path is wanted")
    return path
