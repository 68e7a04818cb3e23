import math
from pathlib import Path

import numpy as np
import pytest

from edge.decide import Plan
from edge.findings import Finding
from edge.settings.core import EdgeSettings, load_settings
from evaluation.accuracy.readers import Agent, Stage, open_agent
from evaluation.accuracy.truth import Truth, read_truth
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Geometry
from tests.evaluation.scripted_screen import ScriptedScreening, ScriptedSecond

BOX = Preprocessed(
    np.arange(60**3, dtype=np.uint32).astype(np.uint8).reshape(60, 60, 60), Geometry()
)


def screener(*scores: float) -> ScriptedScreening:
    """Proposes candidates with these scores along a line."""
    return ScriptedScreening([((30.0, 30.0, 10.0 + 5 * i), s) for i, s in enumerate(scores)])


@pytest.mark.parametrize("edge", [0.3, 0.95], ids=["uncertain", "a finding of the edge"])
def test_merged_score_decides_and_dismissed_ones_keep_the_edges(edge: float) -> None:
    """Findings of the edge are characterized too, and keep their place with the merged score."""
    second = ScriptedSecond(lambda rois: [0.02] * len(rois))
    found = Agent(screener(edge, 0.05), second, EdgeSettings()).reads(Stage.BOTH)(BOX)[Stage.BOTH]
    logit = 0.5 * math.log(edge / (1 - edge)) + 0.5 * math.log(0.02 / 0.98)
    assert [c.score for c in found] == [pytest.approx(1 / (1 + math.exp(-logit))), 0.05]
    assert found[0].diameter_mm == 7.0
    assert [rois.shape for rois in second.seen] == [(1, 48, 48, 48)]


def test_rois_beyond_the_limit_are_not_read() -> None:
    """The other findings have the edge's score alone."""
    second = ScriptedSecond(lambda rois: [0.9] * len(rois))
    settings = load_settings(cloud__max_rois=2)
    agent = Agent(screener(0.7, 0.5, 0.4, 0.2), second, settings)
    found = agent.reads(Stage.BOTH)(BOX)[Stage.BOTH]
    assert [rois.shape for rois in second.seen] == [(2, 48, 48, 48)]
    assert len(found) == 4


@pytest.fixture(scope="module")
def agent() -> Agent:
    return open_agent(Stage.BOTH, None, None)


def found(truth: Truth, findings: tuple[Finding, ...], plan: Plan) -> set[int]:
    """Which lesions these findings hit, where the edge proposed them."""
    places = [plan.decisions[plan.index_of(one)].candidate.centre_mm for one in findings]
    return {i for i, one in enumerate(truth.lesions) if any(map(one.hit_by, places))}


@pytest.mark.parametrize("scan", ["lidc/lidc_0005", "lidc/lidc_0028", "ct/qin_lsc_0014"])
def test_the_cloud_takes_no_nodule_of_validation_away(
    agent: Agent, shared_data: Path, scan: str
) -> None:
    """On real scans edge and cloud find what the edge alone finds."""
    folder = shared_data / scan
    truth = read_truth(folder.parent / "marks.csv")[folder.name]
    reading = agent.read(preprocess(read_study(folder).volume), Stage.BOTH)
    assert reading.both is not None
    alone, both = (
        found(truth, one.merged.findings, one.plan) for one in (reading.alone, reading.both)
    )
    assert alone <= both
    assert both == set(range(len(truth.lesions)))
