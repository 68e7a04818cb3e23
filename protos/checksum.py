"""The checksum of an ROI: voxels, and what gives them their meaning, came as they were sent."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from protos.errors import ChecksumMismatch
from protos.messages import Roi

CHECKSUM_BYTES = 16


def checksum(roi: Roi) -> bytes:
    """BLAKE2b, 16 bytes, of the voxels and of what gives them their meaning.

    Hashed are, little-endian: shape (three uint32), spacing in mm (three float64), window in HU
    (two float64), then the voxels, z slowest.
    """
    meaning = struct.pack("<3I5d", *roi.voxels.shape, *roi.spacing_mm, *roi.window_hu)
    digest = hashlib.blake2b(meaning, digest_size=CHECKSUM_BYTES)
    digest.update(np.ascontiguousarray(roi.voxels).data)
    return digest.digest()


def verify(roi: Roi, claimed: bytes) -> None:
    """Refuses an ROI that is not what was sent: ``claimed``, which came with it, is not its sum.

    Raises:
        ChecksumMismatch: so it is.
    """
    if (found := checksum(roi)) != claimed:
        raise ChecksumMismatch(
            f"ROI {roi.roi_id}: checksum {found.hex()} of what came, "
            f"{claimed.hex()} of what was sent"
        )
