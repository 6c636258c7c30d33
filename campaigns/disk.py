"""What a power cut leaves of the files below some directories, in the worst case that POSIX admits.

A file's bytes last from its fsync on, a name from the fsync of its folder on (fsync(2)); of all that came later, any
part may be there or not, in any order. A journaling file system usually keeps more. `Recorder` writes down what a
process does, `Disk` replays it up to a moment, and `after_cut` chooses what of the unsynced part was kept.

Not modelled: a disk that acknowledges a flush which it did not do, sectors that are torn within a synced file, and
times and modes of files.
"""

from __future__ import annotations

import enum
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Call = Callable[..., Any]


class Kept(enum.Enum):
    """What of the unsynced part a cut leaves."""

    NOTHING = "nothing"
    NAMES = "all names, and no bytes"
    SOME = "some of it, by chance"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a process did, or said to others (`promise`); which members are set depends on `kind`.

    Args:
        name, target: paths; of a `sync`, the file or folder.
        file: its device and inode; the next file may get the same once this one has no name.
        content: what a file held when it was synced.
    """

    kind: str
    name: str = ""
    target: str = ""
    file: tuple[int, int] = (0, 0)
    content: bytes | None = None


class Recorder:
    """Writes down, in their true order, the steps of this process that change what is below some directories."""

    def __init__(self, places: Sequence[Path], log: Path) -> None:
        self._places = tuple(f"{place}/" for place in places)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.RLock()
        self._write, self._read_link = os.write, os.readlink

    def install(self) -> None:
        """Put itself before the operating system."""
        for name in ("fsync", "fdatasync"):
            self._before(name, self._synced)
        self._after("open", self._opened)
        for name in ("mkdir", "rmdir"):
            self._after(name, lambda _result, a, o, kind=name: self._named(kind, _path(a[0], o.get("dir_fd"))))
        for name in ("unlink", "remove"):
            self._after(name, lambda _result, a, o: self._named("unlink", _path(a[0], o.get("dir_fd"))))
        for name in ("rename", "replace"):
            self._after(name, lambda _result, a, o: self._two("rename", a, o))
        self._after("link", lambda _result, a, o: self._two("link", a, o))

    def promise(self, what: str) -> None:
        """Note that others were told something that must be true from now on."""
        self._note(Step("promise", what))

    def _before(self, name: str, hear: Call) -> None:
        call = getattr(os, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            # What a sync covers is what the file held before it was asked for.
            with self._lock:
                hear(*arguments)
                return call(*arguments, **options)

        setattr(os, name, recorded)

    def _after(self, name: str, hear: Call) -> None:
        call = getattr(os, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                result = call(*arguments, **options)
                hear(result, arguments, options)
                return result

        setattr(os, name, recorded)

    def _synced(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = self._read_link(f"/proc/self/fd/{number}")
        # What has no name any more is not found again after a cut either.
        if not f"{path}/".startswith(self._places) or path.endswith(" (deleted)"):
            return
        if Path(path).is_dir():
            self._note(Step("sync folder", path))
            return
        found = os.fstat(number)
        with open(f"/proc/self/fd/{number}", "rb") as file:
            content = file.read()
        self._note(Step("sync", path, file=(found.st_dev, found.st_ino), content=content))

    def _opened(self, descriptor: int, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        if not arguments[1] & os.O_CREAT:
            return
        path = _path(arguments[0], options.get("dir_fd"))
        found = os.fstat(descriptor)
        # One that was there already is known, and its step says nothing new.
        self._named("create", path, (found.st_dev, found.st_ino))

    def _two(self, kind: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        origin = _path(arguments[0], options.get("src_dir_fd"))
        self._named(kind, origin, target=_path(arguments[1], options.get("dst_dir_fd")))

    def _named(self, kind: str, path: str, file: tuple[int, int] = (0, 0), target: str = "") -> None:
        if path.startswith(self._places) or target.startswith(self._places):
            self._note(Step(kind, path, target, file))

    def _note(self, step: Step) -> None:
        with self._lock:
            data = pickle.dumps(step)
            self._write(self._log, len(data).to_bytes(8, "big") + data)


def steps(log: Path) -> list[Step]:
    """What a recorder wrote down; it is our own process's file."""
    data, found, at = log.read_bytes(), [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 8], "big")
        found.append(pickle.loads(data[at + 8 : at + 8 + size]))  # noqa: S301 - written by a process of this campaign
        at += 8 + size
    return found


@dataclass(eq=False, slots=True)
class _File:
    """A file, of which only what was synced last (None: never) is known to be kept."""

    synced: bytes | None


@dataclass(frozen=True, slots=True)
class _Change:
    """Names that appear (with a file or, for a folder, None) and disappear together; `folders` whose sync keeps it."""

    added: Mapping[str, _File | None]
    gone: tuple[str, ...]
    folders: frozenset[str]


@dataclass
class Disk:
    """Names and files, as they are for processes and as they are kept.

    Args:
        names: what lies there at the beginning, all of it kept: paths, with the bytes of files and None for folders.
    """

    names: dict[str, _File | None]
    kept: dict[str, _File | None] = field(init=False)
    pending: list[_Change] = field(default_factory=list)
    _known: dict[tuple[int, int], _File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = dict(self.names)

    @classmethod
    def of(cls, places: Sequence[Path]) -> Disk:
        """What lies below some directories now."""
        names: dict[str, _File | None] = {}
        disk = cls(names)
        for place in places:
            for path in (place, *place.rglob("*")):
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    continue
                names[str(path)] = None if path.is_dir() else _File(path.read_bytes())
                found = path.stat()
                file = names[str(path)]
                if file is not None:
                    disk._known[found.st_dev, found.st_ino] = file
        disk.kept = dict(names)
        return disk

    def do(self, step: Step) -> None:
        """Replay a step."""
        if step.kind == "sync":
            self._sync(step)
        elif step.kind == "sync folder":
            self._sync_folder(step.name)
        elif step.kind == "create":
            if step.name not in self.names:
                self._known[step.file] = file = _File(None)
                self._change({step.name: file}, ())
        elif step.kind == "mkdir":
            self._change({step.name: None}, ())
        elif step.kind in ("unlink", "rmdir"):
            self._change({}, (step.name,))
        elif step.kind in ("link", "rename"):
            self._change({step.target: self.names.get(step.name)}, () if step.kind == "link" else (step.name,))

    def _sync(self, step: Step) -> None:
        known = self._known.get(step.file)
        if known is None or self.names.get(step.name) is not known:
            # It was made in a way that the recorder does not see, such as the built-in `open`.
            self._known[step.file] = known = _File(None)
            self._change({step.name: known}, ())
        known.synced = step.content

    def _sync_folder(self, folder: str) -> None:
        for change in [change for change in self.pending if folder in change.folders]:
            self._keep(self.kept, change)
            self.pending.remove(change)

    def _change(self, added: Mapping[str, _File | None], gone: tuple[str, ...]) -> None:
        change = _Change(added, gone, frozenset(_above(path) for path in (*added, *gone)))
        self._keep(self.names, change)
        self.pending.append(change)

    @staticmethod
    def _keep(names: dict[str, _File | None], change: _Change) -> None:
        for path in change.gone:
            names.pop(path, None)
        names.update(change.added)

    def after_cut(self, kept: Kept, randomness: random.Random) -> dict[str, bytes | None]:
        """Paths, with the bytes of files and None for folders, that a power cut at this moment leaves."""
        names = dict(self.kept)
        for change in self.pending:
            if kept is Kept.NAMES or (kept is Kept.SOME and randomness.random() < 0.5):
                self._keep(names, change)
        folders = {path for path, file in (*self.names.items(), *self.kept.items()) if file is None}

        def is_reachable(path: str) -> bool:
            """What lies in a folder whose name was not kept is lost; what is above the places is not ours to lose."""
            above = _above(path)
            return above not in folders or (above in names and is_reachable(above))

        left = sorted(path for path in names if is_reachable(path))
        return {path: None if (file := names[path]) is None else self._bytes(file, kept, randomness) for path in left}

    @staticmethod
    def _bytes(file: _File, kept: Kept, randomness: random.Random) -> bytes:
        if file.synced is not None:
            return file.synced
        return randomness.randbytes(randomness.randrange(64)) if kept is Kept.SOME else b""


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _path(name: Any, folder: int | None) -> str:
    text = os.fsdecode(name)
    if text.startswith("/") or folder is None:
        return text
    return f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}"


def lay(content: Mapping[str, bytes | None], origin: Path, destination: Path, places: Sequence[Path]) -> None:
    """Make the files below `places` of `origin` anew below those of `destination`, and remove all others there."""
    wanted = {destination / Path(path).relative_to(origin): data for path, data in content.items()}
    for place in places:
        for path in sorted((destination / place.relative_to(origin)).rglob("*"), reverse=True):
            if path not in wanted and not path.is_symlink():
                path.rmdir() if path.is_dir() else path.unlink()
    for path, data in sorted(wanted.items()):
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def differences(disk: Disk, places: Sequence[Path]) -> Iterator[str]:
    """Where a replay to the end is not what lies below the places: what the recorder did not see."""
    there = Disk.of(places).names
    for path in sorted(set(there) ^ set(disk.names)):
        yield f"{path} is {'there' if path in there else 'gone'}, against what was recorded"
