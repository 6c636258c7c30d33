"""Which runs of a file differ from those of an earlier backup: pure decisions over digests, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from seawall.backup.changes import PriorFile, Span
from seawall.codec.runs import DIGEST_BYTES

# From here on a file is stored whole: what is saved is less than what its many extents cost a restore.
_WHOLE_FROM = 0.7


def changed_spans(prior: PriorFile, digests: bytes, size: int) -> tuple[Span, ...]:
    """The parts of a file to store: runs whose digest is another, adjacent ones joined, or all of it.

    Args:
        prior: the file as it was stored, cut into runs of the same length.
        digests: of the runs that lie there now, at least as far as the prior has the file; the rest is stored anyway.
        size: how many bytes lie there now.
    """
    count, compared = -(-size // prior.blocks.run_bytes), len(digests) // DIGEST_BYTES
    if len(digests) % DIGEST_BYTES or not min(count, prior.blocks.runs) <= compared <= count:
        raise ValueError(f"{len(digests)} bytes of digests do not describe {size} bytes of {prior.entry.path!r}")
    differs = np.ones(count, np.bool_)
    differs[:compared] = differing_runs(prior, digests, size)
    # What was appended, or is not known, is one piece, however long; only what was there before can be in many.
    both = _known_runs(prior, min(count, prior.blocks.runs))
    if count and (differs[: len(both)] & both).sum() >= _WHOLE_FROM * both.sum():
        return (Span(0, size),)
    return tuple(span for span, differ in stretches(differs, prior.blocks.run_bytes, size) if differ)


def differing_runs(prior: PriorFile, digests: bytes, size: int, first: int = 0) -> npt.NDArray[np.bool_]:
    """For each of consecutive runs of a file, whether it is another one than in the prior.

    Args:
        prior: the file as it was stored, cut into runs of the same length.
        digests: of the runs that lie there now, from run number `first` on.
        size: how many bytes the whole file has now.
    """
    run_bytes, known = prior.blocks.run_bytes, prior.blocks.digests
    count = len(digests) // DIGEST_BYTES
    differs = np.ones(count, np.bool_)
    common = min(count, prior.blocks.runs - first)
    if common <= 0:
        return differs
    there = known[first * DIGEST_BYTES : (first + common) * DIGEST_BYTES]
    differs[:common] = (_digests(digests, common) != _digests(there, common)).any(axis=1)
    differs[:common] |= ~_digests(there, common).any(axis=1)
    # The last run of either file may be short. Equal digests of unequal lengths cannot be, and are not relied on.
    last = first + common - 1
    if min(run_bytes, size - last * run_bytes) != min(run_bytes, prior.entry.size_bytes - last * run_bytes):
        differs[common - 1] = True
    return differs


def _known_runs(prior: PriorFile, count: int) -> npt.NDArray[np.bool_]:
    return np.asarray(_digests(prior.blocks.digests, count).any(axis=1), np.bool_)


def _digests(digests: bytes, count: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(digests, np.uint64, count * DIGEST_BYTES // 8).reshape(count, DIGEST_BYTES // 8)


def stretches(differs: npt.NDArray[np.bool_], run_bytes: int, size: int, first: int = 0) -> Iterator[tuple[Span, bool]]:
    """The parts of a file that differ and those that do not, in turn.

    Args:
        differs: for each run from number `first` on.
        size: how many bytes the whole file has.
    """
    edges = [0, *(np.flatnonzero(np.diff(differs)) + 1).tolist(), len(differs)]
    for begin, end in pairwise(edges):
        if end > begin:
            offset = (first + begin) * run_bytes
            yield Span(offset, min((first + end) * run_bytes, size) - offset), bool(differs[begin])
