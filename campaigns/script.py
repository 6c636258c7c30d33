"""Damage once more, with `recover.py` as the only reader: it refuses, or restores the very bytes.

It is a reader of its own, with less at hand: it has no BLAKE3, and proves unsealed frames by hashes of whole objects.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from campaigns import damage, fuzz
from campaigns.sample import SEGMENT_BYTES, SOURCE, Sample
from seawall.keys import KeyRing
from seawall.model import BackupLabel


@dataclass
class Tally:
    """How the script's restores of damaged repositories ended: `restored` right, `refused`, or a sentence."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run(made: Sample, ring: KeyRing, place: Path, number: int, seed: int) -> Tally:
    """So many damages, each restored from the newest backup (an incremental) by the script."""
    script, tally = fuzz.load_recover(), Tally()
    for found in damage.trials(made, number, seed):
        try:
            wrong = _restored(script, found, made, ring, place)
            tally.ends["wrong" if wrong else "restored"] += 1
            tally.wrong += [f"{found.sentence}: {what}" for what in wrong]
        except fuzz.caught(script):
            tally.ends["refused"] += 1
        except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
            tally.ends["wrong"] += 1
            tally.wrong.append(f"{found.sentence}: {type(error).__name__}: {error}")
        finally:
            for left in place.iterdir():
                shutil.rmtree(left)
    return tally


def _restored(script: ModuleType, found: damage.Damage, made: Sample, ring: KeyRing, place: Path) -> list[str]:
    """What of a restore is not what was backed up."""
    for name, data in found.content.items():
        path = place / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    repository = script.Repository(str(place / "repository"), None, None)
    # The script asks gpg for each message; what one opens to is the same each time.
    repository.gpg = lambda data: _opened(script, ring, data)
    label, into = made.labels[-1], place / "data"
    with contextlib.redirect_stderr(io.StringIO()):
        stored, left = script.stored_wal(repository, SOURCE), script.histories(repository, SOURCE)
        head = repository.document(f"sources/{SOURCE}/backups/{label}/head.json")
        script.refuse_gap(head, stored, left)
        script.restore(repository, SOURCE, str(label), str(into))
        script.restore_wal(repository, SOURCE, head, stored, left, str(into) + ".wal", False)
    return [*_wrong_files(made, label, into), *_wrong_wal(made, place / "data.wal")]


def _opened(script: ModuleType, ring: KeyRing, message: Any) -> bytes:
    from seawall.errors import SeawallError  # noqa: PLC0415 - only here a foreign error becomes the script's

    try:
        return b"".join(ring.decrypt_stream([bytes(message)]))
    except SeawallError as error:
        raise script.Unrecoverable(str(error)) from error


def _wrong_files(made: Sample, label: BackupLabel, into: Path) -> list[str]:
    spaces, held = "pg_tblspc/16400/", {"global/pg_control": "global/pg_control.held"}
    wrong = []
    for path, data in made.expected[label].items():
        place = into / held.get(path, path)
        if path.startswith(spaces):
            place = into.with_name("data.tablespaces") / "16400" / path.removeprefix(spaces)
        if not place.is_file() or place.read_bytes() != data:
            wrong.append(f"{path} is not what was backed up")
    return wrong


def _wrong_wal(made: Sample, into: Path) -> list[str]:
    """Each file of WAL is a stored one, or the beginning of one with zeros behind it."""
    known = {name.removesuffix(".tail").removesuffix(".partial"): data for name, data in made.wal.items()}
    wrong = []
    for path in into.iterdir():
        data, expected = path.read_bytes(), known.get(path.name, b"")
        if data != expected and (not expected.startswith(data.rstrip(b"\0")) or len(data) != SEGMENT_BYTES):
            wrong.append(f"{path.name} is not what was archived")
    return wrong
