"""Credentials of remote storage: the blocks that Prefect's collections bring, and one of our own for SFTP.

Each becomes the text of a credentials file, as the engine reads it, and what the block says of where the storage is.
Credentials that expire while a worker runs (a profile, an assumed role, an instance's own) are not copied out of a
block: without one, the vendor's library finds and renews them itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from seawall.errors import SettingsError


class SftpKey(Block):
    """The private key that an SFTP server admits."""

    _block_type_name: ClassVar[str] = "Seawall SFTP key"
    _block_type_slug: ClassVar[str] = "seawall-sftp-key"
    _description: ClassVar[str] = "An SSH private key for backups on an SFTP server."

    private_key: SecretStr = Field(default=SecretStr(""), description="as OpenSSH writes it, without a passphrase")


@dataclass(frozen=True)
class Credentials:
    """What a credentials block holds, for a file that only the worker's account reads.

    Args:
        text: what the file will hold.
        endpoint: the service's address, where the block names one.
        region: of S3, where the block names one.
        ca_file: certificates, where the block names them.
    """

    text: SecretStr
    endpoint: str = ""
    region: str = ""
    ca_file: str = ""


def kind_of(scheme: str) -> type[Block]:
    """The class of credentials block for a storage URL's scheme; only that collection is imported.

    Raises:
        SettingsError: storage of that kind takes no credentials.
    """
    if scheme not in _KINDS:
        raise SettingsError(f"the repository block names credentials, which {scheme}: storage does not take")
    module, name, _ = _KINDS[scheme]
    kind: type[Block] = getattr(import_module(module), name)
    return kind


def credentials_of(scheme: str, block: Block) -> Credentials:
    """What a block of the right kind holds.

    Raises:
        SettingsError: it holds nothing that can be written into a file.
    """
    return _KINDS[scheme][2](block)


def _aws(block: Any) -> Credentials:
    secret = block.aws_secret_access_key
    if not block.aws_access_key_id or secret is None:
        raise SettingsError(
            "the AWS credentials block has no access key",
            hint="For a profile, a role or an instance's own credentials leave `credentials` of the repository empty.",
        )
    if block.assume_role_arn:
        raise SettingsError(
            f"the AWS credentials block assumes the role {block.assume_role_arn}, whose keys expire during a run",
            hint="Put the role into a profile of the worker's account (role_arn, source_profile), which boto3 renews, "
            "and leave `credentials` of the repository empty.",
        )
    if block.aws_client_parameters.verify is False:
        raise SettingsError(
            "the AWS credentials block turns the check of certificates off, which Seawall never does",
            hint="Name the certificate of your own authority: verify_cert_path there, or ca_file of the repository.",
        )
    lines = [
        "[default]",
        f"aws_access_key_id = {block.aws_access_key_id}",
        f"aws_secret_access_key = {secret.get_secret_value()}",
        *([f"aws_session_token = {block.aws_session_token}"] if block.aws_session_token else []),
    ]
    about = block.aws_client_parameters
    own = about.verify if not isinstance(about.verify, bool | None) else about.verify_cert_path
    return Credentials(
        SecretStr("\n".join(lines) + "\n"), about.endpoint_url or "", block.region_name or "", str(own or "")
    )


def _azure(block: Any) -> Credentials:
    if block.connection_string is not None:
        return Credentials(block.connection_string)
    names = ("tenant_id", "client_id", "client_secret")
    values = {name: getattr(block, name) for name in names}
    if not all(values.values()):
        raise SettingsError(
            "the Azure credentials block has neither a connection string nor a service principal",
            hint="For the identity of the host itself leave `credentials` of the repository empty.",
        )
    plain = {n: v.get_secret_value() if isinstance(v, SecretStr) else v for n, v in values.items()}
    return Credentials(SecretStr(json.dumps(plain)), block.account_url or "")


def _gcp(block: Any) -> Credentials:
    if block.service_account_info is not None:
        return Credentials(SecretStr(json.dumps(block.service_account_info.get_secret_value())))
    if block.service_account_file is not None:
        return Credentials(SecretStr(_read(block.service_account_file)))
    raise SettingsError(
        "the GCP credentials block has no service account",
        hint="For the host's own account leave `credentials` of the repository empty.",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the service account's file {path} cannot be read on this host: {error}") from error


def _sftp(block: Any) -> Credentials:
    if not block.private_key.get_secret_value():
        raise SettingsError("the SFTP key block has no private key")
    return Credentials(SecretStr(block.private_key.get_secret_value().strip() + "\n"))


_KINDS: dict[str, tuple[str, str, Callable[[Any], Credentials]]] = {
    "s3": ("prefect_aws", "AwsCredentials", _aws),
    "azure": ("prefect_azure", "AzureBlobStorageCredentials", _azure),
    "gs": ("prefect_gcp", "GcpCredentials", _gcp),
    "sftp": ("blocks.credentials", "SftpKey", _sftp),
}
