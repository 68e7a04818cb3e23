"""An agent to be killed: the real daemon, spool and reports around studies without a scan.

The studies say themselves what the edge sees in them, and the cloud answers by chance, some at
once and some when it is asked again, but always the same of the same region. So it is known what
the last version of every report must say, whatever was killed on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.assemble import build_pipeline
from edge.budget import Budget
from edge.daemon.agent import run_agent
from edge.decide import Plan
from edge.escalation.client import SecondReader
from edge.escalation.rois import EscalationResult, mask_of
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.settings import EdgeSettings
from edge.store.pending import OwedStep, PersistPending
from edge.store.studies import Step, StepHook
from edge.telemetry import configure_logging
from imaging.errors import NotCt
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, Volume
from models.runtime.detection import Candidate
from protos.codec import pack_mask
from protos.deadline import Deadline
from protos.messages import Roi, Verdict

Crash = tuple[Step | OwedStep, bool] | None
"""The durable step at which the agent kills itself, and whether just after it."""

SIDE = 16
"""Voxels of a region along each axis: small, so that a round is short."""

MANIFEST: Mapping[str, object] = {
    "thresholds": {"dismiss": 0.1, "report": 0.9, "alone": 0.5, "final": 0.6},
    "merge": [0.0, 1.0, 1.0],
}


def put_study(inbox: Path, name: str, scores: Sequence[float] | None) -> None:
    """Leave a study in the inbox, in which the edge sees ``scores``; None is one of no use."""
    folder = inbox / name
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / ".done").touch()


def serve(root: Path, crash: Crash, seed: int) -> None:
    """Work until SIGTERM, or until the agent kills itself at ``crash``.

    The file ``started`` below ``root`` is there from the moment before anything is opened.
    """
    cloud = ChanceCloud(random.Random(seed))

    def read(job: Job, persist: PersistPending) -> StudyResult:
        line = replace(line_of(job.source, cloud), persist_pending=persist)
        return read_and_report(line, job)

    with (root / "log").open("a") as log:
        configure_logging("text", log)
        (root / "started").touch()
        run_agent(settings_in(root), read=read, second=cloud, on_step=killing(crash))


def killing(crash: Crash) -> StepHook:
    """Kills this process at ``crash``, and never if that is None."""

    def on_step(step: Step | OwedStep, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def settings_in(root: Path) -> EdgeSettings:
    """Settings with all folders below ``root`` and hardly any waiting."""
    return EdgeSettings(
        inbox=root / "inbox",
        outbox=root / "outbox",
        state_dir=root / "state",
        quiet_s=0.02,
        poll_s=0.005,
        retry_pause_s=0.001,
        roi_side=SIDE,
    )


@dataclass(frozen=True)
class GivenScores:
    """A screening network that sees what it is told, whatever the box."""

    scores: Sequence[float]
    name: str = "given"
    version: str = "1"
    engine: str = "none"
    settings: Mapping[str, object] = field(default_factory=lambda: MANIFEST)

    def screen(self, _box: Preprocessed) -> list[Candidate]:
        """A candidate a score, 3 mm apart."""
        return [
            Candidate((3.0 * i, 20.0, 20.0), (20.0, 20.0, 3.0 * i), 6.0, score)
            for i, score in enumerate(self.scores)
        ]


class ChanceCloud:
    """A cloud that answers some regions, by chance; what it says of one never changes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def estimate(self) -> LinkEstimate:
        """Always worth asking."""
        return LinkEstimate()

    def read(
        self, plan: Plan, _box: Preprocessed, _budget: Budget, study_key: str
    ) -> EscalationResult:
        """Of half of the studies nothing by the deadline, of the others some."""
        return self._some(plan.send, study_key)

    def read_rois(
        self, rois: Sequence[Roi], _deadline: Deadline, study_key: str
    ) -> EscalationResult:
        """Every other time nothing, else some."""
        return self._some([roi.roi_id for roi in rois], study_key)

    def _some(self, places: Sequence[int], study_key: str) -> EscalationResult:
        share = self._chance.choice((0.0, 0.0, 0.5, 1.0))
        answered = [place for place in places if self._chance.random() < share]
        return verdicts_on(answered, study_key)


def verdicts_on(places: Iterable[int], study_key: str) -> EscalationResult:
    """What the cloud says of these regions; every other one is outlined."""
    verdicts = {place: _verdict(place, study_key) for place in places}
    blank = np.zeros((SIDE,) * 3, np.uint8)
    masks = {
        place: mask
        for place, verdict in verdicts.items()
        if (mask := mask_of(verdict, Roi(place, blank, (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)))
        is not None
    }
    return EscalationResult(verdicts, masks=masks, reason="the link was lost", attempts=1)


def _verdict(place: int, study_key: str) -> Verdict:
    digest = hashlib.blake2b(f"{study_key} {place}".encode(), digest_size=4).digest()
    probability = 0.01 + 0.98 * int.from_bytes(digest, "big") / 2**32
    mask = np.zeros((SIDE,) * 3, bool)
    mask[6:10, 6:10, 6:10] = place % 2 == 0
    return Verdict(place, probability, 8.0, "chance 1", 0.0, 0.001, None, "solid", pack_mask(mask))


def line_of(source: Path, cloud: SecondReader) -> Pipeline:
    """The real line around the scores of one study.

    Raises:
        FileNotFoundError: the study is not there.
    """
    scores = json.loads((source / "scores.json").read_text())
    settings = EdgeSettings(roi_side=SIDE, deadline_s=60.0)
    line = build_pipeline(settings, GivenScores(scores or ()), cloud)
    return replace(line, read=_useless if scores is None else _study, preprocess=the_box)


def the_box(*_: object) -> Preprocessed:
    """A box of noise, the same for all."""
    voxels = np.random.default_rng(0).integers(0, 255, (40, 40, 60), np.uint8)
    return Preprocessed(voxels, Geometry())


def _study(source: Path) -> Study:
    return Study(Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3"), source)


def _useless(source: Path) -> Study:
    raise NotCt("a study of no use", source)
