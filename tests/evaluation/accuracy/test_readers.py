import math

import numpy as np
import pytest

from edge.settings.core import EdgeSettings, load_settings
from evaluation.accuracy.readers import Agent, Stage
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, UInt8Array
from models.runtime.second_reader import Readings
from tests.evaluation.scripted_screen import ScriptedScreening
from tests.plain_readings import plain

BOX = Preprocessed(
    np.arange(60**3, dtype=np.uint32).astype(np.uint8).reshape(60, 60, 60), Geometry()
)


def screener(*scores: float) -> ScriptedScreening:
    """Proposes candidates with these scores along a line."""
    return ScriptedScreening([((30.0, 30.0, 10.0 + 5 * i), s) for i, s in enumerate(scores)])


class Second:
    """Gives the scripted probabilities and remembers what it was shown."""

    roi_shape = (48, 48, 48)

    def __init__(self, probabilities: list[float]) -> None:
        self.probabilities = probabilities
        self.shown: list[tuple[int, ...]] = []

    def read(self, batch: UInt8Array) -> Readings:
        self.shown.append(batch.shape)
        return plain(self.probabilities[: len(batch)], [7.0] * len(batch))


@pytest.mark.parametrize("edge", [0.3, 0.95], ids=["uncertain", "a finding of the edge"])
def test_merged_score_decides_and_dismissed_ones_keep_the_edges(edge: float) -> None:
    """Findings of the edge are characterized too, and keep their place with the merged score."""
    second = Second([0.02])
    found = Agent(screener(edge, 0.05), second, EdgeSettings()).reads(Stage.BOTH)(BOX)[Stage.BOTH]
    logit = 0.5 * math.log(edge / (1 - edge)) + 0.5 * math.log(0.02 / 0.98)
    assert [c.score for c in found] == [pytest.approx(1 / (1 + math.exp(-logit))), 0.05]
    assert found[0].diameter_mm == 7.0
    assert second.shown == [(1, 48, 48, 48)]


def test_rois_beyond_the_limit_are_not_read() -> None:
    """The other findings have the edge's score alone."""
    second = Second([0.9, 0.9])
    settings = load_settings(cloud__max_rois=2)
    agent = Agent(screener(0.7, 0.5, 0.4, 0.2), second, settings)
    found = agent.reads(Stage.BOTH)(BOX)[Stage.BOTH]
    assert second.shown == [(2, 48, 48, 48)]
    assert len(found) == 4
