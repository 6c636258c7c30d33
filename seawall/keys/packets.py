"""The first packets of an OpenPGP message, read without GnuPG: whom it is for, and of which form it is.

Seawall writes what GnuPG 2.2 and every other implementation of RFC 4880 reads: public-key encrypted session key
packets of version 3 (tag 1, section 5.1), then one integrity-protected data packet of version 1 (tag 18, section
5.13). GnuPG 2.3 and later writes packet 20 (OCB) instead when every recipient's key advertises it, which others
cannot read; so what was written is looked at before it is trusted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from seawall.errors import Damaged, KeyUnusable

SESSION_KEY = 1
PROTECTED_DATA = 18
# Enough for the session keys of more than a hundred recipients.
HEAD_BYTES = 64 * 1024

_ARMOR = re.compile(
    r"-----BEGIN PGP MESSAGE-----\r?\n(?:[^\r\n]+\r?\n)*\r?\n(.*?)\r?\n(?:=[^\r\n]*\r?\n)?-----END PGP MESSAGE-----",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What a message begins with.

    Args:
        key_ids: the recipients' key ids, 16 hex digits each, in the order of the packets; zeros for a hidden one.
        session_key_versions: of the packets of tag 1.
        data_tag: the tag of the packet that holds the data.
        data_version: its version.
    """

    key_ids: tuple[str, ...]
    session_key_versions: tuple[int, ...]
    data_tag: int
    data_version: int

    @property
    def is_portable(self) -> bool:
        """Whether every reader of RFC 4880 with integrity protection opens it."""
        versions_fit = set(self.session_key_versions) == {3}
        return versions_fit and (self.data_tag, self.data_version) == (PROTECTED_DATA, 1)


def form_of(head: bytes) -> MessageForm:
    """The form of a binary message, from its first bytes (`HEAD_BYTES` suffice).

    Raises:
        Damaged: these are not the first packets of an encrypted message.
    """
    key_ids: list[str] = []
    versions: list[int] = []
    for tag, body in _packets(head):
        if not body:
            break
        if tag != SESSION_KEY:
            return MessageForm(tuple(key_ids), tuple(versions), tag, body[0])
        versions.append(body[0])
        key_ids.append(body[1:9].hex().upper() if body[0] == 3 and len(body) >= 9 else "")
    raise Damaged("this does not begin like an OpenPGP message")


def refuse_unportable(form: MessageForm, recipients: int) -> None:
    """Stop at a message that GnuPG 2.2 would not open for each of so many recipients.

    Raises:
        KeyUnusable: it is of another form.
    """
    if form.is_portable and len(form.key_ids) == recipients:
        return
    raise KeyUnusable(
        f"gpg wrote a message of packets {form.session_key_versions} and {form.data_tag} version {form.data_version} "
        f"for {len(form.key_ids)} of {recipients} recipients, which not every gpg can open",
        hint="A recipient's key advertises OCB (GnuPG 2.3 or later). Take that back with `gpg --edit-key KEY`, "
        "`setpref AES256 AES192 AES SHA512 SHA384 SHA256`, `save`, and import the public key again.",
    )


def dearmored(text: str) -> bytes:
    """The binary message from its armored form (RFC 4880, section 6); the optional checksum is left to gpg.

    Raises:
        Damaged: it is not an armored message.
    """
    match = _ARMOR.search(text)
    try:
        if match is not None:
            return base64.b64decode("".join(match[1].split()), validate=True)
    except ValueError as error:
        raise Damaged("the armor of an OpenPGP message is damaged") from error
    raise Damaged("this is no armored OpenPGP message")


def _packets(head: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of packets in turn; the last one's body may be cut. RFC 4880, section 4.2."""
    at = 0
    while at + 1 < len(head) and head[at] & 0x80:
        new_format = head[at] & 0x40
        tag = head[at] & 0x3F if new_format else (head[at] >> 2) & 0x0F
        start, length = _new_length(head, at + 1) if new_format else _old_length(head, at)
        yield tag, head[start : start + length]
        at = start + length


def _new_length(head: bytes, at: int) -> tuple[int, int]:
    first = head[at]
    if first < 192:
        return at + 1, first
    if first < 224:
        return at + 2, ((first - 192) << 8) + int.from_bytes(head[at + 1 : at + 2]) + 192
    if first < 255:
        # A partial length: only data packets have it, and nothing after them is looked at.
        return at + 1, 1 << (first & 0x1F)
    return at + 5, int.from_bytes(head[at + 1 : at + 5])


def _old_length(head: bytes, at: int) -> tuple[int, int]:
    size = (1, 2, 4, 0)[head[at] & 3]
    if size == 0:
        return at + 1, len(head)
    return at + 1 + size, int.from_bytes(head[at + 1 : at + 1 + size])
