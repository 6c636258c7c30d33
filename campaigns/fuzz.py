"""Fuzz: every parser of bytes from outside gets what was written, changed at random; only errors of ours may come out.

Three kinds of change: of bytes; of JSON values, so that what is well formed but wrong comes past the first check; and
changes whose checksum is made right again, so that what lies behind the checksum is reached.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import struct
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from campaigns import damage, sample
from seawall import settings
from seawall.archive.intake import read_header, refuse_other_place
from seawall.audit import AuditLog
from seawall.codec import BundleReader, DataKey, open_bytes, read_envelope, read_index, seal_bytes
from seawall.codec.index import decoded_index
from seawall.errors import SeawallError
from seawall.keys import KeyRing, packets
from seawall.model import BackupLabel, Compression, RecoveryTarget, SealingMode
from seawall.postgres import control
from seawall.postgres.tar import TarReader
from seawall.repository import Repository, SourceArea, blocks, documents, heads, lease, manifest
from seawall.repository.layout import SourceLayout
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment, TimelineHistory

_RECOVER = Path(__file__).parent.parent / "seawall" / "standalone" / "recover.py"
_KEY = DataKey("campaign", bytes(range(32)))
_JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e300, 0.5, "", "x", "\udc80", "../..", "/etc", "0/0",
    "FFFFFFFF/FFFFFFFF", "9" * 50, [], [[]], {}, {"a": 1}, [1, 2, 3, 4, 5, 6, 7], [None] * 6,
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """One reader of bytes from outside.

    Args:
        seeds: what it reads in good days.
        parse: reads all of it.
        allowed: what may come out besides a result.
        changes: ways to change a seed.
        proves: whether it must refuse everything but its seeds.
    """

    name: str
    seeds: Sequence[bytes] = field(repr=False)
    parse: Callable[[bytes], object] = field(repr=False)
    allowed: tuple[type[Exception], ...] = field(default=(SeawallError,), repr=False)
    changes: Sequence[Callable[[bytes, random.Random], bytes]] = field(default=(), repr=False)
    proves: bool = False

    def try_one(self, data: bytes) -> str:
        """How it ended: `read`, the name of an allowed error, or a sentence about one that is not."""
        try:
            self.parse(data)
        except self.allowed as error:
            return type(error).__name__
        except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
            return f"! {self.name}: {type(error).__name__}: {error} from {data[:200]!r}"
        if self.proves and data not in self.seeds:
            return f"! {self.name}: read without a word from {data[:200]!r}"
        return "read"


# ---- changes


def some_bytes(data: bytes, randomness: random.Random) -> bytes:
    """One to three changes as a bad disk makes them."""
    ways = (damage.flip, damage.overwrite, damage.truncate, damage.cut, damage.lengthen)
    for _ in range(randomness.choice((1, 1, 2, 3))):
        data = randomness.choice(ways)(data, randomness) if data else randomness.randbytes(4)
    return data


def noise(_data: bytes, randomness: random.Random) -> bytes:
    return randomness.randbytes(randomness.choice((0, 1, 12, 40, 512, 4096)))


def json_values(data: bytes, randomness: random.Random) -> bytes:
    """Lines of JSON with a value, a member or an item exchanged; each line stays JSON."""
    lines = data.split(b"\n")
    index = randomness.randrange(len(lines))
    try:
        value = json.loads(lines[index])
    except ValueError:
        return some_bytes(data, randomness)
    lines[index] = json.dumps(_changed(value, randomness), separators=(",", ":")).encode()
    if len(lines) > 1 and randomness.random() < 0.1:
        lines.insert(index, lines[randomness.randrange(len(lines))])
    return b"\n".join(lines)


def _changed(value: Any, randomness: random.Random) -> Any:
    if isinstance(value, dict) and value and randomness.random() < 0.85:
        member = randomness.choice(sorted(value))
        if randomness.random() < 0.15:
            return {key: other for key, other in value.items() if key != member}
        return {**value, member: _changed(value[member], randomness)}
    if isinstance(value, list) and value and randomness.random() < 0.85:
        index = randomness.randrange(len(value))
        if randomness.random() < 0.15:
            return value[:index] + value[index + 1 :]
        return [*value[:index], _changed(value[index], randomness), *value[index + 1 :]]
    return randomness.choice(_JUNK)


def document_values(data: bytes, randomness: random.Random, *, name: str = "x") -> bytes:
    """A value of a document exchanged, its hash and name made right again."""
    value = _changed(json.loads(data), randomness)
    if not isinstance(value, dict):
        return some_bytes(data, randomness)
    value = {key: other for key, other in value.items() if key not in ("sha256", "object")}
    try:
        return documents.encode(value, name=name)
    except UnicodeEncodeError:
        return some_bytes(data, randomness)


def control_fields(data: bytes, randomness: random.Random) -> bytes:
    """A field of pg_control, with the checksum made right again."""
    changed = bytearray(data)
    changed[randomness.randrange(288)] ^= 1 << randomness.randrange(8)
    at = control._crc_offset(struct.unpack_from("=I", data, 8)[0])
    struct.pack_into("=I", changed, at, control.crc32c(bytes(changed[:at])))
    return bytes(changed)


def tar_header(data: bytes, randomness: random.Random) -> bytes:
    """A field of the first header, with its checksum made right again."""
    changed = bytearray(some_bytes(data[:512], randomness).ljust(512, b"\0")[:512])
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed) + data[512:]


# ---- the parsers


def parsers(ring: KeyRing) -> tuple[Parser, ...]:
    """All of them, with seeds from a sample repository."""
    made = sample.make(ring, SealingMode.NONE, Compression.ZSTD, 1)
    content = made.content()
    sealed = sample.make(ring, SealingMode.AES_256_GCM, Compression.NONE, 1)
    return (
        *_of_the_codec(content),
        *_of_the_repository(made, content),
        *_in_their_places(made, content, ring),
        *_in_their_places(sealed, sealed.content(), ring),
        *_of_postgres(),
        *_small(ring),
        *_recover(made),
    )


def _of_the_codec(content: Mapping[str, bytes]) -> Iterator[Parser]:
    def key_for(_key_id: str) -> DataKey:
        return _KEY

    sealed = [
        seal_bytes("wal", "x", b"some bytes " * 40, compression=codec, key=key)
        for codec in Compression
        for key in (None, _KEY)
    ]
    bundles = {name: data for name, data in content.items() if "/bundles/" in name}
    name = SourceLayout("shop").logical(next(iter(bundles)))
    data = next(iter(bundles.values()))
    both = (some_bytes, noise)
    yield Parser("envelope", sealed, lambda data: read_envelope(data, "x"), changes=both)
    yield Parser("frames", sealed, lambda data: open_bytes(data, "x", key_for), changes=both, proves=True)
    yield Parser("bundle", [data], lambda data: list(BundleReader([data], name, key_for)), changes=both, proves=True)
    yield Parser("bundle index", [data], lambda data: _index(data, name, key_for), changes=both)
    index = json.dumps({"entries": [["a", 0, 0, 10, "0" * 64, 8192]], "frames": [[10, 10]]}).encode()
    yield Parser("index", [index], lambda data: decoded_index(data, "x"), changes=(*both, json_values))


def _index(data: bytes, name: str, key_for: Callable[[str], DataKey]) -> object:
    return read_index(lambda offset, length: [data[offset : offset + length]], len(data), name, key_for)


def _of_the_repository(made: sample.Sample, content: Mapping[str, bytes]) -> Iterator[Parser]:
    label = made.labels[-1]
    layout = SourceLayout("shop")
    small = [data for name, data in content.items() if name.endswith(".json")]
    yield Parser("document", small, lambda d: documents.decode(d, name="x"), changes=(some_bytes, document_values))
    head = documents.decode(content[layout.head(label)], name=layout.head(label))
    text = [json.dumps(head).encode()]
    yield Parser("head", text, lambda d: heads.from_document(_object(d), name="x"), changes=(json_values,))
    logical = layout.logical(layout.manifest(label))
    plain = open_bytes(content[layout.manifest(label)], logical, lambda _: _KEY)
    yield Parser("manifest", [plain], _read_manifest, changes=(some_bytes, json_values, json_values))
    known = [blocks.FileBlocks("base/1", 9000, 1, 1, 1, 8192, bytes(32))]
    mapped = b"".join(blocks.encode(str(label), 1, known))
    yield Parser("block map", [mapped], _read_blocks, changes=(some_bytes, json_values, json_values))


def _in_their_places(made: sample.Sample, content: Mapping[str, bytes], ring: KeyRing) -> Iterator[Parser]:
    """Readers of documents, each with one document that is right in itself but says something else."""
    readers: Mapping[str, Callable[[MemoryStorage], object]] = {
        "hold": lambda storage: SourceArea(storage, sample.SOURCE).holds(damage.LATER),
        "lease": lambda storage: lease.newest(storage, SourceLayout(sample.SOURCE)),
        "source identity": lambda storage: SourceArea(storage, sample.SOURCE).identity(),
        "repository identity": Repository.open,
        "audit record": lambda storage: AuditLog(storage).verify(),
        "list of objects": lambda storage: SourceArea(storage, sample.SOURCE).stored_objects(made.labels[-1]),
    }
    for kind, read in readers.items():
        names = sorted(name for name in content if damage.kind_of(name) == kind and "released" not in name)
        # The first record of the audit can stand alone; of everything else the newest counts.
        name = names[0] if kind == "audit record" else names[-1]
        yield Parser(f"{kind} in its place", [content[name]], partial(_placed, read, name),
                     changes=(partial(document_values, name=name),))  # fmt: skip
    wrapped = [name for name in content if damage.kind_of(name) == "wrapped key"]
    for name in wrapped[:1]:
        unwrap = partial(_unwrapped, ring, name.split("/")[-2])
        yield Parser("wrapped key in its place", [content[name]], partial(_placed, unwrap, name),
                     changes=(partial(document_values, name=name),))  # fmt: skip


def _unwrapped(ring: KeyRing, key_id: str, storage: MemoryStorage) -> object:
    return SourceArea(storage, sample.SOURCE).keychain.unwrap(key_id, ring)


def _placed(read: Callable[[MemoryStorage], object], name: str, data: bytes) -> object:
    storage = MemoryStorage()
    storage.put(name, [data])
    return read(storage)


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    return value if isinstance(value, dict) else {}


def _read_manifest(data: bytes) -> object:
    reader = manifest.Reader([data[:100], data[100:]], name="x")
    return reader.objects, reader.specials, list(reader.files())


def _read_blocks(data: bytes) -> object:
    return list(blocks.Reader([data[:50], data[50:]], name="x").files())


def _of_postgres() -> Iterator[Parser]:
    segment = Segment(2, 17, sample.SEGMENT_BYTES)
    wal = sample.wal_bytes(segment, random.Random(1))
    yield Parser("WAL header", [wal[:64]], lambda d: refuse_other_place(read_header(d, segment.name), segment.name),
                 changes=(some_bytes, noise))  # fmt: skip
    history = b"# a comment\n1\t0/3000000\tno recovery target specified\n2\tA/BC\tbefore 2000-01-01\n"
    yield Parser("timeline history", [history], lambda d: TimelineHistory.parse(3, d.decode()), (ValueError,),
                 (some_bytes, noise))  # fmt: skip
    files = [_control(layout) for layout in (1300, 1700, 1800)]
    yield Parser("pg_control", files, control.parse_control, changes=(some_bytes, noise, control_fields))
    yield Parser("tar stream", [_tar()], _read_tar, changes=(some_bytes, noise, tar_header, tar_header))


def _control(layout: int) -> bytes:
    data = bytearray(8192)
    struct.pack_into("=QIIi", data, 0, sample.SYSTEM_IDENTIFIER, layout, 202300000, 6)
    at = control._crc_offset(layout)
    struct.pack_into("=I", data, at, control.crc32c(bytes(data[:at])))
    return bytes(data)


def _tar() -> bytes:
    import tarfile  # noqa: PLC0415 - makes the one seed

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("PG_VERSION", "base/" + "x" * 120, "base/é"):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    return out.getvalue()


def _read_tar(data: bytes) -> object:
    reader, found = TarReader(iter([memoryview(data[:700]), memoryview(data[700:])])), []
    buffer = memoryview(bytearray(1000))
    while (member := reader.next()) is not None:
        found.append(member)
        reader.readinto(buffer)
    return found


def _small(ring: KeyRing) -> Iterator[Parser]:
    both = (some_bytes, noise)
    as_text = (ValueError, SeawallError)
    yield Parser("LSN", [b"16/B374D848"], lambda d: Lsn.parse(_text(d)), (ValueError,), both)
    names = [b"0000000100000000000000FF", b"00000001FFFFFFFF00000FFF"]
    yield Parser("segment name", names, lambda d: Segment.parse(_text(d), 1 << 20).next().name, (ValueError,), both)
    labels = [b"20261123T020000Z-full", b"20261123T060000Z-incr-on-20261123T020000Z"]
    yield Parser("label", labels, lambda d: BackupLabel.parse(_text(d)), changes=both)
    times = [b"2026-11-23T14:05:00+01:00", b"2026-11-23 13:05:00Z"]
    yield Parser("target time", times, lambda d: RecoveryTarget.at_time(_text(d)), changes=both)
    yield Parser("settings", [_SETTINGS], lambda d: settings.parse(tomllib.loads(_text(d))), as_text, both)
    wrapped = ring.wrap(b"a secret", sample.recipients(ring)).encode()
    yield Parser("armored message", [wrapped], lambda d: packets.form_of(packets.dearmored(_text(d))), changes=both)
    yield Parser("packets", [packets.dearmored(wrapped.decode())], packets.form_of, changes=both)


_SETTINGS = b"""
[repository]
url = "/var/lib/seawall"
attempts = 3
[sealing]
mode = "none"
[sources.shop]
conninfo = "host=127.0.0.1"
workers = 2
retention_days = 30
"""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# ---- recover.py, which has parsers of its own


def _recover(made: sample.Sample) -> Iterator[Parser]:
    script = load_recover()
    caught_ones = caught(script)
    content, layout, label = made.content(), SourceLayout("shop"), made.labels[-1]
    small = [data for name, data in content.items() if name.endswith(".json")]
    yield Parser(
        "recover.py document", small, lambda d: script.document(d, "x"), caught_ones, (some_bytes, document_values)
    )
    sealed = [seal_bytes("wal", "x", b"bytes " * 90, compression=codec, key=key)
              for codec in Compression for key in (None, _KEY)]  # fmt: skip
    frames = lambda d: list(script.frames(memoryview(d), "x", lambda _: _KEY.secret))  # noqa: E731 - one line of a table
    yield Parser("recover.py frames", sealed, frames, caught_ones, (some_bytes, noise))
    logical = layout.logical(layout.manifest(label))
    plain = open_bytes(content[layout.manifest(label)], logical, lambda _: _KEY)
    head = content[layout.head(label)]
    changes = (some_bytes, json_values, json_values)
    yield Parser("recover.py manifest", [plain], partial(_manifest, script, head, logical), caught_ones, changes)
    yield Parser(
        "recover.py time", [b"2026-11-23 14:05:00+00"], lambda d: script.moment(_text(d)), caught_ones, (some_bytes,)
    )
    yield Parser("recover.py LSN", [b"16/B374D848"], lambda d: script.position(_text(d)), caught_ones, (some_bytes,))


def caught(script: ModuleType) -> tuple[type[Exception], ...]:
    """What the script's `main` turns into a sentence and an exit code."""
    return (script.Unrecoverable, OSError, ValueError, LookupError, TypeError, AttributeError)


def load_recover() -> ModuleType:
    """The script as a module, which its `main` keeps from running."""
    spec = importlib.util.spec_from_file_location("recover_of_campaign", _RECOVER)
    if spec is None or spec.loader is None:
        raise ImportError(f"{_RECOVER} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _manifest(script: ModuleType, head: bytes, logical: str, plain: bytes) -> object:
    """The script's reader of manifests, with a repository of which only this manifest exists."""
    sealed = seal_bytes("manifest", logical, plain, compression=Compression.NONE, key=None)
    base = f"sources/{logical.removesuffix('/manifest')}"
    known = script.document(head, f"{base.removesuffix('/manifest')}/head.json")
    known["manifest_sha256"] = hashlib.sha256(sealed).hexdigest()
    held = object.__new__(script.Repository)
    held.document = lambda _name: known
    held.read = lambda _name: sealed
    held.exists = lambda _name: True
    return script.manifest(held, "shop", base.rsplit("/", 1)[1])


# ---- the campaign


@dataclass
class Tally:
    """Inputs by parser, and how each ended."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def total(self) -> int:
        return sum(self.ends.values())

    def print(self) -> None:
        for name in dict.fromkeys(name for name, _ in self.ends):
            ends = {end: count for (known, end), count in sorted(self.ends.items()) if known == name}
            print(f"{name:<24}{sum(ends.values()):>8}  {', '.join(f'{end} {count}' for end, count in ends.items())}")
        for line in list({line.split(" from ")[0]: line for line in self.wrong}.values())[:50]:
            print(f"  {line}")


def inputs(parser: Parser, number: int, randomness: random.Random) -> Iterator[bytes]:
    for _ in range(number):
        yield randomness.choice(parser.changes)(randomness.choice(parser.seeds), randomness)


def run(ring: KeyRing, seed: int, number: int, known: Iterable[Parser] | None = None) -> Tally:
    """So many inputs for each parser."""
    tally = Tally()
    for parser in parsers(ring) if known is None else known:
        for data in inputs(parser, number, random.Random(f"{seed} {parser.name}")):
            end = parser.try_one(data)
            if end.startswith("!"):
                tally.wrong.append(end)
                end = "other"
            tally.ends[parser.name, end] += 1
    return tally
