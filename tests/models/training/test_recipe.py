"""The recipes: shares of what is drawn, phantoms made once, roles kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.training import recipe
from models.training.material import Cubes
from models.training.piece import NONE, Piece
from models.training.recipe import (
    ALARM_SHARES,
    PHANTOM_SHARE,
    Material,
    load_phantoms,
    scans_of_role,
    share_alarms,
)


def lung(value: int = 40) -> Piece:
    """A plain box."""
    voxels = np.full((60, 60, 60), value, np.uint8)
    return Piece(voxels, np.zeros_like(voxels), NONE, NONE)


def test_alarms_are_shared_between_the_groups() -> None:
    """However many alarms a group has, it is drawn as often as its share says."""
    odds = [np.array([1.0, 1.0]), np.array([]), np.array([30.0]), np.array([0.5, 0.5, 1.0])]
    shared = share_alarms(odds, [2, 1, 1])
    assert shared[0].sum() + shared[1].sum() == pytest.approx(ALARM_SHARES[0])
    assert shared[2].sum() == pytest.approx(ALARM_SHARES[1])
    np.testing.assert_allclose(shared[3] / shared[3].sum(), [0.25, 0.25, 0.5])


def test_a_group_without_alarms_has_no_share() -> None:
    """Without phantoms the rest is drawn from, and nothing is divided by nothing."""
    shared = share_alarms([np.array([2.0]), np.array([])], [1, 1, 0])
    assert [s.tolist() for s in shared] == [[ALARM_SHARES[0]], []]


def test_phantoms_have_their_share_of_the_whole_lungs() -> None:
    """One real scan and three phantoms: the phantoms together are drawn in a quarter."""
    nothing = Cubes((), (), np.zeros(0), np.zeros(0))
    composer = Material(nothing, (lung(),), (lung(),) * 3, (), ()).composer
    weights = np.array(composer.scan_weights) / sum(composer.scan_weights)
    assert weights[0] == pytest.approx(1 - PHANTOM_SHARE)
    assert len(weights) == 4


def test_a_phantom_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it comes from the cache, voxels and nodules alike."""
    first = load_phantoms(tmp_path, 1)[0]
    monkeypatch.setattr(recipe, "make_phantom", None)
    again = load_phantoms(tmp_path, 1)[0]
    np.testing.assert_array_equal(first.voxels, again.voxels)
    np.testing.assert_array_equal(first.nodules, again.nodules)
    assert 3 <= len(first.nodules) <= 9


def test_only_scans_of_the_role_are_read(shared_data: Path) -> None:
    """Validation is one scan, with its lesion marked where it is bright."""
    (scan,) = scans_of_role(shared_data / "ct", "val")
    ((z, y, x, _),) = scan.nodules
    assert scan.voxels[round(z), round(y), round(x)] > 120
