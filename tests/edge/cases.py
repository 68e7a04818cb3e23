"""Builders for tests of the edge: candidates, boxes, plans, pipelines, and a clock by hand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.assemble import build_pipeline
from edge.decide import Plan, Situation, Thresholds, decide
from edge.escalation.client import SecondReader
from edge.guarantee import Terms
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.merge import MergeWeights
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from edge.selection import SELECTION_POLICY, SelectionPolicy
from edge.settings import load_settings
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, Volume
from models.runtime.detection import Candidate
from models.runtime.screener import read_by
from protos.deadline import Clock

THRESHOLDS = Thresholds(dismiss=0.1, report=0.9, alone=0.5, final=0.6)
WEIGHTS = MergeWeights(bias=0.0, edge=1.0, cloud=1.0)
SHAPE = (48, 48, 48)
GUARANTEE = {
    "alpha": 0.05,
    "delta": 0.1,
    "patients": 62,
    "calibration": "0123abcd",
    "asked_alpha": 0.028,
    "confidence": 0.7,
    "holds": False,
    "screening": read_by("1"),
    "hybrid": "fake 1",
    "slice_mm": 2.5,
    "region_side": 48,
    "basis": "nodules in cubes of 50 mm",
}
TERMS = Terms(
    0.05, 0.1, 62, "0123abcd", 0.028, 0.7, False, read_by("1"), "fake 1", 2.5, 48,
    "nodules in cubes of 50 mm",
)  # fmt: skip
SETTINGS = {
    "thresholds": {"dismiss": 0.1, "report": 0.9, "alone": 0.5, "final": 0.6},
    "merge": [0.0, 1.0, 1.0],
}


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """The time it stands at, in seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Moves on by ``seconds``."""
        self.now_s += seconds


@dataclass
class FixedScreener:
    """A screening network that sees the same candidates in every box."""

    scores: Sequence[float]
    name: str = "fixed"
    version: str = "1"
    engine: str = "none"
    settings: Mapping[str, object] = field(default_factory=lambda: SETTINGS)

    def screen(self, box: Preprocessed) -> list[Candidate]:
        """The candidates of ``scores``, in their order."""
        del box  # it never looks
        return [candidate(score, at=i) for i, score in enumerate(self.scores)]


def candidate(score: float, at: int = 0) -> Candidate:
    """A candidate of 6 mm, one for each place ``at``."""
    return Candidate((float(at), 2.0, 3.0), (30.0 + at, 30.0, 30.0), 6.0, score)


def box() -> Preprocessed:
    """A lung box of 60 mm in which each slice is as bright as its number."""
    slices = np.arange(60, dtype=np.uint8)[:, None, None]
    return Preprocessed(np.broadcast_to(slices, (60, 60, 60)).copy(), Geometry())


def plan_of(
    *scores: float,
    link: LinkEstimate | None = None,
    budget_s: float = 60.0,
    roi_bytes: int = 48**3,
    max_rois: int = 64,
    policy: SelectionPolicy = SELECTION_POLICY,
    audited: bool = False,
) -> Plan:
    """What is decided of candidates of these scores, with time enough."""
    situation = Situation(
        tuple(candidate(score, at=i) for i, score in enumerate(scores)),
        THRESHOLDS,
        link or LinkEstimate(),
        budget_s,
        roi_bytes,
        max_rois,
        policy,
        audited,
    )
    return decide(situation)


def study_at(source: Path) -> Study:
    """A study of empty voxels; the screener decides what it shows."""
    return Study(Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3"), source)


SCORES = (0.95, 0.7, 0.3, 0.05)
"""The first is reported, the next two are uncertain, the last is dismissed."""


def pipeline_of(
    second: SecondReader,
    scores: Sequence[float] = SCORES,
    *,
    guarantee: Mapping[str, object] | None = None,
    clock: Clock = time.monotonic,
    **settings: object,
) -> Pipeline:
    """The real pipeline around a screener that sees ``scores``, whatever the files."""
    manifest = {**SETTINGS, **({"guarantee": guarantee} if guarantee else {})}
    screener = FixedScreener(scores, settings=manifest)
    limits = load_settings(**{"deadline_s": 60.0, **settings})
    pipeline = build_pipeline(limits, screener, second, clock=clock)
    return replace(pipeline, read=study_at, preprocess=lambda *_: box())


def report_of(pipeline: Pipeline, out: Path) -> Report:
    return read_and_report(pipeline, Job(Path("study"), out, "key-1")).report
