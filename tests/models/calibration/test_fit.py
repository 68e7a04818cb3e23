from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from imaging.preprocess import Preprocessed
from imaging.volume import Geometry
from models.calibration.fit import (
    REGIONS,
    REPORT_MARGIN,
    Cases,
    _rare,
    gather,
    logistic,
    thresholds,
)
from models.runtime.detection import Candidate
from models.training.data import NONE, Box, Piece


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.5 * x[:, 1])))
    np.testing.assert_allclose(logistic(x, truth, ridge=0), [0, 1.5, -0.5], atol=0.06)


def test_separable_data_gives_finite_weights() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    assert np.isfinite(logistic(x, np.array([False, False, True, True]))).all()


def test_thresholds_leave_the_stated_number_of_false_positives() -> None:
    """``alone`` one a scan, ``possible`` three, ``dismiss`` more; ``final`` lies above all."""
    rng = np.random.default_rng(0)
    edge = np.concatenate([rng.beta(8, 2, 200), rng.beta(2, 8, 100)])
    nodule = np.arange(300) < 200
    found = thresholds(edge, edge, Cases(edge, edge, nodule, 0, scans=4))
    assert (edge[~nodule] >= found["final"]).sum() <= 1
    assert (edge[~nodule] >= found["alone"]).sum() == 4
    assert (edge[~nodule] >= found["possible"]).sum() == 12
    assert (edge[~nodule] >= found["dismiss"]).sum() == 4 * REGIONS
    assert found["dismiss"] <= found["alone"] <= found["report"]


def test_false_positives_of_cubes_do_not_count_beside_those_of_scans() -> None:
    """Around a nodule there are more of them: ``final`` follows the whole scans."""
    score = np.array([0.9, 0.6, 0.8, 0.7, 0.3])
    nodule = np.array([True, True, False, False, False])
    counted = np.array([False, False, False, False, True])
    cases = Cases(score, score, nodule, 0, scans=1, counted=counted)
    assert thresholds(score, score, cases)["final"] == pytest.approx(0.45)
    assert thresholds(score, score, replace(cases, counted=nodule[:0]))["final"] > 0.85


def test_a_rate_too_low_to_count_is_that_of_the_tail() -> None:
    """Of 2,000 exponential logits in 100 scans, half a one lies above log(4,000)."""
    rng = np.random.default_rng(0)
    score = 1 / (1 + np.exp(-rng.exponential(1.0, 2000)))
    found = _rare(score, np.ones(2000, bool), 0.5, 100.0)
    assert np.log(found / (1 - found)) == pytest.approx(np.log(4000), rel=0.1)


def test_no_more_regions_are_sent_than_a_scan_may_cost() -> None:
    """Hundreds of weak false candidates raise ``dismiss`` until `REGIONS` a scan are left."""
    false = np.linspace(0.01, 0.3, 100)
    edge, nodule = np.append(false, 0.02), np.arange(101) == 100
    found = thresholds(edge, np.append(false / 10, 0.9), Cases(edge, edge, nodule, 0, scans=2))
    assert (false >= found["dismiss"]).sum() == 2 * REGIONS


def test_the_edge_decides_alone_where_no_verdict_rejects() -> None:
    """Well above the highest edge score of a false positive that a verdict rejects."""
    edge = np.array([0.3, 0.5, 0.6, 0.8, 0.9, 0.7])
    nodule = np.array([True, False, True, True, True, False])
    merged = np.array([0.9, 0.1, 0.9, 0.9, 0.9, 0.05])
    cases = Cases(edge, edge, nodule, 0, scans=1)
    odds = 0.7 / 0.3 * np.exp(REPORT_MARGIN)
    assert thresholds(edge, merged, cases)["report"] == pytest.approx(odds / (1 + odds))


class BrightSpots:
    """Proposes every voxel of 200 and more, the brighter the surer."""

    def screen(self, box: Preprocessed) -> list[Candidate]:
        found = [
            Candidate(
                (0.0, 0.0, 0.0), (float(z), float(y), float(x)), 6.0, box.voxels[z, y, x] / 256
            )
            for z, y, x in np.argwhere(box.voxels >= 200)
        ]
        return sorted(found, key=lambda c: -c.score)


class Sure:
    """A second reader that says 0.75 of everything."""

    roi_shape = (8, 8, 8)

    def read(self, batch: np.ndarray) -> Any:
        return SimpleNamespace(probability=np.full(len(batch), 0.75))


def cube(*bright: tuple[int, int, int]) -> Piece:
    """A cube of soft tissue with a nodule in its middle, and bright voxels."""
    voxels = np.full((40, 40, 40), 150, np.uint8)
    for number, at in enumerate(bright):
        voxels[at] = 250 - number
    return Piece(voxels, np.zeros_like(voxels), np.array([[20.0, 20.0, 20.0, 6.0]]), NONE)


def test_cases_say_whose_each_nodule_is() -> None:
    cubes = [cube((20, 20, 21), (32, 32, 32)), cube((10, 10, 10)), cube((20, 20, 20))]
    screener, reader = cast(Any, BrightSpots()), cast(Any, Sure())
    scan = cube((3, 3, 3))
    scans = [Box("whole", Preprocessed(scan.voxels, Geometry()), scan)]
    found = gather(screener, reader, cubes, ["a", "b", "c"], scans)
    assert found.nodule.tolist() == [True, False, False, True, False]
    assert found.patient == ("a", "a", "b", "c", "whole")
    assert (found.missed, found.missed_patient) == (2, ("b", "whole"))
    assert found.edge[0] > found.edge[1]
    np.testing.assert_allclose(found.cloud, np.log(3))
    assert found.scans == 1.0
