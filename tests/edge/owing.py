"""Studies whose second reading does not come in time, and a cloud that gives it later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.assemble import build_pipeline
from edge.escalation.client import SecondReader
from edge.escalation.rois import EscalationResult
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.settings import load_settings
from edge.store.pending import PersistPending
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, StudyHeader, Volume
from protos.deadline import Deadline
from protos.messages import Refusal, Roi, Verdict
from tests.edge.cases import GUARANTEE, SETTINGS, FixedScreener, box

SCORES = (0.95, 0.7, 0.3, 0.05)
"""The first is reported, the next two are uncertain, the last is dismissed."""

HEADER = StudyHeader(patient_id="P1", study_date="20260301")


@dataclass
class SilentCloud:
    """A link that is up as long as ``answers`` are left; each is given to one asking.

    An answer is the number of regions, from the first, that get a verdict of ``probability``.
    Studies whose key is in ``refuses`` get refusals instead.
    """

    answers: list[int] = field(default_factory=list)
    probability: float = 0.99
    available: bool = True
    probing: bool = False
    refuses: set[str] = field(default_factory=set)
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def estimate(self) -> LinkEstimate:
        """Up, down or about to find out, as it is set."""
        return LinkEstimate(available=self.available, probing=self.probing)

    def read(self, *_: object) -> EscalationResult:
        """Nothing comes by the deadline."""
        return EscalationResult(reason="Unreachable: nobody listens", attempts=1)

    def read_rois(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str
    ) -> EscalationResult:
        """The next of the answers."""
        assert not deadline.passed
        self.asked.append((study_key, tuple(roi.roi_id for roi in rois)))
        if study_key in self.refuses:
            refusals = {r.roi_id: Refusal(r.roi_id, "ModelFailed", "no") for r in rois}
            return EscalationResult(refusals=refusals, reason="2 ROIs refused", attempts=1)
        count = self.answers.pop(0) if self.answers else 0
        verdicts = {r.roi_id: self._verdict(r) for r in rois[:count]}
        reason = "" if count >= len(rois) else "Unreachable: nobody listens"
        return EscalationResult(verdicts, reason=reason, attempts=1)

    def _verdict(self, roi: Roi) -> Verdict:
        return Verdict(roi.roi_id, self.probability, 9.0, "fake 1", 0.0, 0.001)


class ForgetfulCloud(SilentCloud):
    """One that answers a study's first asking with nothing, the second with one region, then all.

    What was asked is told in the file ``log``, so that it goes on from there in the next process.
    """

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def read_rois(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str
    ) -> EscalationResult:
        """As many as this study's askings so far."""
        before = self._log.read_text().split() if self._log.exists() else []
        with self._log.open("a") as log:
            log.write(f"{study_key}\n")
        asked = before.count(study_key)
        self.answers = [len(rois) if asked > 1 else asked]
        return super().read_rois(rois, deadline, study_key)


def owing(second: SecondReader, *, pictures: bool = False) -> Pipeline:
    """The real pipeline around a calibrated screener that sees `SCORES`; the cloud is silent."""
    screener = FixedScreener(SCORES, settings={**SETTINGS, "guarantee": GUARANTEE})
    pipeline = build_pipeline(load_settings(deadline_s=60.0), screener, second)
    if not pictures:
        pipeline = replace(pipeline, draw=lambda *_: {})
    return replace(pipeline, read=_study, preprocess=_box)


def owing_line(job: Job, persist: PersistPending) -> StudyResult:
    """Reads a study of which two candidates are owed."""
    return read_and_report(replace(owing(SilentCloud()), persist_pending=persist), job)


def _study(source: Path) -> Study:
    volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3")
    return Study(volume, source, HEADER, ("1.2.4: 2 slices, localizer",))


def _box(_volume: Volume, _source: Path) -> Preprocessed:
    return box()
