"""What still counts as an even stack: rounding is forgiven, holes and tilts are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from imaging.errors import IncompleteSeries, IrregularGeometry
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt


def _moved(ct: SmallCt, z_mm: Callable[[int, float], float]) -> list[Dataset]:
    """The images with other positions along z, each by its index and its old position."""
    images = ct.images()
    for index, image in enumerate(images):
        z = z_mm(index, float(image.ImagePositionPatient[2]))
        image.ImagePositionPatient = [-30, -30, round(z, 3)]
    return images


def test_positions_rounded_to_a_tenth(tmp_path: Path) -> None:
    """Steps of 1.2 and 1.3 mm are a spacing of 1.25 mm written with one decimal."""
    ct = SmallCt(40, 1.25)
    ct.write(tmp_path, _moved(ct, lambda _, z: round(z, 1)))
    assert read_study(tmp_path).volume.geometry.spacing_mm[0] == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(("count", "spacing_mm"), [(12, 2.5), (40, 1.0), (48, 0.625)])
def test_positions_that_jitter_by_an_eighth_of_a_millimetre_are_read(
    count: int, spacing_mm: float, tmp_path: Path
) -> None:
    ct = SmallCt(count, spacing_mm)
    off_mm = np.random.default_rng(0).uniform(-0.12, 0.12, count)
    images = _moved(ct, lambda i, z: z + off_mm[i])
    ct.write(tmp_path, images)
    volume = read_study(tmp_path).volume
    assert volume.geometry.spacing_mm[0] == pytest.approx(spacing_mm, abs=0.02)
    np.testing.assert_array_equal(volume.hu, ct.hu())
    found = volume.geometry.to_world([[z, 0, 0] for z in range(count)])[:, 2]
    true = [float(image.ImagePositionPatient[2]) for image in images]
    assert np.abs(found - true).max() < 0.2


@pytest.mark.parametrize("jitter_mm", [0.0, 0.12])
@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.5])
def test_no_missing_slice_hides_behind_jitter(
    spacing_mm: float, jitter_mm: float, tmp_path: Path
) -> None:
    """Wherever a slice is missing, its neighbours are half a step or more off every grid."""
    count = round(40 / spacing_mm)
    for missing in (1, 2, count // 2, count - 2):
        ct = SmallCt(count, spacing_mm)
        off_mm = np.random.default_rng(missing).uniform(-jitter_mm, jitter_mm, count)
        images = _moved(ct, lambda i, z, off_mm=off_mm: z + off_mm[i])
        del images[missing]
        ct.write(tmp_path / str(missing), images)
        with pytest.raises((IncompleteSeries, IrregularGeometry)):
            read_study(tmp_path / str(missing))


def test_drift_is_not_rounding(tmp_path: Path) -> None:
    """Spacing that changes by 0.05 mm half-way adds up to an uneven stack."""
    ct = SmallCt(40, 1.25)
    ct.write(tmp_path, _moved(ct, lambda i, z: z + 0.05 * max(i - 20, 0)))
    with pytest.raises(IrregularGeometry, match="spacing is not uniform"):
        read_study(tmp_path)


@pytest.mark.parametrize(("shift", "refused"), [(0.02, False), (0.1, True)])
def test_tilt_is_measured_over_the_stack(shift: float, refused: bool, tmp_path: Path) -> None:
    SmallCt(step_mm=(0.0, shift, 2.5)).write(tmp_path)
    if refused:
        with pytest.raises(IrregularGeometry, match=r"gantry tilt or shifted slices: 0\.6 mm"):
            read_study(tmp_path)
    else:
        assert read_study(tmp_path).volume.shape[0] == 12
