"""The agent of the chaos tests: real agent, database and reports, around studies without a scan.

Each study contains the scores that the edge sees in it. The cloud answers at random, some ROIs at
once and some on a retry, but always the same for the same ROI. So the last version of every report
is known beforehand, whatever is killed on the way.
"""

import hashlib
import json
import os
import random
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np

from edge.amend import amender
from edge.assemble import build_pipeline
from edge.budget import Budget
from edge.database import StepHook
from edge.decide import Plan
from edge.escalation.client import SecondReader
from edge.escalation.rois import EscalationResult, mask_of
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.run import run_agent
from edge.settings.core import EdgeSettings, load_settings
from edge.store.pending import PersistPending
from imaging.errors import NotCt
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, Volume
from models.runtime.detection import Candidate
from process.logs import configure_logging
from protos.codec import pack_mask
from protos.deadline import Deadline
from protos.messages import Priority, Roi, Verdict

Crash = tuple[Enum, bool] | None
"""The durable step at which the agent kills itself, and whether just after it."""

SIDE = 16
"""Voxels of an ROI along each axis: small, so that a round is short."""

PIPELINE = load_settings(cloud__roi_side=SIDE, deadline_s=60.0)

MANIFEST: Mapping[str, object] = {
    "thresholds": {"dismiss": 0.1, "report": 0.9, "finding": 0.5, "possible": 0.3},
    "merge": [0.0, 1.0, 1.0, -2.19, 9.0],
}


def put_study(inbox: Path, name: str, scores: Sequence[float] | None) -> None:
    """Write a study with these scores into the inbox; None is an unusable study."""
    folder = inbox / name
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / ".done").touch()


def serve(root: Path, crash: Crash, seed: int) -> None:
    """Work until SIGTERM, or until the agent kills itself at ``crash``."""

    def on_step(step: Enum, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    amender.QUIET_S = 0.01  # for this process alone: its other pauses are as short
    with logging_below(root):
        work(root, RandomCloud(random.Random(seed)), on_step=on_step)


@contextmanager
def logging_below(root: Path) -> Iterator[None]:
    """Log to the file ``log`` for the time of the context; the file ``started`` marks its start."""
    with (root / "log").open("a") as log:
        configure_logging("text", log)
        (root / "started").touch()
        yield


def work(
    root: Path,
    second: SecondReader,
    *,
    on_step: StepHook | None = None,
    settings: EdgeSettings | None = None,
    pipeline: EdgeSettings = PIPELINE,
    stop: threading.Event | None = None,
) -> None:
    """Run the agent on the site below ``root`` until SIGTERM or ``stop``.

    ``settings`` are those of the agent, `settings_in` by default; ``pipeline`` of its pipeline.
    """

    def read(job: Job, persist: PersistPending) -> StudyResult:
        real = pipeline_of(job.source, second, pipeline)
        return read_and_report(replace(real, persist_pending=persist), job)

    own = settings or settings_in(root)
    run_agent(own, read=read, second=second, on_step=on_step, stop=stop)


def settings_in(root: Path, **more: object) -> EdgeSettings:
    """Return settings with all folders below ``root`` and short pauses; ``more`` goes before."""
    given = {
        "inbox": root / "inbox",
        "outbox": root / "outbox",
        "state_dir": root / "state",
        "quiet_s": 0.02,
        "poll_s": 0.005,
        "cloud__roi_side": SIDE,
    }
    return load_settings(None, **(given | more))


def pipeline_of(source: Path, second: SecondReader, settings: EdgeSettings = PIPELINE) -> Pipeline:
    """Return the real pipeline around the scores of one study."""
    scores = json.loads((source / "scores.json").read_text())
    pipeline = build_pipeline(settings, GivenScores(scores or ()), second)

    def read(source: Path) -> Study:
        if scores is None:
            raise NotCt("unusable study", source)
        return Study(Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3"), source)

    return replace(pipeline, read=read, preprocess=the_box)


def the_box(*_: object) -> Preprocessed:
    """Return a box of noise, the same for all studies."""
    voxels = np.random.default_rng(0).integers(0, 255, (40, 40, 60), np.uint8)
    return Preprocessed(voxels, Geometry())


@dataclass(frozen=True)
class GivenScores:
    """A screening network that returns given scores for any box."""

    scores: Sequence[float]
    name: str = "given"
    version: str = "1"
    engine: str = "none"
    settings: Mapping[str, object] = field(default_factory=lambda: MANIFEST)

    def screen(self, _box: Preprocessed) -> list[Candidate]:
        """Return one candidate for each score, 3 mm apart."""
        return [
            Candidate((3.0 * i, 20.0, 20.0), (20.0, 20.0, 3.0 * i), 6.0, score)
            for i, score in enumerate(self.scores)
        ]


class StandInCloud(ABC):
    """A cloud without a network and a model, which answers a part of what it is asked for."""

    @abstractmethod
    def answered(self, numbers: Sequence[int], is_retry: bool, /) -> Sequence[int]:
        """Return the ROIs that it answers, of those that it is asked for."""

    def estimate(self) -> LinkEstimate:
        """Return the estimate of a good link."""
        return LinkEstimate()

    def read(
        self,
        plan: Plan,
        _box: Preprocessed,
        _budget: Budget,
        study_key: str,
        _priority: Priority | None = None,
    ) -> EscalationResult:
        """Answer a study."""
        return verdicts_on(self.answered(plan.send, False), study_key)

    def read_rois(
        self,
        rois: Sequence[Roi],
        _deadline: Deadline,
        study_key: str,
        _priority: Priority | None = None,
    ) -> EscalationResult:
        """Answer a retry."""
        asked = [roi.roi_id for roi in rois]
        return verdicts_on(self.answered(asked, True), study_key)


class RandomCloud(StandInCloud):
    """A cloud that answers some ROIs at random, but always the same for one ROI.

    It answers nothing for half of the studies and of the retries, and a part in the others.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def answered(self, numbers: Sequence[int], _is_retry: bool, /) -> Sequence[int]:
        """Return some of them, for a study as for a retry."""
        share = self._chance.choice((0.0, 0.0, 0.5, 1.0))
        return [number for number in numbers if self._chance.random() < share]


def verdicts_on(numbers: Iterable[int], study_key: str) -> EscalationResult:
    """Return the cloud's verdicts on these ROIs; every other one has an outline."""
    verdicts, masks = {}, {}
    for number in numbers:
        probability = hashed_probability(f"{study_key} {number}".encode())
        outline = np.zeros((SIDE,) * 3, bool)
        outline[6:10, 6:10, 6:10] = number % 2 == 0
        verdicts[number] = Verdict(
            number, probability, 8.0, "chance 1", 0.0, 0.001, None, "solid", pack_mask(outline)
        )
        blank = np.zeros((SIDE,) * 3, np.uint8)
        roi = Roi(number, blank, (1.0, 1.0, 1.0), (-1000.0, 400.0), 0.5)
        if (mask := mask_of(verdicts[number], roi)) is not None:
            masks[number] = mask
    return EscalationResult(verdicts, masks=masks, reason="the link was lost", attempts=1)


def hashed_probability(content: bytes) -> float:
    """Return a probability in [0.01, 0.99] from a hash of the content."""
    digest = hashlib.blake2b(content, digest_size=4).digest()
    return 0.01 + 0.98 * int.from_bytes(digest, "big") / 2**32
