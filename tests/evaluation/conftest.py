"""The edge's pipeline with a screening network whose every answer is written down in the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.assemble import build_pipeline
from edge.escalation.client import NoSecondReader
from edge.pipeline import Pipeline
from edge.settings import EdgeSettings
from imaging.volume import Triple
from tests.evaluation.scripted_screen import ScriptedScreening

Places = list[tuple[Triple, float]]


@pytest.fixture
def scripted_pipeline() -> Callable[[Places], Pipeline]:
    """Make the pipeline of an edge without a cloud that proposes these places."""

    def make(places: Places) -> Pipeline:
        return build_pipeline(
            EdgeSettings(deadline_s=60), ScriptedScreening(places), NoSecondReader()
        )

    return make
