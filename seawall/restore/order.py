"""In which order the parts of files are laid down: pure, so that it can be shown and tested.

After a chain of backups a file lies in many objects, changed runs of some ten KiB from each of them. Read object by
object, every run would be a write of its own. So neighbouring parts of a file are laid down together, led by the
object that holds most of them; it is read from its beginning to its end, and the parts from others are fetched for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from seawall.model import Extent
from seawall.repository.wanted import Part

# What is laid down in one write: less would make writes small, more would have objects lead where they hold little.
_WINDOW_BYTES = 2 * 1024 * 1024


def led(extents: Iterable[tuple[int, Extent]]) -> Iterator[tuple[str, list[tuple[int, Extent]]]]:
    """Neighbouring extents of a file that are laid down together, with the object that leads them.

    Args:
        extents: (offset in the file, extent), ascending.
    """
    window: list[tuple[int, Extent]] = []
    begin = end = 0
    lead = ""
    for each in extents:
        offset = each[0]
        if not window:
            begin = offset
        elif offset != end or end - begin >= _WINDOW_BYTES:
            lead = _lead(window, lead)
            yield lead, window
            window, begin = [], offset
        window.append(each)
        end = offset + each[1].length
    if window:
        yield _lead(window, lead), window


def _lead(window: Sequence[tuple[int, Extent]], before: str) -> str:
    """Whoever led before as long as there is anything of it: an object that leads is read for little else."""
    held: dict[str, int] = {}
    for _, extent in window:
        held[extent.object] = held.get(extent.object, 0) + extent.length
    return before if before in held else max(held, key=lambda name: (held[name], name))


def ordered(parts: Sequence[Part], lead: str) -> list[Part]:
    """The parts that one object leads, so that its own come in the order in which it holds them.

    Neighbours in a file stay together where that order allows it.

    Args:
        parts: as they were added, of each file ascending.
    """
    chains = sorted(_chains(parts), key=lambda chain: _first(chain, lead))
    found = [part for chain in chains for part in chain]
    own = [part.entry.plain_offset for part in found if part.object == lead]
    if all(one <= other for one, other in pairwise(own)):
        return found
    # No writer of ours makes such a bundle; the format allows it.
    return sorted(parts, key=lambda part: _first([part], lead))


def _chains(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that follow each other in a file."""
    chains: list[list[Part]] = []
    path, end = "", -1
    for part in parts:
        _, (at_path, offset, _, length, _, _) = part
        if offset != end or at_path != path:
            chains.append([])
        chains[-1].append(part)
        path, end = at_path, offset + length
    return chains


def _first(chain: Sequence[Part], lead: str) -> int:
    """Where the lead holds the first of a chain; what it holds nothing of comes first."""
    return next((part.entry.plain_offset for part in chain if part.object == lead), -1)


def woven(
    parts: Iterable[Part],
    lead: str,
    own: Iterator[tuple[str, int, memoryview]],
    others: Iterator[memoryview],
) -> Iterator[tuple[str, int, memoryview]]:
    """(path, offset in the file, bytes) over ordered parts, from what the lead holds and what others hold.

    Args:
        own: over the lead's parts, each in one piece or several; read to its end, which is where they are proved.
        others: the bytes of each other part.
    """
    for part in parts:
        entry, done = part.entry, 0
        if part.object != lead:
            yield entry.path, entry.file_offset, next(others)
            continue
        while done < entry.length:
            path, offset, piece = next(own)
            yield path, offset, piece
            done += len(piece)
    yield from own
