"""`python -m campaigns.golden DIRECTORY`: repositories of this format version, kept for readers of tomorrow.

Each is an archive of a small repository (`sample`) with its own sealing and codec, made once and then only read: two
full backups, an incremental, and WAL over two timelines. `expected.json` lists what a reader must make of them. Keys
are kept beside them. They are test keys: everybody has their private parts and their passphrase.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from campaigns import sample, scenes
from campaigns.sample import QuickRing, Sample
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository.layout import FORMAT

SEED = 20261123
VARIANTS = (
    (SealingMode.NONE, Compression.NONE),
    (SealingMode.NONE, Compression.GZIP),
    (SealingMode.AES_256_GCM, Compression.ZSTD),
    (SealingMode.AES_256_GCM, Compression.LZ4),
    (SealingMode.OPENPGP, Compression.LZ4),
)
_KEYS = {"operations": "test-key-operations.asc", "escrow": "test-key-escrow.asc"}
_README = """# Golden repositories of format {format}

Made once by `python -m campaigns.golden`, and never again for this format: a reader that cannot read them any more is
wrong, not they. `expected.json` has the SHA-256 of each file of each backup and of each file of WAL.

**The keys here are test keys.** Their private parts and their passphrase (`{passphrase}`) are public.
Seal nothing for them.
"""


class Dull(random.Random):
    """Randomness that a codec makes short, so that golden repositories stay small."""

    def randbytes(self, n: int) -> bytes:
        return (super().randbytes(24) * (n // 24 + 1))[:n]


def name_of(mode: SealingMode, compression: Compression) -> str:
    return f"format-{FORMAT}-{mode.value}-{compression.value}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.golden", description=__doc__)
    parser.add_argument("directory", type=Path, help="where; must not exist yet")
    options = parser.parse_args()
    options.directory.mkdir(parents=True)
    make(options.directory)
    return 0


def make(directory: Path) -> None:
    """Write all of them, their keys, and what is expected of their readers."""
    with scenes.workplace() as place, sample.make_ring(place / "ring") as ring:
        for name, file in _KEYS.items():
            (fingerprint,) = sample.recipients(ring, name)
            (directory / file).write_text(ring.export_secret(fingerprint), encoding="ascii")
        expected = {}
        for mode, compression in VARIANTS:
            made = sample.make(ring, mode, compression, SEED, randomness=Dull(SEED))
            name = name_of(mode, compression)
            (directory / f"{name}.tar.gz").write_bytes(packed(made.content()))
            expected[name] = listing(made)
    (directory / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    readme = _README.format(format=FORMAT, passphrase=sample.PASSPHRASE)
    (directory / "README.md").write_text(readme, encoding="utf-8")


def listing(made: Sample) -> dict[str, dict[str, str] | dict[str, dict[str, str]]]:
    """Hashes of what a restore gives: of each backup that is not let go, and of WAL."""
    backups = {str(label): _hashes(made.expected[label]) for label in made.labels[1:]}
    return {"backups": backups, "wal": _hashes(made.wal)}


def _hashes(content: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


def packed(content: Mapping[str, bytes]) -> bytes:
    """One archive of all objects, without times and owners."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in sorted(content):
            info = tarfile.TarInfo(name)
            info.size = len(content[name])
            archive.addfile(info, io.BytesIO(content[name]))
    return gzip.compress(plain.getvalue(), 9, mtime=0)


def unpacked(archive: Path) -> dict[str, bytes]:
    """Every object by its name."""
    with tarfile.open(archive) as opened:
        return {member.name: _content(opened, member) for member in opened}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


@contextmanager
def keys(directory: Path, home: Path) -> Iterator[KeyRing]:
    """A ring with the test keys."""
    with QuickRing(home) as ring:
        for file in _KEYS.values():
            ring.import_keys((directory / file).read_text(encoding="ascii"))
        yield ring


if __name__ == "__main__":
    sys.exit(main())
