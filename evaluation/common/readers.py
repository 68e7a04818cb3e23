"""The readers that are measured: functions from a lung box to candidates.

The edge alone is its screening network. Edge and cloud together are the middle of the edge's
pipeline, with the cloud's model in this process instead of the link; the score of a candidate is
the probability of its finding in the report. Candidates that the edge dismisses never reach a
report, so they are not among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Annotated, Protocol

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from cloud.stream import verdict_of
from edge.assemble import build_pipeline
from edge.budget import Budget
from edge.decide import Plan
from edge.escalation.rois import EscalationResult, cut_rois
from edge.link.estimate import LinkEstimate
from edge.pipeline import detect
from edge.reader import Screening
from edge.settings import EdgeSettings
from edge.settings import load_settings as load_edge_settings
from imaging.preprocess import Preprocessed
from imaging.volume import UInt8Array
from models.runtime.detection import Candidate
from models.runtime.screener import Screener, open_screener
from models.runtime.second_reader import Readings, SecondReader, open_second_reader
from protos.deadline import Deadline
from protos.messages import Roi

Reads = Callable[[Preprocessed], Sequence[Candidate]]
"""A reader: returns the candidates of a lung box, each with the score that counts."""


class RoiReader(Protocol):
    """The part of `models.runtime.second_reader.SecondReader` that is needed here."""

    @property
    def roi_shape(self) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) of one ROI."""

    def read(self, batch: UInt8Array) -> Readings:
        """Return the readings of ROIs ``(n, z, y, x)``."""


class InProcess:
    """The cloud's model as the pipeline's second reader, without a link between."""

    def __init__(self, model: RoiReader) -> None:
        self._model = model

    def estimate(self) -> LinkEstimate:
        """Return the estimate of a link that is always up."""
        return LinkEstimate()

    def read(
        self, plan: Plan, box: Preprocessed, budget: Budget, study_key: str
    ) -> EscalationResult:
        """Return the model's verdicts on every ROI of ``plan``."""
        rois = cut_rois(plan, box, self._model.roi_shape)
        return self.read_rois(rois, budget.deadline, study_key)

    def read_rois(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str
    ) -> EscalationResult:
        """Return the model's verdicts on ``rois``."""
        del deadline, study_key  # nothing is late and nothing is sent
        if not rois:
            return EscalationResult()
        readings = self._model.read(np.stack([roi.voxels for roi in rois]))
        read = {roi.roi_id: readings[number] for number, roi in enumerate(rois)}
        return EscalationResult(
            verdicts={key: verdict_of(key, one, "in process") for key, one in read.items()},
            masks={key: one.mask for key, one in read.items() if one.mask.any()},
        )


def edge_and_cloud(screener: Screening, model: RoiReader, settings: EdgeSettings) -> Reads:
    """Return the reader of both: findings without the last threshold, which the FROC moves."""
    side = model.roi_shape[0]
    # no second reading ends early: accuracy is measured here, not time
    unlimited = settings.model_copy(update={"deadline_s": 3600.0, "roi_side": side})
    pipeline = build_pipeline(unlimited, screener, InProcess(model))
    thresholds = replace(pipeline.reader.thresholds, final=0.0)
    pipeline = replace(pipeline, reader=replace(pipeline.reader, thresholds=thresholds))

    def reads(box: Preprocessed) -> list[Candidate]:
        found = detect(pipeline, box, pipeline.start_budget(), study_key="evaluation")
        return [
            Candidate(one.centre_mm, one.index_zyx, one.diameter_mm, one.probability)
            for one in found.merged.findings
        ]

    return reads


class Stage(Enum):
    """Who reads: the edge alone, or edge and cloud."""

    EDGE = "edge"
    BOTH = "both"


StageOption = Annotated[Stage, typer.Option(help="The edge alone, or edge and cloud.")]


def open_reads(stage: Stage, model: str | None, cloud_model: str | None) -> Reads:
    """Open the reader of ``stage``, with these models or those of the settings."""
    screener = open_screening(model)
    if stage is Stage.EDGE:
        return screener.screen  # dismissed candidates are among them
    settings = load_edge_settings(screening_model=model)
    return edge_and_cloud(screener, open_second(cloud_model), settings)


def open_screening(model: str | None) -> Screener:
    """Open the screening network, with this model or that of the edge's settings."""
    edge = load_edge_settings(screening_model=model)
    return open_screener(edge.screening_model, engine=edge.engine, threads=edge.threads)


def open_second(cloud_model: str | None) -> SecondReader:
    """Open the second reader, with this model or that of the cloud's settings."""
    cloud = load_cloud_settings(model=cloud_model)
    return open_second_reader(cloud.model, engine=cloud.engine, threads=cloud.threads)
