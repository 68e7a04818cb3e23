"""Canonical axes, resampling to 1 mm, and the lung box of real scans."""

from __future__ import annotations

import csv
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from imaging.preprocess import Preprocessed, canonical, preprocess, resample
from imaging.read import read_study
from imaging.volume import Geometry, Volume
from tests.imaging.bodies import to_window


def ramp(geometry: Geometry, shape: tuple[int, int, int]) -> Volume:
    """A volume whose HU is a linear function of the place in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = geometry.to_world(index)
    return Volume((world @ [2.0, -3.0, 1.5] - 300).round().astype(np.int16), geometry)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
def test_canonical_axes_keep_every_voxel_at_its_place(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    """However a volume is stored, its canonical form has the same HU at the same world points."""
    direction = np.zeros((3, 3))
    for index_axis, world_axis in enumerate(order):
        direction[world_axis, index_axis] = signs[index_axis]
    upright = canonical(ramp(Geometry((2.0, 1.0, 1.5), (5.0, -7.0, 11.0), direction), (4, 5, 6)))
    np.testing.assert_allclose(upright.geometry.direction, np.eye(3))
    np.testing.assert_array_equal(upright.hu, ramp(upright.geometry, upright.shape).hu)


def test_a_small_tilt_stays_in_the_geometry() -> None:
    """An oblique series is not resampled: its direction keeps the tilt, its voxels their places."""
    c, s = np.cos(0.2), np.sin(0.2)
    tilted = Geometry((1.0, 1.0, 1.0), (0, 0, 0), np.array([[1, 0, 0], [0, c, -s], [0, s, c]]))
    upright = canonical(ramp(tilted, (5, 6, 7)))
    np.testing.assert_allclose(upright.geometry.direction, tilted.direction)


def test_resampling_keeps_a_linear_picture_linear_at_its_place() -> None:
    """Trilinear resampling of a ramp gives the ramp at the new voxels' world points."""
    volume = ramp(Geometry((2.5, 0.7, 0.8), (-20.0, 10.0, 30.0)), (20, 60, 70))
    voxels, geometry = resample(volume.hu, volume.geometry)
    np.testing.assert_allclose(geometry.spacing_mm, 1.0, rtol=0.02)
    expected = to_window(ramp(geometry, voxels.shape).hu)
    inner = (slice(2, -2),) * 3
    difference = voxels[inner].astype(int) - expected[inner].astype(int)
    assert np.abs(difference).max() <= 2


def test_without_lungs_told_everything_is_inside() -> None:
    """A box that is all lung dismisses no place."""
    box = Preprocessed(np.zeros((4, 4, 4), np.uint8), Geometry())
    assert box.inside(np.array([[0.0, 0, 0], [3, 3, 3]])).all()


def test_every_known_lesion_lies_inside_the_lung_of_its_scan(shared_data: Path) -> None:
    """In each real scan the marked lesion is in the box, inside the lung, and dense."""
    with (shared_data / "ct" / "scans.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["x"]]
    for row in rows:
        folder = shared_data / "ct" / row["scan"]
        box = preprocess(read_study(folder).volume, folder)
        at = box.geometry.to_index([float(row[axis]) for axis in "xyz"])
        assert box.inside(at[None]).all(), row["scan"]
        z, y, x = np.rint(at).astype(int)
        assert box.voxels[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].mean() > 120, row["scan"]
