from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from evaluation.accuracy.readers import Agent, Stage
from evaluation.lesion_insertion.spheres import read_spheres, sphere, spheres_json
from imaging.preprocess import Preprocessed
from imaging.volume import from_window
from tests.evaluation.plain_chest import host


@pytest.mark.parametrize("diameter_mm", [4.0, 10.0])
def test_a_sphere_has_its_volume_wherever_its_middle_lies(diameter_mm: float) -> None:
    found = sphere(diameter_mm, 30.0, np.array([0.5, -0.3, 0.1]))
    assert found.cover.sum() == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.03)
    index = np.indices(found.cover.shape).reshape(3, -1)
    middle = (index * found.cover.ravel()).sum(1) / found.cover.sum()
    np.testing.assert_allclose(middle, found.centre_zyx, atol=0.05)


class Dense:
    """Reports, as one finding, the sphere of all voxels of a box that are denser than its lung."""

    def read(self, box: Preprocessed, stage: Stage) -> Any:
        assert stage is Stage.BOTH
        inside = np.argwhere(from_window(box.voxels[8:-8, 8:-8, 8:-8]) > 0) + 8
        assert len(inside)
        none = SimpleNamespace(merged=SimpleNamespace(findings=(), possible=()))
        return SimpleNamespace(candidates=(), alone=none, both=None)


def test_spheres_that_are_not_found_count_as_not_measured() -> None:
    read = list(read_spheres(host(), cast(Agent, Dense()), np.random.default_rng(0)))
    assert {density for density, *_ in read} == {"solid", "part-solid", "ground glass"}
    rows = spheres_json(read)
    assert len(rows) == 21
    solid = {row["diameter_mm"]: row for row in rows if row["density"] == "solid"}
    assert (solid[10]["spheres"], solid[10]["measured"], solid[10]["bias_mm"]) == (1, 0, None)


def test_errors_are_medians_of_what_was_found() -> None:
    read = [
        ("solid", 10.0, 9.0, 10.5, True),
        ("solid", 10.0, np.nan, 9.5, True),
        ("solid", 10.0, 10.0, np.nan, False),
    ]
    (row,) = (one for one in spheres_json(read) if one["spheres"])
    assert (row["spheres"], row["measured"]) == (3, 2)
    assert (row["bias_mm"], row["error_mm"], row["edge_bias_mm"]) == (0.0, 0.5, -0.5)
    assert row["volume_error"] == pytest.approx((1.05**3 - 1 + 1 - 0.95**3) / 2, abs=1e-3)
