"""The export and fit commands."""

from __future__ import annotations

import numpy as np
import pytest

from models.compression.fit import Cases
from models.compression.runs import fit_settings, neutral
from models.runtime.artifacts import find


def test_a_neutral_artifact_leaves_the_shipped_one_fitted() -> None:
    """Fitting reads outputs as they are, while whoever serves meanwhile keeps the calibration."""
    shipped = find("hybrid-int8")
    before = dict(shipped.settings)
    found = neutral(shipped)
    assert found.settings == {**before, "calibration": [1.0, 0.0]}
    assert (found.path, found.sha256) == (shipped.path, shipped.sha256)
    assert dict(find("hybrid-int8").settings) == before


def test_fitted_scores_part_nodules_from_alarms() -> None:
    """Of logits with a wrong zero and scale, the calibrated score is 0.5 between the classes."""
    rng = np.random.default_rng(0)
    nodule = np.arange(4000) < 2000
    logit = np.where(nodule, 1.0, -1.0) + rng.normal(0, 1, 4000)
    edge, cloud = fit_settings(Cases(2 * logit + 3, 0.5 * logit - 1, nodule, 0, scans=100))
    for (slope, bias), middle in ((edge["calibration"], 3.0), (cloud["calibration"], -1.0)):
        assert slope > 0
        assert abs(-bias / slope - middle) < 0.1
    assert set(edge["thresholds"]) == {"dismiss", "report", "alone", "final"}
    bias, edge_weight, cloud_weight, most = edge["merge"]
    assert abs(bias) < 0.1
    assert edge_weight > 0
    assert cloud_weight > 0
    slope, zero = cloud["calibration"]
    highest = float(np.quantile((0.5 * logit - 1)[~nodule], 0.99))
    assert most == pytest.approx(slope * highest + zero, abs=1e-3)
