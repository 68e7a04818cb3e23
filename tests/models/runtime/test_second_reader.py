from pathlib import Path

import numpy as np
import pytest

from imaging.volume import FloatArray, UInt8Array
from models.runtime.artifacts import every, find
from models.runtime.second_reader import SecondReader, half_contrast, nearest_piece
from models.runtime.session import open_session


def reader(weights: Path) -> SecondReader:
    """One whose logit is the region's mean brightness."""
    return SecondReader(open_session(find("bright-hybrid", weights), engine="onnxruntime"))


def test_each_roi_gets_a_probability_and_a_diameter(weights: Path) -> None:
    batch = np.stack([np.zeros((8, 8, 8)), np.full((8, 8, 8), 255)]).astype(np.uint8)
    readings = reader(weights).read(batch)
    np.testing.assert_allclose(readings.probability, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-5)
    np.testing.assert_allclose(readings.diameter_mm, [5, 5], rtol=1e-5)
    np.testing.assert_allclose(readings.malignancy, readings.probability, rtol=1e-5)
    assert readings[1].texture == "part-solid"


def test_the_mask_lies_where_the_roi_has_the_nodule(weights: Path) -> None:
    region = np.zeros((8, 8, 8), np.uint8)
    region[2:4, 3:6, 4] = 200
    region[7, 7, 7] = 200
    mask = reader(weights).read(region[None]).mask[0]
    truth = np.zeros((8, 8, 8), bool)
    truth[2:4, 3:6, 4] = True
    np.testing.assert_array_equal(mask, truth)


def test_the_manifest_s_threshold_makes_the_mask_tighter(weights: Path) -> None:
    """The mask's logit of the small network is the voxel's grey value less 127.5."""
    manifest = weights / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("outline = [0.0]", "outline = [50.0]"))
    every.cache_clear()
    region = np.zeros((8, 8, 8), np.uint8)
    region[2:4, 3:6, 4] = 150
    region[2:4, 4, 4] = 250
    mask = reader(weights).read(region[None]).mask[0]
    np.testing.assert_array_equal(np.argwhere(mask), [[2, 4, 4], [3, 4, 4]])


def test_an_roi_of_another_shape_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(8, 8, 8\)"):
        reader(weights).read(np.zeros((1, 4, 8, 8), np.uint8))


def test_the_piece_in_the_middle_is_kept() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 5] = mask[5, 5, 6] = True
    mask[:2] = True
    kept = nearest_piece(mask)
    np.testing.assert_array_equal(np.argwhere(kept), [[4, 4, 5], [5, 5, 6]])
    assert not nearest_piece(np.zeros((4, 4, 4), bool)).any()


def blurred(diameter_mm: float, hu: float = 30.0) -> tuple[UInt8Array, FloatArray]:
    """A blurred sphere in lung of -850 HU, and logits of a mask that is 1.3 mm wider."""
    away = np.linalg.norm(np.moveaxis(np.indices((48, 48, 48)), 0, 3) - 23.5, axis=3)
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.8**2))
    share = np.clip(diameter_mm / 2 - away + 0.5, 0, 1)
    for axis in range(3):
        share = np.apply_along_axis(np.convolve, axis, share, kernel / kernel.sum(), "same")
    values = np.rint((-850 + share * (hu + 850) + 1000) * 255 / 1400)
    return values.astype(np.uint8), (1 + (diameter_mm + 1.3) / 2 - away).astype(np.float32)


@pytest.mark.parametrize("hu", [30.0, -300.0, -650.0])
@pytest.mark.parametrize("diameter_mm", [6.0, 8.0, 15.0, 30.0])
def test_a_sphere_has_its_own_volume_and_not_that_of_readers(diameter_mm: float, hu: float) -> None:
    roi, logits = blurred(diameter_mm, hu)
    mask = half_contrast(roi, logits, 1.0)
    assert np.cbrt(6 / np.pi * mask.sum()) == pytest.approx(diameter_mm, abs=0.35)
    assert not (mask & ~nearest_piece(logits > 1.0)).any()


def test_a_vessel_beside_a_nodule_is_no_part_of_its_volume() -> None:
    roi, logits = blurred(10.0)
    alone = half_contrast(roi, logits, 1.0).sum()
    roi[:, 28:32, 23:26] = 190
    assert half_contrast(roi, logits, 1.0).sum() == pytest.approx(alone, rel=0.1)


def test_what_cannot_be_measured_is_not() -> None:
    """At a face of the region the outline stays as drawn; without contrast there is none."""
    roi, logits = blurred(10.0)
    shifted = np.roll(logits, 20, axis=0)
    np.testing.assert_array_equal(half_contrast(roi, shifted, 1.0), nearest_piece(shifted > 1.0))
    assert not half_contrast(np.full_like(roi, 30), logits, 1.0).any()
    assert not half_contrast(roi, logits - 99, 1.0).any()
