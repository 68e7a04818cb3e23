"""What still counts as an even stack: rounding is forgiven, holes and tilts are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import IrregularGeometry
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt


def test_positions_rounded_to_a_tenth(tmp_path: Path) -> None:
    """Steps of 1.2 and 1.3 mm are a spacing of 1.25 mm written with one decimal."""
    ct = SmallCt(40, 1.25)
    images = ct.images()
    for image in images:
        image.ImagePositionPatient = [-30, -30, round(float(image.ImagePositionPatient[2]), 1)]
    ct.write(tmp_path, images)
    assert read_study(tmp_path).volume.geometry.spacing_mm[0] == pytest.approx(1.25, abs=0.005)


def test_drift_is_not_rounding(tmp_path: Path) -> None:
    """Spacing that changes by 0.05 mm half-way adds up to an uneven stack."""
    ct = SmallCt(40, 1.25)
    images = ct.images()
    for index, image in enumerate(images):
        image.ImagePositionPatient = [0, 0, 1.25 * index + 0.05 * max(index - 20, 0)]
    ct.write(tmp_path, images)
    with pytest.raises(IrregularGeometry, match="spacing is not uniform"):
        read_study(tmp_path)


@pytest.mark.parametrize(("shift", "refused"), [(0.02, False), (0.1, True)])
def test_tilt_is_measured_over_the_stack(shift: float, refused: bool, tmp_path: Path) -> None:
    """A sideways step of 0.02 mm a slice stays within half a voxel, one of 0.1 mm does not."""
    ct = SmallCt(step_mm=(0.0, shift, 2.5))
    ct.write(tmp_path)
    if refused:
        with pytest.raises(IrregularGeometry, match=r"gantry tilt or shifted slices: 0\.6 mm"):
            read_study(tmp_path)
    else:
        assert read_study(tmp_path).volume.shape[0] == 12
