from __future__ import annotations

import numpy as np

from imaging.phantom.layers import Raster, stamp_cones
from imaging.phantom.tree import Tree, grow
from imaging.volume import FloatArray

ROOT, HEADING = np.zeros(3), np.array([1.0, 0.0, 0.0])


def _points() -> FloatArray:
    return np.random.default_rng(4).uniform((10, -30, -30), (70, 30, 30), (200, 3))


def _tree() -> Tree:
    return grow(ROOT, HEADING, _points(), np.random.default_rng(5))


def test_tree_reaches_every_point() -> None:
    stops = _tree().points[:, 1]
    gaps = np.linalg.norm(_points()[:, None] - stops[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-6


def test_branches_hang_together() -> None:
    """Every piece begins at the root or where another piece ends."""
    tree = _tree()
    stops = np.concatenate([ROOT[None], tree.points[:, 1]])
    gaps = np.linalg.norm(tree.points[:, :1] - stops[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-6


def test_vessels_taper_from_the_root_to_the_periphery() -> None:
    radii = _tree().radii(0.5)
    assert np.all(radii[:, 1] <= radii[:, 0] + 1e-9)
    assert np.isclose(radii.max(), 0.5 * 200 ** (1 / 3))


def test_no_points_no_tree() -> None:
    assert len(grow(ROOT, HEADING, np.empty((0, 3)), np.random.default_rng(0)).points) == 0


def test_stamped_cylinder_has_its_volume() -> None:
    raster = Raster((40, 30, 30), (1.0, 0.8, 0.8))
    cover = np.zeros(raster.shape, dtype=np.uint8)
    ends = np.array([[[12.0, 12.0, 8.0], [12.0, 12.0, 32.0]]])
    stamp_cones(cover, raster, ends, np.array([[3.0, 3.0]]))
    volume = cover.sum() / 255 * 0.64
    assert np.isclose(volume, np.pi * 9 * 24 + 4 / 3 * np.pi * 27, rtol=0.04)


def test_stamping_outside_the_picture_changes_nothing() -> None:
    raster = Raster((8, 8, 8), (1.0, 1.0, 1.0))
    cover = np.zeros(raster.shape, dtype=np.uint8)
    stamp_cones(cover, raster, np.full((1, 2, 3), 50.0), np.array([[2.0, 1.0]]))
    assert not cover.any()
