"""One contract for every place that backups lie in.

`open_storage` finds the driver by the scheme of the URL and imports nothing but that, so that the WAL path never pays
for drivers it does not use. The drivers' modules fulfil `base.Storage` and offer `open_url(url, settings, sleep)`.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Protocol, cast

from seawall.errors import SettingsError
from seawall.settings import Confirm, RepositorySettings
from seawall.storage.base import Storage
from seawall.storage.confirm import Confirming
from seawall.storage.wrappers import Limited, Retrying, RetryPolicy, Sleep, Throttled, TokenBucket

DRIVERS = {
    "file": "seawall.storage.local",
    "memory": "seawall.storage.memory",
    "s3": "seawall.storage.s3",
    "azure": "seawall.storage.azure",
    "gs": "seawall.storage.gcs",
    "sftp": "seawall.storage.sftp",
}

# Settings that only a storage on the other side of a network understands.
_REMOTE = ("endpoint", "region", "credentials_file", "deleting_credentials_file", "ca_file", "known_hosts_file")


class _Driver(Protocol):
    def open_url(self, url: str, settings: RepositorySettings, sleep: Sleep) -> Storage: ...


def open_driver(url: str, settings: RepositorySettings | None = None, sleep: Sleep = time.sleep) -> Storage:
    """The bare driver for a URL or an absolute path (which is taken as it is: `%20` in a path is no space).

    Args:
        settings: how the place is reached, where it is a remote one; their own `url` is not looked at.
        sleep: called with seconds between attempts of a request inside a put; may raise to cancel.

    Raises:
        SettingsError: no driver knows the URL, or it cannot make use of a setting.
    """
    settings = settings or RepositorySettings()
    scheme = "file" if url.startswith("/") else url.partition(":")[0]
    if scheme not in DRIVERS:
        known = ", ".join(f"{name}:" for name in DRIVERS)
        raise SettingsError(
            f"no storage driver for {_without_secret(url)!r}", hint=f"Give an absolute path or one of {known}"
        )
    useless = [name for name in _REMOTE if getattr(settings, name)] if scheme in ("file", "memory") else []
    if useless:
        raise SettingsError(f"{', '.join(useless)} mean nothing to a {scheme}: storage", hint="Remove them.")
    return cast(_Driver, import_module(DRIVERS[scheme])).open_url(url, settings, sleep)


def open_storage(
    settings: RepositorySettings, *, bucket: TokenBucket | None = None, sleep: Sleep = time.sleep
) -> Storage:
    """The storage that the settings describe: retried, limited in concurrency and bandwidth.

    Args:
        bucket: bandwidth to share with other storages or to change while running; made from the settings when omitted.
        sleep: called with seconds between attempts and while waiting for bandwidth; may raise to cancel
            (`wrappers.cancellable_sleep`).

    Raises:
        SettingsError: no driver knows the URL, or a number makes no sense.
    """
    if settings.concurrency < 1 or settings.attempts < 1:
        raise SettingsError("[repository] concurrency and attempts must be at least 1")
    bucket = bucket or TokenBucket(settings.bandwidth_bytes_per_second, sleep=sleep)
    limited = Limited(Throttled(open_driver(settings.url, settings, sleep), bucket), settings.concurrency)
    retrying = Retrying(limited, RetryPolicy(attempts=settings.attempts), sleep=sleep)
    return Confirming(retrying) if settings.confirm is Confirm.HASH else retrying


def _without_secret(url: str) -> str:
    """The URL up to what may hold a password or token."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"
