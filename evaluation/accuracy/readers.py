"""The readers that are measured: the agent's own code from a lung box to candidates or findings.

The edge alone is its screening network. Edge and cloud together are the middle of the edge's
pipeline, with the cloud's model in this process instead of the link; the score of a candidate is
the probability of its finding in the report. Candidates that the edge dismisses never reach a
report, so they are not among them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from cloud.stream import verdict_of
from edge.assemble import build_pipeline
from edge.budget import Budget
from edge.decide import ROI_SIDE, Plan, Thresholds
from edge.escalation.client import NoSecondReader
from edge.escalation.rois import ROI_SHAPE, EscalationResult, cut_rois
from edge.link.estimate import LinkEstimate
from edge.merge import MergeWeights, merge
from edge.pipeline import Pipeline, detect
from edge.reader import Screening
from edge.report.compose import Assessment
from edge.settings.core import EdgeSettings
from edge.settings.core import load_settings as load_edge_settings
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.runtime.detection import Candidate
from models.runtime.screener import Screener, open_screener
from models.runtime.second_reader import SecondReader, open_second_reader
from protos.deadline import Deadline
from protos.messages import Priority, Roi

Screens = Callable[[Preprocessed], Sequence[Candidate]]
"""A screening: returns the candidates of a lung box."""


class Stage(Enum):
    """Who reads: the edge alone, or edge and cloud."""

    EDGE = "edge"
    BOTH = "both"


STAGES = {Stage.EDGE: "edge", Stage.BOTH: "edge and cloud"}
"""The stages as tables name them."""

StageOption = Annotated[Stage, typer.Option(help="The edge alone, or edge and cloud.")]

Reads = Callable[[Preprocessed], Mapping[Stage, Sequence[Candidate]]]
"""A reader: returns the candidates of a lung box by stage, each with the score that counts."""


_BATCH = 8
"""ROIs that the second reader reads at once, which bounds the memory."""


@dataclass(frozen=True)
class InProcess:
    """A second reader in this process, without a link between.

    ``answers`` gets ROIs, and whether they are those of a retry.
    """

    answers: Callable[[Sequence[Roi], bool], EscalationResult]
    roi_shape: tuple[int, int, int] = ROI_SHAPE

    def estimate(self) -> LinkEstimate:
        """Return the estimate of a link that is always up."""
        return LinkEstimate()

    def read(
        self,
        plan: Plan,
        box: Preprocessed,
        budget: Budget,  # noqa: ARG002 - nothing is late
        study_key: str,  # noqa: ARG002 - and nothing is sent
        priority: Priority | None = None,  # noqa: ARG002
    ) -> EscalationResult:
        """Answer a study."""
        return self.answers(cut_rois(plan, box, self.roi_shape), False)

    def read_rois(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,  # noqa: ARG002
        study_key: str,  # noqa: ARG002
        priority: Priority | None = None,  # noqa: ARG002
    ) -> EscalationResult:
        """Answer a retry."""
        return self.answers(rois, True)


def answers_of(model: SecondReader) -> Callable[[Sequence[Roi], bool], EscalationResult]:
    """Return what gives the verdicts of the cloud's model."""

    def answers(rois: Sequence[Roi], _is_retry: bool) -> EscalationResult:
        if not rois:
            return EscalationResult()
        readings = model.read(np.stack([roi.voxels for roi in rois]))
        read = {roi.roi_id: readings[number] for number, roi in enumerate(rois)}
        return EscalationResult(
            verdicts={key: verdict_of(key, one, "in process") for key, one in read.items()},
            masks={key: one.mask for key, one in read.items() if one.mask.any()},
        )

    return answers


@dataclass(frozen=True, eq=False)
class BoxReading:
    """A lung box as the agent reads it, by falling score of the edge.

    ``alone`` is the result without a cloud, ``both`` that with one; None if there is none.
    """

    candidates: tuple[Candidate, ...]
    alone: Assessment
    both: Assessment | None


class Agent:
    """The edge's pipeline on lung boxes, without a cloud and with the cloud's model beside it."""

    def __init__(
        self, screener: Screening, second: SecondReader | None, settings: EdgeSettings
    ) -> None:
        # No second reading ends early: accuracy is measured here, not time. An audit is a random
        # sample of the studies.
        cloud = settings.cloud.model_copy(update={"audit_rate": 0.0})
        settings = settings.model_copy(update={"deadline_s": 3600.0, "cloud": cloud})
        self.roi_side = ROI_SIDE if second is None else second.roi_shape[0]
        self.max_rois = cloud.max_rois
        self._screener, self._second = ScreenedOnce(screener), second
        self._alone = build_pipeline(settings, self._screener, NoSecondReader())
        self._both: Pipeline | None = None
        if second is not None:
            inside = InProcess(answers_of(second), second.roi_shape)
            self._both = build_pipeline(settings, self._screener, inside)

    @property
    def label(self) -> str:
        """Return screening network, version and engine."""
        return self._alone.reader.label

    @property
    def second_label(self) -> str:
        """Return the second reader, if there is one."""
        return str(getattr(self._second, "name", "no cloud"))

    @property
    def thresholds(self) -> Thresholds:
        """Return the shipped thresholds of the screening network."""
        return self._alone.reader.thresholds

    @property
    def weights(self) -> MergeWeights:
        """Return the shipped weights of the merged score."""
        return self._alone.reader.weights

    def read(self, box: Preprocessed, stage: Stage) -> BoxReading:
        """Return the candidates of a box, and the findings at the shipped thresholds."""
        alone = self._detect(self._alone, box)
        both = None
        if stage is Stage.BOTH and self._both is not None:
            both = self._detect(self._both, box)
        return BoxReading(tuple(self._screener.screen(box)), alone, both)

    def ranked(
        self, reading: BoxReading, box: Preprocessed, *, outlined: bool = True
    ) -> list[Candidate]:
        """Return the findings of both without the last threshold, which the FROC moves.

        Each lies where the report places it, or where the edge found it if not ``outlined``. The
        other candidates follow with the edge's score, or the curve would end there.
        """
        assert reading.both is not None
        open_end = replace(self.thresholds, finding=0.0)
        plan, answers = reading.both.plan, reading.both.answers
        answers = answers if outlined else replace(answers, masks={})
        merged = merge(plan, answers, open_end, self.weights, box.geometry).findings
        found = [
            Candidate(
                candidate.centre_mm,
                candidate.index_zyx,
                candidate.diameter_mm,
                candidate.probability,
            )
            for candidate in merged
        ]
        in_report = {plan.index_of(one) for one in merged}
        rest = [d.candidate for i, d in enumerate(plan.decisions) if i not in in_report]
        return sorted([*found, *rest], key=lambda one: -one.score)

    def second_scores(self, candidates: Sequence[Candidate], box: Preprocessed) -> FloatArray:
        """Return the cloud's probability of each candidate ``(k,)``, also of dismissed ones."""
        assert self._second is not None
        shape, found = self._second.roi_shape, list[FloatArray]()
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            rois = np.stack([cut_roi(box.voxels, one.index_zyx, shape) for one in batch])
            found.append(self._second.read(rois).probability)
        return np.concatenate([*found, np.zeros(0)])

    def reads(self, stage: Stage, *, outlined: bool = True) -> Reads:
        """Return the reader of ``stage``, with the edge alone beside it.

        An outline that the face of a small box cuts has its centre elsewhere: there findings stay
        where the edge found them, if not ``outlined``.
        """

        def read(box: Preprocessed) -> dict[Stage, Sequence[Candidate]]:
            edge = self._screener.screen(box)  # dismissed candidates are among them
            if stage is Stage.EDGE:
                return {stage: edge}
            both = self.ranked(self.read(box, stage), box, outlined=outlined)
            return {Stage.EDGE: edge, stage: both}

        return read

    def _detect(self, pipeline: Pipeline, box: Preprocessed) -> Assessment:
        return detect(pipeline, box, pipeline.start_budget(), study_key="evaluation")


class ScreenedOnce:
    """A screening network that reads each of ``boxes`` once, and any other only once in turn."""

    def __init__(self, screener: Screening, boxes: Iterable[Preprocessed] = ()) -> None:
        self._screener = screener
        self.name, self.version, self.engine = screener.name, screener.version, screener.engine
        self.settings = screener.settings
        self._read = [(box, screener.screen(box)) for box in boxes]
        self._last: list[tuple[Preprocessed, Sequence[Candidate]]] = []

    def screen(self, box: Preprocessed) -> Sequence[Candidate]:
        """Return the candidates by falling score."""
        for one, found in (*self._read, *self._last):
            if one is box:
                return found
        self._last = [(box, self._screener.screen(box))]
        return self._last[0][1]


def open_agent(stage: Stage, model: str | None, cloud_model: str | None) -> Agent:
    """Open what ``stage`` needs, with these models or those of the settings."""
    second = None if stage is Stage.EDGE else open_second(cloud_model)
    settings = load_edge_settings(screening_model=model)
    return Agent(open_screening(model), second, settings)


def open_screening(model: str | None) -> Screener:
    """Open the screening network, with this model or that of the edge's settings."""
    edge = load_edge_settings(screening_model=model)
    return open_screener(edge.screening_model, engine=edge.engine, threads=edge.threads)


def open_second(cloud_model: str | None) -> SecondReader:
    """Open the second reader, with this model or that of the cloud's settings."""
    cloud = load_cloud_settings(model=cloud_model)
    return open_second_reader(cloud.model, engine=cloud.engine, threads=cloud.threads)
