from __future__ import annotations

import math

import numpy as np
import pytest

from edge.settings import EdgeSettings
from evaluation.common.readers import edge_alone, edge_and_cloud
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, UInt8Array
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.plain_readings import plain

BOX = Preprocessed(
    np.arange(60**3, dtype=np.uint32).astype(np.uint8).reshape(60, 60, 60), Geometry()
)


class Screener:
    """Proposes candidates with given scores along a line."""

    name, version, engine = "scripted", "1", "none"

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        thresholds = {"dismiss": 0.1, "report": 0.9, "alone": 0.5, "final": 0.6}
        self.settings = {"thresholds": thresholds, "merge": [0.0, 0.5, 0.5]}

    def screen(self, box: Preprocessed) -> list[Candidate]:
        del box
        places = [(10.0 + 5 * i, 30.0, 30.0) for i in range(len(self.scores))]
        return [
            Candidate((x, y, z), (z, y, x), 6.0, s)
            for (z, y, x), s in zip(places, self.scores, strict=True)
        ]


class Second:
    """Gives the scripted probabilities and remembers what it was shown."""

    roi_shape = (48, 48, 48)

    def __init__(self, probabilities: list[float]) -> None:
        self.probabilities = probabilities
        self.shown: list[tuple[int, ...]] = []

    def read(self, batch: UInt8Array) -> Readings:
        self.shown.append(batch.shape)
        return plain(self.probabilities[: len(batch)], [7.0] * len(batch))


def test_edge_alone_keeps_every_candidate() -> None:
    found = edge_alone(Screener([0.95, 0.3, 0.05]))(BOX)
    assert [c.score for c in found] == [0.95, 0.3, 0.05]


def test_merged_score_decides_and_dismissed_ones_are_gone() -> None:
    second = Second([0.02])
    found = edge_and_cloud(Screener([0.3, 0.05]), second, EdgeSettings())(BOX)
    logit = 0.5 * math.log(0.3 / 0.7) + 0.5 * math.log(0.02 / 0.98)
    assert [c.score for c in found] == [pytest.approx(1 / (1 + math.exp(-logit)))]
    assert found[0].diameter_mm == 7.0
    assert second.shown == [(1, 48, 48, 48)]


def test_findings_of_the_edge_are_characterized() -> None:
    """The second reader sees it too, and changes the score but not the finding."""
    second = Second([0.02])
    found = edge_and_cloud(Screener([0.95]), second, EdgeSettings())(BOX)
    logit = 0.5 * math.log(0.95 / 0.05) + 0.5 * math.log(0.02 / 0.98)
    assert [c.score for c in found] == [pytest.approx(1 / (1 + math.exp(-logit)))]
    assert second.shown == [(1, 48, 48, 48)]


def test_rois_beyond_the_limit_are_not_read() -> None:
    """The other findings have the edge's score alone."""
    second = Second([0.9, 0.9])
    settings = EdgeSettings(max_rois=2)
    found = edge_and_cloud(Screener([0.7, 0.5, 0.4, 0.2]), second, settings)(BOX)
    assert second.shown == [(2, 48, 48, 48)]
    assert len(found) == 3 - (0.7 not in [c.score for c in found])
