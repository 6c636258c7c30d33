"""Sealing and its keys as a Prefect block."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from seawall.errors import SettingsError
from seawall.model import Compression, SealingMode
from seawall.settings import SealingSettings


class SealingKeys(Block):
    """How backups are sealed and for whom; the passphrase opens the private key where backups are read."""

    _block_type_name: ClassVar[str] = "Seawall sealing keys"
    _block_type_slug: ClassVar[str] = "seawall-sealing-keys"
    _description: ClassVar[str] = "Compression, sealing and OpenPGP recipients of backups."

    mode: SealingMode = Field(default=SealingMode.AES_256_GCM)
    compression: Compression = Field(default=Compression.ZSTD)
    level: int = Field(default=1, ge=0)
    keyring: str = Field(default="/var/lib/seawall/keyring", description="GnuPG home on the worker's host")
    operations: str = Field(default="", description="fingerprint of the operations key")
    escrow: str = Field(default="", description="fingerprint of the escrow key, whose private part is offline")
    recipients: list[str] = Field(default_factory=list, description="fingerprints of more recipients")
    passphrase: SecretStr | None = Field(default=None, description="of the private key; or use a passphrase file")
    passphrase_file: str = Field(default="", description="a file (mode 0600) on the worker's host")
    wal_key_hours: int = Field(default=24, ge=1)


def sealing_settings(block: SealingKeys, *, passphrase_file: Path | None) -> SealingSettings:
    """The engine's settings of the sealing that a block describes.

    Args:
        passphrase_file: where the block's passphrase was written, or None if it has none.

    Raises:
        SettingsError: a path in it is not absolute, or it has both a passphrase and a file with one.
    """
    if block.passphrase_file and passphrase_file is not None:
        raise SettingsError("the sealing block has both a passphrase and a passphrase file", hint="Remove one of them.")
    for path in (block.keyring, block.passphrase_file):
        if path and not Path(path).is_absolute():
            raise SettingsError(f"the sealing block names {path!r}: an absolute path is wanted")
    named = Path(block.passphrase_file) if block.passphrase_file else None
    return SealingSettings(
        mode=block.mode,
        compression=block.compression,
        level=block.level,
        keyring=Path(block.keyring),
        operations=block.operations,
        escrow=block.escrow,
        recipients=tuple(block.recipients),
        passphrase_file=passphrase_file or named,
        wal_key_hours=block.wal_key_hours,
    )
