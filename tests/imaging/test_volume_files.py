"""Volume files: the same voxels at the same places as they were written."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from imaging.read import read_study

_DIRECTIONS = {
    "as DICOM": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS order": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "coronal order": (1, 0, 0, 0, 0, 1, 0, -1, 0),
}


def _image(direction: tuple[int, ...]) -> sitk.Image:
    values = np.random.default_rng(0).integers(-1000, 400, (24, 28, 32)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.9, 1.5))
    image.SetOrigin((-120.0, 34.5, -250.25))
    image.SetDirection(direction)
    return image


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mhd", ".mha"])
def test_round_trip(suffix: str, direction: str, tmp_path: Path) -> None:
    image = _image(_DIRECTIONS[direction])
    file = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(file))
    volume = read_study(file).volume
    for index in ((0, 0, 0), (31, 27, 23), (3, 20, 11)):
        point = image.TransformIndexToPhysicalPoint(index)
        z, y, x = np.rint(volume.geometry.to_index(point)).astype(int)
        np.testing.assert_allclose(volume.geometry.to_world([z, y, x]), point, atol=1e-3)
        assert volume.hu[z, y, x] == image.GetPixel(index)
    np.testing.assert_allclose(volume.geometry.direction, np.eye(3), atol=1e-5)
    assert volume.hu.flags.c_contiguous


def test_floats_are_rounded_and_clipped(tmp_path: Path) -> None:
    values = np.full((24, 24, 24), -1000.4, np.float32)
    values[2:20, 2:20, 2:20] = 39.6
    values[0, 0, 0] = -3024
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.nii.gz"))
    hu = read_study(tmp_path / "a.nii.gz").volume.hu
    assert (hu[0, 0, 0], hu[1, 1, 1], hu[5, 5, 5]) == (-1024, -1000, 40)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -100.0), (1.0, -20.0), (0.0, 7.0)])
def test_scale_of_nifti(slope: float, intercept: float, tmp_path: Path) -> None:
    """The scale is applied exactly; a slope of 0 says that there is none."""
    stored = np.random.default_rng(0).integers(-1000, 400, (24, 24, 24)).astype(np.int16)
    file = tmp_path / "a.nii"
    nibabel.Nifti1Image(stored, np.diag([-2.0, -2.0, 2.0, 1.0])).to_filename(file)
    content = bytearray(file.read_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    file.write_bytes(content)
    expected = stored * slope + intercept if slope else stored
    hu = read_study(file).volume.hu
    np.testing.assert_array_equal(hu, np.rint(expected).transpose(2, 1, 0))


def test_alone_in_a_folder(tmp_path: Path) -> None:
    sitk.WriteImage(_image(_DIRECTIONS["as DICOM"]), str(tmp_path / "scan.nii.gz"))
    (tmp_path / "notes.txt").write_text("x")
    study = read_study(tmp_path)
    assert study.source == tmp_path / "scan.nii.gz"
    assert study.header.transfer_syntax == "NIfTI"
