"""Enhanced CT: all slices in one file, with functional groups instead of headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID

from imaging.errors import IncompleteSeries, UnreadableFile
from imaging.read import read_study

Make = Callable[..., Any]


def _item(**attributes: object) -> Sequence:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Sequence([item])


def _enhanced(ct: Any, compressed: bool = False) -> Dataset:
    images = ct.images()
    content = [image.PixelData for image in images]
    if compressed:
        for image in images:
            image.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
        content = [next(generate_frames(i.PixelData, number_of_frames=1)) for i in images]
    data: Dataset = images[0]
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=[2, 2], SliceThickness=2.5)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = _item(RescaleSlope=1, RescaleIntercept=-1024)
    frames = []
    for image in images:
        frames.append(Dataset())
        position = list(image.ImagePositionPatient)
        frames[-1].PlanePositionSequence = _item(ImagePositionPatient=position)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(frames[::-1])
    data.PixelData = encapsulate(content[::-1]) if compressed else b"".join(content[::-1])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, keyword)
    del data.RescaleSlope, data.RescaleIntercept
    return data


@pytest.mark.parametrize("compressed", [False, True], ids=["uncompressed", "JPEG-LS"])
def test_frames_become_slices(compressed: bool, tmp_path: Path, small_ct: Make) -> None:
    """The frames are stacked by their own positions, here written head first."""
    ct = small_ct()
    ct.write(tmp_path, [_enhanced(ct, compressed)])
    volume = read_study(tmp_path).volume
    np.testing.assert_array_equal(volume.hu, ct.hu())
    assert volume.geometry.spacing_mm == (2.5, 2.0, 2.0)


def test_missing_frame(tmp_path: Path, small_ct: Make) -> None:
    """A hole between frames is told by their numbers."""
    ct = small_ct()
    data = _enhanced(ct)
    data.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0].ImagePositionPatient = [
        *(-30, -30),
        -32.5,
    ]
    ct.write(tmp_path, [data])
    with pytest.raises(IncompleteSeries, match=r"between 000\.dcm frame 6"):
        read_study(tmp_path)


def test_fewer_groups_than_frames(tmp_path: Path, small_ct: Make) -> None:
    """Frames of which the groups do not speak make the file unreadable."""
    ct = small_ct()
    data = _enhanced(ct)
    data.NumberOfFrames = 13
    ct.write(tmp_path, [data])
    with pytest.raises(UnreadableFile, match="12 groups for 13 frames"):
        read_study(tmp_path)
