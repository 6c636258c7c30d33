"""Hash, compress and seal, and back: envelopes of frames, and bundles of extents.

Three layers: `envelope` (the clear header, keys and the authentication of a frame), `frame` (a stream cut into
frames), `bundle` and `unbundle` (extents of many files in one stream, with an index). Nothing unverified is ever
released: a frame's bytes come out only after its tag matched; that a stream is *whole* is known when its iterator
ends.

Libraries are imported by the codec that needs them, because this package lies on the path of every WAL segment.
"""

from seawall.codec.bundle import BUNDLE_BYTES, BundleWriter, ExtentSource
from seawall.codec.envelope import FRAME_BYTES, DataKey, Envelope, KeySource, new_data_key, read_envelope
from seawall.codec.frame import FrameReader, FrameWriter, Scratch, open_bytes, seal_bytes
from seawall.codec.index import Entry
from seawall.codec.runs import RunHasher, combined, run_bytes
from seawall.codec.unbundle import BundleReader, Index, RangeReader, read_extent, read_extents, read_index

__all__ = [
    "BUNDLE_BYTES",
    "FRAME_BYTES",
    "BundleReader",
    "BundleWriter",
    "DataKey",
    "Entry",
    "Envelope",
    "ExtentSource",
    "FrameReader",
    "FrameWriter",
    "Index",
    "KeySource",
    "RangeReader",
    "RunHasher",
    "Scratch",
    "combined",
    "new_data_key",
    "open_bytes",
    "read_envelope",
    "read_extent",
    "read_extents",
    "read_index",
    "run_bytes",
    "seal_bytes",
]
