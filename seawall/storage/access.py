"""How a remote storage is reached: its place, its address, its certificate, its credentials.

Rules for all drivers: TLS with the certificate checked, except on the loopback interface; credentials come from a file
that nobody else can read, or from the vendor's own places, and never from a URL.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from seawall.errors import NameRefused, SettingsError
from seawall.settings import RepositorySettings
from seawall.storage.base import checked_prefix

_LARGEST_CREDENTIALS = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket (or container) and the prefix of all names in it, which is empty or ends with `/`."""

    bucket: str
    prefix: str


def bucket_place(url: str, scheme: str) -> Place:
    """The place that `scheme://bucket/prefix` names.

    Raises:
        SettingsError: it holds a user, a port, a query, or no bucket.
    """
    parts = split(url)
    plain = parts.netloc and "@" not in parts.netloc and ":" not in parts.netloc
    if not plain or parts.query or parts.fragment:
        raise SettingsError(f"a storage URL of this kind is {scheme}://BUCKET or {scheme}://BUCKET/PREFIX")
    prefix = parts.path.strip("/")
    try:
        return Place(parts.netloc, f"{checked_prefix(prefix)}/" if prefix else "")
    except NameRefused as error:
        raise SettingsError(
            f"the prefix {prefix!r} in the storage's URL is refused",
            hint="Its parts are letters, digits and . _ = + -, and begin with a letter or digit.",
        ) from error


def split(url: str) -> SplitResult:
    """The parts of a URL.

    Raises:
        SettingsError: it is none. The message does not repeat it, because it may hold a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"the storage's URL is malformed: {error}") from error
    return parts


def secured_endpoint(settings: RepositorySettings) -> str:
    """The endpoint of the settings without a slash at its end; empty for the vendor's own.

    Raises:
        SettingsError: it is no HTTPS address, or plain HTTP beyond the loopback interface, or holds a secret.
    """
    if not settings.endpoint:
        return ""
    parts = split(settings.endpoint)
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise SettingsError("endpoint must be https://HOST, without user, password or query")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise SettingsError(
            f"endpoint {settings.endpoint} would send backups and credentials without TLS",
            hint="Use https; an authority of your own is named with ca_file. Plain HTTP is for this host only.",
        )
    return settings.endpoint.rstrip("/")


def service_of(settings: RepositorySettings) -> str:
    """The address of the service that a place is in, as far as settings say; names of buckets are each service's own.

    An account of Azure's may be named by its connection string alone.
    """
    if settings.endpoint or not settings.url.startswith("azure:"):
        return settings.endpoint.rstrip("/").lower()
    try:
        text = credentials(settings) or ""
    except SettingsError:
        return ""
    said = dict(part.strip().partition("=")[::2] for part in text.split(";"))
    return (said.get("BlobEndpoint") or said.get("AccountName") or "").rstrip("/").lower()


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine's own address, by its text and without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def certificates(settings: RepositorySettings) -> str | bool:
    """What an HTTP client checks certificates with: a file of one's own, or the usual authorities.

    Raises:
        SettingsError: the file cannot be read, or holds no certificates.
    """
    if settings.ca_file is None:
        return True
    if not settings.ca_file.is_file():
        raise SettingsError(f"ca_file {settings.ca_file} is not there")
    try:
        # Said now: a client would call a file that holds none an outage, and try again.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.ca_file)
    except OSError as error:
        raise SettingsError(
            f"ca_file {settings.ca_file} holds no certificates that can be read: {error.strerror or error}",
            hint="Write those of your authority into it, in PEM: -----BEGIN CERTIFICATE----- and what follows.",
        ) from error
    return str(settings.ca_file)


def credentials(settings: RepositorySettings) -> str | None:
    """The text of the credentials file, or None if the settings name none.

    Raises:
        SettingsError: it cannot be read, or is open to other accounts.
    """
    return None if settings.credentials_file is None else _closed_text(settings.credentials_file)


def _closed_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = path.stat().st_mode & 0o777
            if mode & 0o077:
                raise SettingsError(
                    f"credentials_file {path} is open to other accounts (mode {mode:04o})", hint=f"chmod 600 {path}"
                )
            return file.read(_LARGEST_CREDENTIALS)
    except OSError as error:
        raise SettingsError(f"credentials_file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"credentials_file {path} is not text") from error
