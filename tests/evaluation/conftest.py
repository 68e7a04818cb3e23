"""The edge's pipeline with a screening network whose every answer is written down in the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.assemble import build_pipeline
from edge.escalation.client import NoSecondReader
from edge.pipeline import Pipeline
from edge.settings import EdgeSettings
from imaging.preprocess import Preprocessed
from imaging.volume import Triple
from models.runtime.detection import Candidate

Places = list[tuple[Triple, float]]


class ScriptedScreening:
    """Proposes candidates at given places ``(x, y, z)`` LPS mm, with given scores."""

    name, version, engine = "scripted", "1", "none"

    def __init__(self, places: Places) -> None:
        self.places = places
        thresholds = {"dismiss": 0.1, "report": 0.9, "alone": 0.5, "final": 0.6}
        self.settings = {"thresholds": thresholds, "merge": [0.0, 0.5, 0.5]}

    def screen(self, box: Preprocessed) -> list[Candidate]:
        """The scripted candidates, with their place in this box."""
        return [_candidate(box, place, score) for place, score in self.places]


def _candidate(box: Preprocessed, place: Triple, score: float) -> Candidate:
    z, y, x = (float(v) for v in box.geometry.to_index(place))
    return Candidate(place, (z, y, x), 6.0, score)


@pytest.fixture
def scripted_pipeline() -> Callable[[Places], Pipeline]:
    """Make the pipeline of an edge without a cloud that proposes these places."""

    def make(places: Places) -> Pipeline:
        return build_pipeline(
            EdgeSettings(deadline_s=60), ScriptedScreening(places), NoSecondReader()
        )

    return make
