"""Regions and verdicts as the database keeps them: as they cross the wire, compressed.

The wire's checksum goes with a region, so that one that a disk has damaged is never read again
as if it were sound.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from edge.finding import BoolArray
from protos import overread_pb2 as pb
from protos.codec import decode_response, decode_roi, encode_response, encode_roi, pack_mask
from protos.messages import Roi, Verdict

STORED, SQUEEZED = 0, 6
"""zlib levels: 0.1 ms for a region of 48 voxels a side that a report waits for; and 3 ms."""


def pack_region(roi: Roi, level: int = SQUEEZED) -> bytes:
    """The region, its place on the wire and its checksum."""
    return zlib.compress(encode_roi(roi).SerializeToString(), level)


def unpack_region(data: bytes) -> Roi:
    """The region that `pack_region` packed.

    Raises:
        ChecksumMismatch: its voxels are not what was kept.
    """
    return decode_roi(pb.ReadRequest.FromString(zlib.decompress(data)).roi)


def squeeze(data: bytes) -> bytes:
    """What was packed at any level, at `SQUEEZED`."""
    return zlib.compress(zlib.decompress(data), SQUEEZED)


def pack_verdict(verdict: Verdict, mask: BoolArray | None) -> bytes:
    """The verdict, with ``mask`` as the voxels of its nodule."""
    packed = b"" if mask is None else pack_mask(mask)
    return encode_response(replace(verdict, mask=packed)).SerializeToString()


def unpack_verdict(data: bytes) -> Verdict:
    """The verdict that `pack_verdict` packed.

    Raises:
        TypeError: it is none.
    """
    verdict = decode_response(pb.ReadResponse.FromString(data))
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{verdict!r} was kept as a verdict")
    return verdict
