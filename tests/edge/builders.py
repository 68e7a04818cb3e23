"""Builders for tests of the edge: candidates, pipelines, sites with pending reads, an inbox."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge.agent.inbox import Inbox
from edge.agent.study import Work, process_study
from edge.amend.amender import Amender, RetryBudget
from edge.amend.persist import persist_in
from edge.assemble import build_pipeline
from edge.database import Schema, StepHook
from edge.decide import Plan, Situation, Thresholds, decide
from edge.dicom_out.exports import ExportStore
from edge.escalation.client import NoSecondReader, SecondReader
from edge.escalation.rois import EscalationResult
from edge.folders import AgentFolders
from edge.guarantee import Terms
from edge.job import Job
from edge.link.estimate import LinkEstimate
from edge.merge import MergeWeights
from edge.pipeline import PersistPending, Pipeline, StudyResult, read_and_report
from edge.report.folder import report_names
from edge.report.model import Report
from edge.run import PARTS
from edge.selection import SELECTION_POLICY, SelectionPolicy
from edge.settings.core import EdgeSettings, load_settings
from edge.store.record import Record, Step
from edge.store.studies import StudyStore
from evaluation.world import settings_in
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, StudyHeader, Volume
from models.runtime.detection import Candidate
from models.runtime.screener import read_by
from protos.deadline import Clock, Deadline
from protos.messages import Priority, Refusal, Roi, Verdict

THRESHOLDS = Thresholds(possible=0.5, finding=0.5, dismiss=0.1, report=0.9)
LISTING = replace(THRESHOLDS, possible=0.2, finding=0.6)
"""Thresholds with a list of possible findings."""
WEIGHTS = MergeWeights(bias=0.0, edge=1.0, cloud=1.0, least=-2.1972, most=9.0)
"""No verdict brings a score of 0.9 below 0.5."""
SHAPE = (48, 48, 48)
GUARANTEE: dict[str, Any] = {
    "alpha": 0.05,
    "alpha_findings": 0.1,
    "delta": 0.1,
    "patients": 62,
    "calibration": "0123abcd",
    "screening": read_by("1"),
    "hybrid": "fake 1",
    "slice_mm": 2.5,
    "region_side": 48,
    "basis": "nodules inserted into whole scans",
    "min_age": 18,
    "kernels": ["BONE", "STANDARD"],
    "contrast": True,
}
TERMS = Terms(**{**GUARANTEE, "kernels": ("BONE", "STANDARD")})
SETTINGS = {
    "thresholds": {"dismiss": 0.1, "report": 0.9, "finding": 0.5, "possible": 0.5},
    "merge": [0.0, 1.0, 1.0, -2.1972, 9.0],
}


def nothing(_step: Enum, _durable: bool) -> None:
    """Do nothing at a step."""


def schema_of(path: Path, targets: Sequence[str] = ()) -> Schema:
    """What all parts store in the database at ``path``, as with these targets."""
    settings = EdgeSettings(state_dir=path.parent, inbox=path.parent.parent / "inbox")
    schema = Schema.joined(part.schema(settings) for part in PARTS)
    export = partial(ExportStore, targets=targets)
    return replace(schema, extensions=(export,) if targets else ())


def open_store(path: Path, targets: Sequence[str] = (), on_step: StepHook = nothing) -> StudyStore:
    """Open the database at ``path``; it is made if it is missing."""
    return StudyStore(path, schema_of(path, targets), on_step)


class HandClock:
    """A clock that moves only by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
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
    """A candidate of 6 mm, one for each location ``at``."""
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
    """The plan for candidates of these scores, with enough time."""
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
    volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3")
    return Study(volume, source, StudyHeader(age="060Y", kernel="STANDARD"))


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


def changed(settings: EdgeSettings, **values: object) -> EdgeSettings:
    """These settings with other values, named as `load_settings` names them."""
    return load_settings(None, **(settings.model_dump() | values))


def report_of(pipeline: Pipeline, out: Path) -> Report:
    return read_and_report(pipeline, Job(Path("study"), out, "key-1")).report


HEADER = StudyHeader(patient_id="P1", study_date="20260301", age="060Y", kernel="STANDARD")


@dataclass
class SilentCloud:
    """A link that is up as long as ``answers`` are left; each is given to one retry.

    An answer is the number of regions, from the first, that get a verdict of ``probability``.
    Studies whose key is in ``refuses`` get refusals instead.
    """

    answers: list[int] = field(default_factory=list)
    probability: float = 0.99
    available: bool = True
    probing: bool = False
    refuses: set[str] = field(default_factory=set)
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    priorities: list[Priority | None] = field(default_factory=list)

    def estimate(self) -> LinkEstimate:
        """Up, down or about to find out, as it is set."""
        return LinkEstimate(available=self.available, probing=self.probing)

    def read(self, *_: object) -> EscalationResult:
        """Nothing comes by the deadline."""
        return EscalationResult(reason="Unreachable: nobody listens", attempts=1)

    def read_rois(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        """The next of the answers."""
        assert not deadline.passed
        self.priorities.append(priority)
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
    """One that answers a study's first retry with nothing, the second with one region, then all.

    Requests are recorded in the file ``log``, so that the next process continues from there.
    """

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def read_rois(
        self, rois: Sequence[Roi], deadline: Deadline, study_key: str, *rest: Any, **more: Any
    ) -> EscalationResult:
        """As many as this study's retries so far."""
        before = self._log.read_text().split() if self._log.exists() else []
        with self._log.open("a") as log:
            log.write(f"{study_key}\n")
        asked = before.count(study_key)
        self.answers = [len(rois) if asked > 1 else asked]
        return super().read_rois(rois, deadline, study_key, *rest, **more)


def pending_pipeline(
    second: SecondReader,
    scores: Sequence[float] = SCORES,
    *,
    pictures: bool = False,
    characterize: bool = False,
) -> Pipeline:
    """The real pipeline, calibrated; two candidates of its study are pending.

    With ``characterize`` its finding is too.
    """
    pipeline = pipeline_of(second, scores, guarantee=GUARANTEE, cloud__characterize=characterize)
    pipeline = replace(pipeline, read=_study_with_header)
    return pipeline if pictures else replace(pipeline, draw=lambda *_: {})


def report_with(
    job: Job,
    persist: PersistPending,
    read: Callable[[Path], Study],
    second: SecondReader | None = None,
    *,
    pictures: bool = False,
    **parts: Any,
) -> StudyResult:
    """Read and report as `pending_pipeline` does, with this way to read files."""
    pipeline = pending_pipeline(second or NoSecondReader(), pictures=pictures)
    return read_and_report(replace(pipeline, read=read, persist_pending=persist, **parts), job)


def _study_with_header(source: Path) -> Study:
    return replace(study_at(source), header=HEADER, other_series=("1.2.4: 2 slices, localizer",))


def put(inbox: Path, name: str, text: str = "pixels", done: bool = True) -> Path:
    """A study of two files in the inbox, marked as complete if ``done``."""
    folder = inbox / name
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.dcm").write_text(text)
    if done:
        (folder / ".done").touch()
    return folder


def put_all(inbox: Path, **texts: str) -> None:
    """Marked studies of these names, with these texts."""
    for name, text in texts.items():
        put(inbox, name, text)


def open_claim(store: StudyStore, *members: str) -> Record:
    record = store.open_claim(members, report_names(members[0]))
    assert record is not None
    return record


PAUSE_S = 4.0
UNHURRIED = RetryBudget(
    first_s=20.0, longest_s=20.0, max_rois=64, pause_s=PAUSE_S, max_days=30.0, max_bytes=math.inf
)
BY_EDGE = {1: 0.95, 2: 0.7}
"""Findings of version 1 by number, with their probability: the edge alone."""


class Site:
    """A store, its folders, and an amender on a clock by hand."""

    def __init__(self, root: Path, store: StudyStore, cloud: SilentCloud) -> None:
        self.clock, self.store, self.cloud = HandClock(), store, cloud
        self.places = AgentFolders.of(settings_in(root))
        self.places.make()
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.amender = self.start()

    def start(self, **limits: Any) -> Amender:
        return Amender(
            self.store,
            self.places.outbox,
            self.cloud,
            replace(UNHURRIED, **limits),
            clock=self.clock,
            now=lambda: self.now,
            jitter=lambda _low, high: high,
        )

    def study(
        self, name: str, *scores: float, second: SecondReader | None = None, **options: bool
    ) -> Record:
        """A study whose report is out, with two pending ROIs; ``options`` of the pipeline."""
        record = open_claim(self.store, name)
        put(self.places.work / record.id, name)
        record = self.store.advance(record.id, Step.CLAIMED)

        def read(job: Job) -> StudyResult:
            pipeline = pending_pipeline(second or self.cloud, scores or SCORES, **options)
            provenance = replace(pipeline.provenance, amends=True)
            pipeline = replace(pipeline, provenance=provenance)
            persist = persist_in(self.store.pending)
            return read_and_report(replace(pipeline, persist_pending=persist), job)

        process_study(record, Work(self.places, self.store, read, 60.0, [].append))
        return self.store.get(record.id)

    def turns(self, after_s: float = 0.0) -> None:
        self.clock.sleep(after_s)
        while self.amender.run_once():
            pass

    def report(self, name: str, version: str = "") -> dict[str, Any]:
        """The report of a study as its readers have it."""
        return report_in(self.places.outbox.parent, name, version)


@contextmanager
def site_at(root: Path, cloud: SilentCloud, on_step: StepHook | None = None) -> Iterator[Site]:
    """A site that tells ``on_step`` of every durable step."""
    (root / "state").mkdir(exist_ok=True)
    with open_store(root / "state" / "s.db", (), on_step or nothing) as store:
        yield Site(root, store, cloud)


def report_in(root: Path, name: str = "a", version: str = "") -> dict[str, Any]:
    """A report of the agent below ``root``, the last version or ``.v1``, ``.v2`` and on."""
    path = root / "outbox" / name / f"report{version}.json"
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def findings(report: dict[str, Any]) -> dict[int, float]:
    """Number to probability."""
    return {finding["number"]: finding["probability"] for finding in report["findings"]}


QUIET_S = 5.0


class Box:
    """An inbox in a folder, and its clock; ``wall`` is that by which files are dated."""

    def __init__(self, folder: Path, wall: Callable[[], float] = time.time) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.clock = folder, HandClock()
        self.inbox = Inbox(folder, QUIET_S, self.clock, wall)

    def names(self) -> list[str]:
        """The studies that are complete now."""
        return [arrival.name for arrival in self.inbox.complete()]

    def stays(self, *names: str, polls: int = 3) -> None:
        """Require that only these are complete, however quiet the others are."""
        for _ in range(polls):
            assert self.names() == [*names]
            self.clock.sleep(QUIET_S)

    def later(self, seconds: float = QUIET_S) -> list[str]:
        """Those that are complete after a while."""
        self.clock.sleep(seconds)
        return self.names()
