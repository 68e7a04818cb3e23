from __future__ import annotations

import numpy as np
import pytest

from imaging.phantom.fields import Lattice, ellipsoid, joined, make_lattice, smooth_noise, tube


@pytest.fixture
def lattice() -> Lattice:
    """A box of 60 x 50 x 40 mm (x, y, z) around the carina, at scale 1."""
    size = np.array([60.0, 50.0, 40.0])
    return make_lattice(-size / 2, size, (1.0, 1.0, 1.0), np.random.default_rng(1))


def test_lattice_fills_the_box_it_was_given(lattice: Lattice) -> None:
    high = lattice.start_mm + (np.array(lattice.shape[::-1]) - 0.5) * lattice.step_mm
    assert lattice.shape == (16, 20, 24)
    assert np.allclose(high, [30, 25, 20])


def test_ball_has_its_radius_in_every_direction(lattice: Lattice) -> None:
    field = ellipsoid(lattice, (0, 0, 0), (12, 12, 12))
    surface = lattice.to_world(12 * np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1], [0.6, 0.8, 0]]))
    assert np.abs(lattice.sample(field, surface)).max() < 0.9
    assert lattice.sample(field, lattice.to_world((0, 0, 0))) < -5


def test_tube_follows_its_line_and_radius(lattice: Lattice) -> None:
    field = tube(lattice, [(-15, 0, 0), (15, 0, 0)], (4, 8))
    rim = lattice.to_world([[-15, 4, 0], [15, 0, -8], [0, 6, 0]])
    assert np.abs(lattice.sample(field, rim)).max() < 0.8


def test_union_holds_both_and_fills_the_crease(lattice: Lattice) -> None:
    first = ellipsoid(lattice, (-8, 0, 0), (9, 9, 9))
    second = ellipsoid(lattice, (8, 0, 0), (9, 9, 9))
    both = joined([first, second], 6.0)
    assert np.all(both <= np.minimum(first, second) + 1e-5)
    assert both.min() >= np.minimum(first, second).min() - 1.6


def test_sample_is_linear_and_gradient_points_uphill(lattice: Lattice) -> None:
    x = lattice.start_mm[0] + np.arange(lattice.shape[2]) * lattice.step_mm[0]
    field = np.broadcast_to(x.astype(np.float32), lattice.shape)
    points = np.array([[3.3, -2.0, 1.0], [-7.9, 4.0, 0.0]])
    assert np.allclose(lattice.sample(field, points), points[:, 0], atol=1e-4)
    assert np.allclose(lattice.gradient(field, points), [[1, 0, 0]] * 2, atol=1e-3)


def test_noise_has_the_requested_smoothness() -> None:
    rng, step = np.random.default_rng(0), np.array([2.0, 2.0, 2.0])
    long, short = (smooth_noise((30, 40, 50), step, n, rng) for n in (40.0, 2.0))
    assert np.abs(np.diff(long, axis=2)).mean() < 0.15 < np.abs(np.diff(short, axis=2)).mean()
    assert long.std() == pytest.approx(1, abs=0.35)
