"""A storage whose every put is read back, for places that compute no checksum of their own.

A later `stat` does not repeat what was read back: that would be memory, and not the storage's word.

Not guaranteed: that what was read came from the disk. A local file system answers from memory what it was just given,
so this finds what went wrong on the way into the storage; what the disk did to it later, `seawall verify` finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from seawall.storage.base import Bytes, Stat
from seawall.storage.wrappers import Wrapper


class Confirming(Wrapper):
    """Says of each new object which SHA-256 it has: the storage's own word, or else what comes back."""

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        stat = self.inner.put(name, chunks)
        if stat.sha256 is not None:
            return stat
        digest = hashlib.sha256()
        for piece in self.inner.get(name):
            digest.update(piece)
        return replace(stat, sha256=digest.hexdigest())
