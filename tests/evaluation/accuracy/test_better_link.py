"""On real scans of validation, edge and cloud find what the edge alone finds."""

from pathlib import Path

import pytest

from edge.decide import Plan
from edge.findings import Finding
from evaluation.accuracy.readers import Agent, Stage, open_agent
from evaluation.accuracy.truth import Truth, read_truth
from imaging.preprocess import preprocess
from imaging.read import read_study


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
    folder = shared_data / scan
    truth = read_truth(folder.parent / "marks.csv")[folder.name]
    reading = agent.read(preprocess(read_study(folder).volume), Stage.BOTH)
    assert reading.both is not None
    alone, both = (
        found(truth, one.merged.findings, one.plan) for one in (reading.alone, reading.both)
    )
    assert alone <= both
    assert both == set(range(len(truth.lesions)))
