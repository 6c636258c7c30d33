"""Where alerts go, as a Prefect block."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from blocks.loading import loaded
from seawall.catalog import Severity
from seawall.errors import SettingsError


class NotificationChannel(Block):
    """Apprise URLs; they hold passwords and tokens, so they are secrets."""

    _block_type_name: ClassVar[str] = "Seawall notification channel"
    _block_type_slug: ClassVar[str] = "seawall-notification-channel"
    _description: ClassVar[str] = "Where Seawall sends alerts, as Apprise URLs."

    urls: list[SecretStr] = Field(default_factory=list, description="Apprise URLs, such as mailtos:// or ntfys://")
    minimum_severity: Severity = Field(default=Severity.HIGH, description="what is less severe is not sent")
    tell_resolved: bool = Field(default=True, description="whether it is also said when something is well again")


def channel_of(name: str) -> NotificationChannel | None:
    """The channel of that name as it is now; None without a name.

    Raises:
        SettingsError: Prefect has no such block.
    """
    return loaded(NotificationChannel, name) if name else None


def wanted(channel: NotificationChannel, severity: Severity) -> bool:
    """Whether a channel hears of alerts of that severity."""
    return severity.rank >= channel.minimum_severity.rank


def send(channel: NotificationChannel, severity: Severity, title: str, body: str) -> bool:
    """Send an alert to every URL of a channel; whether all took it (true when it is below the channel's threshold).

    Raises:
        SettingsError: a URL is none that Apprise knows; the message says which one by its number, not its text.
    """
    if not wanted(channel, severity):
        return True
    # Most runs send nothing, and Apprise knows more than a hundred services that take time to import.
    import apprise  # noqa: PLC0415 - see the line above

    # What it logs of a failure may quote the URL.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    sender = apprise.Apprise()
    for number, url in enumerate(_plain(channel.urls), 1):
        if not sender.add(url):
            raise SettingsError(f"URL {number} of the notification channel is none that Apprise knows")
    # Messages quote what programs said, which must arrive as it is and not as markup.
    return bool(sender.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT))


def _plain(urls: Sequence[SecretStr]) -> list[str]:
    return [url.get_secret_value() for url in urls]
