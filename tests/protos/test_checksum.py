"""The checksum that travels with an ROI."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from protos.checksum import checksum, verify
from protos.errors import ChecksumMismatch
from protos.messages import Roi


def an_roi() -> Roi:
    """A small ROI, no two sides and no two spacings alike."""
    voxels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    return Roi(7, voxels, (1.25, 0.5, 0.75), (-1000.0, 400.0), 0.5)


def test_the_checksum_is_what_the_contract_says() -> None:
    """Another implementation can make the same checksum from the words of the contract."""
    roi = an_roi()
    meaning = struct.pack("<IIIddddd", 2, 3, 4, 1.25, 0.5, 0.75, -1000.0, 400.0)
    expected = hashlib.blake2b(meaning + roi.voxels.tobytes(), digest_size=16).digest()
    assert checksum(roi) == expected


def test_another_sum_than_that_of_the_roi_is_a_mismatch() -> None:
    """The reason names both."""
    roi = an_roi()
    verify(roi, checksum(roi))
    with pytest.raises(ChecksumMismatch, match=f"ROI 7: checksum {checksum(roi).hex()}.* 0000"):
        verify(roi, bytes(16))
