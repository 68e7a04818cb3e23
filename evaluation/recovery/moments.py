"""The agent of ``overread-eval nothing-lost``, which dies or finds its disk full at any step.

It is the real agent, with real receiver, database, reports, DICOM objects and deliveries. The real
reader reads the series. What stands in: the lung box, the candidates, and a cloud that answers
nothing in time and all of it later, so that each report has a second version; where a third one is
needed it answers a half at a time. First reports have no pictures, which take long to encode.
"""

import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from edge.amend import amender
from edge.amend.amender import QUIET_S
from edge.assemble import build_pipeline
from edge.dicom_in.steps import ReceiveStep
from edge.dicom_out.deliver import made_objects
from edge.dicom_out.exports import DeliveryStep, ExportStep
from edge.job import Job
from edge.pipeline import StudyResult, read_and_report
from edge.report.evidence import NO_EVIDENCE, EvidenceFiles
from edge.report.model import Report
from edge.report.pictures import Pictures
from edge.report.write import ReportPaths, write_version
from edge.run import run_agent
from edge.settings.core import EdgeSettings
from edge.settings.targets import DicomTarget, DicomWebTarget
from edge.store.pending import PendingStep, PersistPending
from edge.store.steps import Step
from edge.trail.store import TrailStep
from evaluation.receiving.archive import AE_TITLE
from evaluation.recovery.agent import (
    PIPELINE,
    GivenScores,
    StandInCloud,
    logging_below,
    settings_in,
    the_box,
)
from evaluation.recovery.full_disk import fill
from imaging.read import read_study

ACKNOWLEDGED, AT_TARGET = "instance acknowledged", "object at the archive"
"""Steps whose other side sees them: after the first, and at the second, it kills the agent."""

REPORT, AMENDED, OBJECTS = "report written", "amended report written", "DICOM objects written"
MORE_TO_COME = "amendment noted, more to come, audit record"
"""A step that needs a cloud that answers a half at a time."""

STEPS: Mapping[str, Enum | None] = {
    "instance written": ReceiveStep.WRITTEN,
    "instance stored in its series": ReceiveStep.STORED,
    ACKNOWLEDGED: ReceiveStep.ACKNOWLEDGED,
    "series marked complete": ReceiveStep.COMPLETED,
    "claim begun": Step.CLAIMING,
    "study claimed, audit record": Step.CLAIMED,
    "reading counted": Step.READING,
    "pending reads saved": PendingStep.SAVED,
    REPORT: None,
    "study reported, export row, audit record": Step.REPORTED,
    "study put away": Step.DONE,
    "retry counted": PendingStep.RETRYING,
    "late verdicts stored": PendingStep.AMENDING,
    AMENDED: None,
    MORE_TO_COME: PendingStep.PENDING,
    "last amendment noted, audit record": PendingStep.CLOSED,
    OBJECTS: None,
    "objects noted, deliveries begun": ExportStep.MADE,
    "delivery counted": DeliveryStep.TRYING,
    AT_TARGET: None,
    "delivery noted, audit record": DeliveryStep.SENT,
    "audit records in their file": TrailStep.APPENDED,
}
"""The durable steps from association to acknowledged result, in their order."""

NAMES = tuple(STEPS)
_NAME_OF = {step: name for name, step in STEPS.items() if step is not None}

ANSWER_S = 10.0
"""Longest wait for an archive, so that an answer that is lost delays a round by no more."""

SCORES = (0.95, 0.6, 0.4)
"""Of the candidates: one is reported, two need the cloud."""

STAND_INS = (
    "Stand-ins: lung box, candidates and cloud. Real: sender, receiver, reader of the series, "
    "database, report, objects, deliveries, audit trail."
)


class Trigger:
    """The step at which an agent dies or fills its disk, shared by all processes.

    Without locks, which a killed process would hold for ever.
    """

    def __init__(self) -> None:
        self._values: Any = RawArray("i", [-1, 0, 0, 0])

    def arm(self, name: str, after: bool, *, skip: int = 0, fills: bool = False) -> None:
        """Act at this step, when it comes for the time after ``skip`` others."""
        self._values[1:4] = [skip, int(fills), int(name == MORE_TO_COME)]
        self._values[0] = 2 * NAMES.index(name) + after

    def disarm(self) -> None:
        """Act no more."""
        self._values[0] = -1

    @property
    def armed(self) -> bool:
        """Whether the step is still to come."""
        return bool(self._values[0] >= 0)

    @property
    def fills(self) -> bool:
        """Whether the disk is filled, and nothing killed."""
        return bool(self._values[2])

    @property
    def by_halves(self) -> bool:
        """Whether the cloud answers a half of what it is asked for."""
        return bool(self._values[3])

    def met(self, name: str, after: bool) -> bool:
        """Return whether this is the moment; it is met once."""
        if self._values[0] != 2 * NAMES.index(name) + after:
            return False
        if self._values[1] > 0:
            self._values[1] -= 1
            return False
        self.disarm()
        return True


class Order:
    """Checks that an instance is acknowledged only after its file and folder are synchronised.

    It sees every synchronisation of the process, and the steps of the receiver.
    """

    def __init__(self) -> None:
        self._counts: Any = RawArray("i", [0, 0, 0])
        self._of: threading.local | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Acknowledgements that were checked, of these of repeats, and those that were wrong."""
        return dict(zip(("checked", "repeats", "wrong"), self._counts, strict=True))

    def watch(self) -> None:
        """Watch this process."""
        self._of, real = threading.local(), os.fsync

        def fsync(handle: Any) -> None:
            real(handle)
            number = handle if isinstance(handle, int) else handle.fileno()
            if not stat.S_ISDIR(os.fstat(number).st_mode):
                self._seen.append("file")
            elif not os.readlink(f"/proc/self/fd/{number}").endswith("/inbox"):
                self._seen.append("folder")  # that of a series

        setattr(os, "fsync", fsync)  # noqa: B010 - for this process alone

    @property
    def _seen(self) -> list[str]:
        seen: list[str] = vars(self._of).setdefault("seen", [])
        return seen

    def on_step(self, step: Enum, durable: bool) -> None:
        """Note a step of the receiver, in the thread of its sender."""
        if step is ReceiveStep.WRITTEN and not durable:
            self._seen.clear()
        elif step is ReceiveStep.STORED:
            self._seen.append("stored" if durable else "storing")
        elif step is ReceiveStep.ACKNOWLEDGED:
            known = [one for one in self._seen if one in ("storing", "stored")]
            self._counts[0] += 1
            self._counts[1] += not known
            first, *rest = self._seen or ["nothing"]
            sound = first == "file" and (not known or ends_durable(rest))
            self._counts[2] += not sound


def ends_durable(seen: Sequence[str]) -> bool:
    """Return whether a folder was synchronised between the last ``storing`` and ``stored``."""
    if not seen or seen[-1] != "stored" or "storing" not in seen:
        return False
    begun = max(at for at, one in enumerate(seen) if one == "storing")
    return "folder" in seen[begun:]


class LateCloud(StandInCloud):
    """A cloud that answers nothing in time, and all or a half of what it is asked for later."""

    def __init__(self, by_halves: Callable[[], bool]) -> None:
        self._by_halves = by_halves

    def answered(self, numbers: Sequence[int], is_retry: bool, /) -> Sequence[int]:
        """Return none of a study's ROIs, and the first half or all of a retry's."""
        if not is_retry:
            return ()
        return numbers[: (len(numbers) + 1) // 2] if self._by_halves() else numbers


@dataclass(frozen=True)
class Ports:
    """Where the agent receives, and where its archives are."""

    agent: int
    archive: int
    web: str


def settings_of(root: Path, ports: Ports) -> EdgeSettings:
    """Return the settings of the agent below ``root``."""
    by_dicom = DicomTarget(
        kind="dicom",
        name="archive",
        address=f"127.0.0.1:{ports.archive}",
        called_ae=AE_TITLE,
        timeout_s=ANSWER_S,
    )
    by_web = DicomWebTarget(kind="dicomweb", name="web", url=ports.web, timeout_s=ANSWER_S)
    return settings_in(
        root,
        receive__dicom__address=f"127.0.0.1:{ports.agent}",
        receive__complete_at_end=True,
        receive__min_free_mb=1,
        quiet_s=1.0,
        targets=(by_dicom, by_web),
    )


def serve(root: Path, ports: Ports, trigger: Trigger, order: Order, ahead_s: Any) -> None:
    """Run the agent until SIGTERM, or until ``trigger`` is met.

    ``ahead_s`` has one number: by how much the agent's clock is ahead.
    """
    order.watch()

    def moment(name: str, after: bool) -> None:
        if trigger.met(name, after):
            if trigger.fills:
                fill(root / "ballast")
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_step(step: Enum, durable: bool) -> None:
        # for this process alone: the first half of an answer does not wait for the other
        amender.QUIET_S = 0.0 if trigger.by_halves else QUIET_S
        order.on_step(step, durable)
        if step in _NAME_OF:
            moment(_NAME_OF[step], durable)

    setattr(amender, "write_version", _around(write_version, AMENDED, moment))  # noqa: B010
    with logging_below(root):
        run_agent(
            settings_of(root, ports),
            read=_reader(moment, cloud := LateCloud(lambda: trigger.by_halves)),
            second=cloud,
            on_step=on_step,
            clock=lambda: time.monotonic() + float(ahead_s[0]),
            make_objects=_around(made_objects, OBJECTS, moment),
        )


def _around(what: Callable[..., Any], name: str, moment: Callable[[str, bool], None]) -> Any:
    """Return the function with the moments before and after it."""

    def run(*arguments: Any, **options: Any) -> Any:
        moment(name, False)
        result = what(*arguments, **options)
        moment(name, True)
        return result

    return run


def _reader(
    moment: Callable[[str, bool], None], cloud: LateCloud
) -> Callable[[Job, PersistPending], StudyResult]:
    pipeline = build_pipeline(PIPELINE, GivenScores(SCORES), cloud)
    pipeline, real = replace(pipeline, draw=lambda *_: {}), pipeline.write

    def write(
        report: Report, pictures: Pictures, out: Path, evidence: EvidenceFiles = NO_EVIDENCE
    ) -> ReportPaths:
        moment(REPORT, False)
        paths = real(report, pictures, out, evidence)
        moment(REPORT, True)
        return paths

    def read(job: Job, persist: PersistPending) -> StudyResult:
        quick = replace(
            pipeline, read=read_study, preprocess=the_box, persist_pending=persist, write=write
        )
        return read_and_report(quick, job)

    return read


def processes() -> ForkServerContext:
    """Return the way to start agents, with all that they import loaded once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "edge.dicom_out.objects"])
    return context
