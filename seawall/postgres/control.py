"""`global/pg_control`: what a cluster says of itself while no server need run.

Layouts of PostgreSQL 15 and 16 (pg_control version 1300), 17 (1700) and 18 (1800), from PostgreSQL's
`src/include/catalog/pg_control.h`, struct ControlFileData with CheckPoint inside. The file is written in place
by a running server, so a reader may meet half of a new version: the CRC-32C tells, and reading again cures it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from seawall.errors import ClusterError, ServerUnreachable
from seawall.wal import Lsn

CONTROL_FILE = "global/pg_control"
_HEAD = struct.Struct("=QII")
_BODY = struct.Struct("=QII i 4x q Q")
_CHECKPOINT = struct.Struct("=QII ? 3x i Q IIIIIII 4x q III 4x")
_RECOVERY = struct.Struct("=QQI 4x QQ ? 3x i ? 3x iiiii ? 3x I d")
_SIZES = struct.Struct("=IIIIIIII ? 3x I")
_SIGNEDNESS_LAYOUT = 1800
_LAYOUTS = (1300, 1700, _SIGNEDNESS_LAYOUT)
_NONCE_BYTES = 32
_POLYNOMIAL = 0x82F63B78


class ControlState(IntEnum):
    """PostgreSQL's DBState."""

    STARTUP = 0
    SHUTDOWNED = 1
    SHUTDOWNED_IN_RECOVERY = 2
    SHUTDOWNING = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


@dataclass(frozen=True, slots=True)
class ControlData:
    """The fields of pg_control that a backup or restore looks at.

    `minimums` are the settings that a standby or a recovery must have at least as high (max_connections …),
    by their name. `relation_segment_blocks` is how many blocks one file of a relation has at most.
    """

    system_identifier: int
    control_version: int
    catalog_version: int
    state: ControlState
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline: int
    minimum_recovery_lsn: Lsn
    minimum_recovery_timeline: int
    backup_start_lsn: Lsn
    backup_end_lsn: Lsn
    block_bytes: int
    relation_segment_blocks: int
    segment_bytes: int
    checksum_version: int
    minimums: tuple[tuple[str, int], ...]

    @property
    def checksums(self) -> bool:
        return self.checksum_version != 0


def read_control(
    source: Path | bytes, *, attempts: int = 50, pause: Callable[[], None] = lambda: time.sleep(0.01)
) -> ControlData:
    """Read and prove pg_control.

    Args:
        source: the data directory, the file itself, or the file's bytes.
        attempts: how often a file is read until its checksum is right; bytes are looked at once.
        pause: called between two attempts.

    Raises:
        ClusterError: missing, of a layout that is not known, or its checksum stays wrong.
    """
    if isinstance(source, bytes):
        return parse_control(source)
    return parse_control(read_control_bytes(source, attempts=attempts, pause=pause))


def read_control_bytes(
    source: Path, *, attempts: int = 50, pause: Callable[[], None] = lambda: time.sleep(0.01)
) -> bytes:
    """The whole file (8 KiB) as it is right to copy into a backup: read again until its checksum is right.

    Raises:
        ClusterError: missing, of a layout that is not known, or its checksum stays wrong.
    """
    path = source / CONTROL_FILE if source.is_dir() else source
    for attempt in range(attempts):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ClusterError(f"{path} cannot be read: {error.strerror}", hint="Is this a data directory?") from error
        if control_is_valid(data):
            return data
        if attempt + 1 < attempts:
            pause()
    parse_control(data)  # says exactly what is wrong
    raise ServerUnreachable(f"{path} keeps changing while it is read")


def control_is_valid(data: bytes) -> bool:
    """Whether the layout is known and the checksum right."""
    layout = _layout(data)
    if layout is None:
        return False
    (stored,) = struct.unpack_from("=I", data, _crc_offset(layout))
    return bool(stored == crc32c(data[: _crc_offset(layout)]))


def parse_control(data: bytes) -> ControlData:
    """The fields of a control file's bytes, after its checksum was proved.

    Raises:
        ClusterError: of a layout that is not known, or the checksum is wrong.
    """
    if _layout(data) is None:
        version = struct.unpack_from("=I", data, 8)[0] if len(data) >= _HEAD.size else 0
        raise ClusterError(
            f"pg_control has layout {version} ({len(data)} bytes); known are {', '.join(map(str, _LAYOUTS))}",
            hint="Seawall supports PostgreSQL 15 to 18 on hosts of this byte order.",
        )
    if not control_is_valid(data):
        raise ClusterError("the checksum of pg_control is wrong", hint="Restore global/pg_control from a backup.")
    return _fields(data)


def _layout(data: bytes) -> int | None:
    if len(data) < _HEAD.size:
        return None
    layout = int(_HEAD.unpack_from(data)[1])
    return layout if layout in _LAYOUTS and len(data) >= _crc_offset(layout) + 4 else None


def _crc_offset(layout: int) -> int:
    nonce_at = _BODY.size + _CHECKPOINT.size + _RECOVERY.size + _SIZES.size
    end = nonce_at + (1 if layout >= _SIGNEDNESS_LAYOUT else 0) + _NONCE_BYTES
    return (end + 3) & ~3


def _fields(data: bytes) -> ControlData:
    system_identifier, version, catalog, state, _time, checkpoint = _BODY.unpack_from(data)
    redo, timeline, *_ = _CHECKPOINT.unpack_from(data, _BODY.size)
    (_unlogged, minimum, minimum_timeline, backup_start, backup_end, _required, _level, _hints, *limits, _track, _align,
     _float) = _RECOVERY.unpack_from(data, _BODY.size + _CHECKPOINT.size)  # fmt: skip
    sizes = _SIZES.unpack_from(data, _BODY.size + _CHECKPOINT.size + _RECOVERY.size)
    names = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
             "max_locks_per_transaction")  # fmt: skip
    try:
        known = ControlState(state)
    except ValueError as error:
        raise ClusterError(f"pg_control states {state}, which is no state of a cluster") from error
    return ControlData(
        system_identifier, version, catalog, known, Lsn(checkpoint), Lsn(redo), timeline,
        Lsn(minimum), minimum_timeline, Lsn(backup_start), Lsn(backup_end),
        block_bytes=sizes[0], relation_segment_blocks=sizes[1], segment_bytes=sizes[3], checksum_version=sizes[-1],
        minimums=tuple(zip(names, limits, strict=True)),
    )  # fmt: skip


def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901 - the classic shift register
        entries.append(value)
    return tuple(entries)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) as PostgreSQL's `port/pg_crc32c.h` computes it; for small inputs only."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
