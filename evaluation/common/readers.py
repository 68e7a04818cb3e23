"""Opens the models that an evaluation reads with, those of the agent and the cloud by default.

Readers to measure: functions from a lung box to candidates, through the agent's own line.

The edge alone is its screening network. Edge and cloud together are the middle of the agent's
line, with the cloud's model in this process in place of the link to it; the score of a mark is
the probability of its finding in the report. What the edge dismisses never reaches a report, so
it is not among the marks at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Protocol

import numpy as np

from cloud.settings import load_settings as load_cloud_settings
from cloud.stream import verdict_of
from edge.assemble import build_pipeline
from edge.budget import Budget
from edge.decide import Plan
from edge.escalation.rois import EscalationResult, cut_rois
from edge.link.estimate import LinkEstimate
from edge.pipeline import detect
from edge.screen import Screening
from edge.settings import EdgeSettings
from edge.settings import load_settings as load_edge_settings
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array
from models.runtime.detection import Candidate
from models.runtime.screener import open_screener
from models.runtime.second_reader import Readings, SecondReader, open_second_reader
from protos.deadline import Deadline
from protos.messages import Roi

Reads = Callable[[Preprocessed], Sequence[Candidate]]
"""A reader: the candidates of a box, each with the score that counts."""

UNHURRIED_S = 3600.0
"""A deadline that cuts no second reading short: accuracy is measured here, not time."""


class ReadsRegions(Protocol):
    """What is needed of a model that `models.runtime.second_reader` opens."""

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of one region."""

    def read(self, batch: UInt8Array) -> Readings:
        """What it says of regions ``(n, z, y, x)``."""


class InProcess:
    """The cloud's model as the line's second reader, without a link between."""

    def __init__(self, model: ReadsRegions) -> None:
        self._model = model

    def estimate(self) -> LinkEstimate:
        """A link that is always there."""
        return LinkEstimate()

    def read(
        self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str
    ) -> EscalationResult:
        """The model's word on every region that ``plan`` sends."""
        return self.read_rois(
            cut_rois(plan, box, self._model.roi_shape), budget.deadline, study_key
        )

    def read_rois(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str
    ) -> EscalationResult:
        """The model's word on ``rois``."""
        del deadline, study_key  # nothing is late and nothing is sent
        if not rois:
            return EscalationResult()
        readings = self._model.read(np.stack([roi.voxels for roi in rois]))
        read = {roi.roi_id: readings[number] for number, roi in enumerate(rois)}
        return EscalationResult(
            verdicts={key: verdict_of(key, one, "in process") for key, one in read.items()},
            masks={key: one.mask for key, one in read.items() if one.mask.any()},
        )


def edge_alone(screener: Screening) -> Reads:
    """The screening network's candidates with its own scores, dismissed ones among them."""
    return screener.screen


def edge_and_cloud(screener: Screening, model: ReadsRegions, settings: EdgeSettings) -> Reads:
    """The findings of a report whose last threshold is 0, for an FROC to move it."""
    side = model.roi_shape[0]
    unhurried = settings.model_copy(update={"deadline_s": UNHURRIED_S, "roi_side": side})
    line = build_pipeline(unhurried, screener, InProcess(model))
    every_one = replace(line.reader, thresholds=replace(line.reader.thresholds, final=0.0))
    line = replace(line, reader=every_one)

    def reads(box: Preprocessed) -> list[Candidate]:
        findings = detect(line, box, line.start_budget(), study_key="evaluation").merged.findings
        return [Candidate(f.centre_mm, f.index_zyx, f.diameter_mm, f.probability) for f in findings]

    return reads


class Stage(Enum):
    """How far a candidate goes."""

    EDGE = "edge"
    BOTH = "both"


def open_reads(stage: Stage, model: str | None, cloud_model: str | None) -> Reads:
    """The reader of `stage`, with the models named or those that the settings name."""
    edge = load_edge_settings(screening_model=model)
    screener = open_screener(edge.screening_model, engine=edge.engine, threads=edge.threads)
    if stage is Stage.EDGE:
        return edge_alone(screener)
    return edge_and_cloud(screener, open_second(cloud_model), edge)


def open_second(cloud_model: str | None) -> SecondReader:
    """The second reader, with the model named or that of the cloud's settings."""
    cloud = load_cloud_settings(model=cloud_model)
    return open_second_reader(cloud.model, engine=cloud.engine, threads=cloud.threads)
