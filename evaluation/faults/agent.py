"""The agent of ``overread-eval nothing-lost``, which may die or find its disk full at any step.

It is the real agent, with real receiver, reader of the series, database, reports, DICOM objects,
deliveries and audit trail. What stands in: the lung box, the candidates and the cloud. The box is
noise that depends on the series, and each verdict on the middle of its ROI: so the last version of
every report is known beforehand. First reports have no pictures, which take long to encode.
"""

import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from enum import Enum
from pathlib import Path
from typing import Any, Self

import numpy as np

from edge.amend import amender
from edge.amend.amender import QUIET_S
from edge.assemble import build_pipeline
from edge.dicom_out.deliver import made_objects
from edge.escalation.client import SecondReader, open_second_reader
from edge.escalation.rois import EscalationResult, mask_of
from edge.job import Job
from edge.pipeline import PersistPending, Pipeline, StudyResult, read_and_report
from edge.report.write import write_version
from edge.run import run_agent
from edge.settings.core import EdgeSettings
from edge.settings.targets import DicomTarget, DicomWebTarget
from evaluation.accuracy.readers import InProcess
from evaluation.faults.fault_points import AMENDED, NAME_OF, OBJECTS, REPORT, Order, Trigger, fill
from evaluation.receiving.archive import AE_TITLE
from evaluation.sleeping_cloud import DIAMETER_MM, outline_of, probability_of
from evaluation.world import settings_in
from imaging.preprocess import Preprocessed
from imaging.read import read_study
from imaging.volume import Geometry, Volume
from models.runtime.detection import Candidate
from process.logs import configure_logging
from protos.codec import pack_mask
from protos.messages import Roi, Verdict

ANSWER_S = 10.0
"""Longest wait for an archive, so that an answer that is lost delays a round by no more."""

FULL_S = 0.3
"""For so long the disk stays full, when it is filled at a step."""

SCORES = (0.95, 0.6, 0.4)
"""Of the candidates: one is reported, two need the cloud."""

MANIFEST: Mapping[str, object] = {
    "thresholds": {"dismiss": 0.1, "report": 0.9, "finding": 0.5, "possible": 0.3},
    "merge": [0.0, 1.0, 1.0, -2.19, 9.0],
}

MIN_S, MAX_S = 3600.0, 400 * 24 * 3600.0
"""Of a jump: the longest is longer than pending reads are kept."""

JUMPS, LOOKS = 1, 2
"""Places of the counts in the memory that the processes share."""


@dataclass(frozen=True)
class Life:
    """What the life of one agent is like.

    Attributes:
        root: its folders, and the file ``log``.
        dicom_port: where it receives.
        archive_port: of the archive by C-STORE.
        web: address of the archive by STOW-RS.
        varied: whether candidates and answers differ from study to study; otherwise the candidates
            are `SCORES`, and the cloud answers later.
        seed: of what a cloud answers at random.
        cloud: address of a real cloud, in place of one that stands in; studies do not wait long.
        clock_seed: makes the wall clock jump.
    """

    root: Path
    dicom_port: int
    archive_port: int
    web: str
    varied: bool = False
    seed: int = 0
    cloud: str | None = None
    clock_seed: int | None = None

    @property
    def settings(self) -> EdgeSettings:
        """Return the settings of the agent."""
        by_dicom = DicomTarget(
            kind="dicom",
            name="archive",
            address=f"127.0.0.1:{self.archive_port}",
            called_ae=AE_TITLE,
            timeout_s=ANSWER_S,
        )
        by_web = DicomWebTarget(kind="dicomweb", name="web", url=self.web, timeout_s=ANSWER_S)
        return settings_in(
            self.root,
            receive__dicom__address=f"127.0.0.1:{self.dicom_port}",
            receive__complete_at_end=True,
            receive__min_free_mb=1,
            quiet_s=2.0,
            targets=(by_dicom, by_web),
            deadline_s=60.0 if self.cloud is None else 1.0,
            reserve_s=0.2,
            cloud__health_check_s=0.5,
            cloud__address=self.cloud,
        )


class Screener:
    """A screening network that proposes candidates 3 mm apart in any box."""

    name, version, engine, settings = "given", "1", "none", MANIFEST

    def __init__(self, varied: bool) -> None:
        self._varied = varied

    def screen(self, box: Preprocessed) -> list[Candidate]:
        """Return candidates by falling score: up to five that depend on the box, or `SCORES`."""
        chance, scores = random.Random(box.voxels[:2].tobytes()), [*SCORES]
        if self._varied:
            scores = [round(chance.uniform(0.02, 0.98), 3) for _ in range(chance.randrange(6))]
        return [
            Candidate((3.0 * i, 20.0, 20.0), (20.0, 20.0, 3.0 * i), 6.0, score)
            for i, score in enumerate(sorted(scores, reverse=True))
        ]


def box_of(volume: Volume, *_: object) -> Preprocessed:
    """Return a box of noise, which depends on the voxels of the series."""
    seed = int(np.abs(volume.hu.astype(np.int64)).sum())
    voxels = np.random.default_rng(seed).integers(0, 255, (40, 40, 60), np.uint8)
    return Preprocessed(voxels, Geometry())


def stand_in_pipeline(second: SecondReader, *, varied: bool, settings: EdgeSettings) -> Pipeline:
    """Return the real pipeline around the stand-ins."""
    pipeline = build_pipeline(settings, Screener(varied), second)
    return replace(pipeline, read=read_study, preprocess=box_of, draw=lambda *_: {})


Point = Callable[[str, bool], None]
"""Called with the name of a durable step, before and after it."""

Choose = Callable[[Sequence[int], bool], Sequence[int]]
"""Returns the ROIs that a cloud answers, of those that it is asked for, in time or in a retry."""


def at_random(seed: int) -> Choose:
    """Answer nothing for half of the studies and retries, and a part in the others."""
    chance = random.Random(seed)

    def choose(numbers: Sequence[int], _is_retry: bool) -> Sequence[int]:
        share = chance.choice((0.0, 0.0, 0.5, 1.0))
        return [number for number in numbers if chance.random() < share]

    return choose


def later(trigger: Trigger, clock: Callable[[], float]) -> Choose:
    """Answer nothing in time, and all that is asked for in a retry.

    If the trigger says so, it is a half at a time, and the next only when a version is out.
    """
    next_s = -math.inf

    def choose(numbers: Sequence[int], is_retry: bool) -> Sequence[int]:
        nonlocal next_s
        if not is_retry or clock() < next_s:
            return ()
        if not trigger.by_halves:
            return numbers
        next_s = clock() + 2 * QUIET_S
        return numbers[: (len(numbers) + 1) // 2]

    return choose


def stand_in_cloud(choose: Choose) -> InProcess:
    """Return a cloud without a network and a model, which answers a part of what it is asked."""

    def answers(rois: Sequence[Roi], is_retry: bool) -> EscalationResult:
        chosen = choose([roi.roi_id for roi in rois], is_retry)
        return verdicts_on([roi for roi in rois if roi.roi_id in chosen])

    return InProcess(answers)


def verdicts_on(rois: Sequence[Roi]) -> EscalationResult:
    """Return the verdicts on these ROIs, those of `evaluation.sleeping_cloud`."""
    verdicts, masks = {}, {}
    for roi in rois:
        probability, mask = probability_of(roi.voxels), pack_mask(outline_of(roi.voxels))
        verdict = Verdict(
            roi.roi_id, probability, DIAMETER_MM, "sleeping 1", 0.0, 0.001, None, "solid", mask
        )
        verdicts[roi.roi_id] = verdict
        if (drawn := mask_of(verdict, roi)) is not None:
            masks[roi.roi_id] = drawn
    return EscalationResult(verdicts, masks=masks, reason="the link was lost", attempts=1)


def serve(life: Life, trigger: Trigger, order: Order, shared: Any) -> None:
    """Run the agent until SIGTERM, or until ``trigger`` is met.

    ``shared`` has three numbers: by how many seconds the agent's monotonic clock is ahead, and how
    often its wall clock was set and read.
    """
    order.watch()
    ballast = life.root / "ballast"

    def clock() -> float:
        return time.monotonic() + float(shared[0])

    wall = None if life.clock_seed is None else WallClock(life.clock_seed, time.time(), shared)

    def free() -> None:
        ballast.unlink()
        trigger.freed()

    def fault_point(name: str, after: bool) -> None:
        if trigger.met(name, after):
            if trigger.fills:
                fill(ballast)
                threading.Timer(FULL_S, free).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_step(step: Enum, durable: bool) -> None:
        order.on_step(step, durable)
        if wall is not None:
            wall.jump()  # before and after every step, even if the clock is not read
        if step in NAME_OF:
            fault_point(NAME_OF[step], durable)

    setattr(amender, "write_version", _around(write_version, AMENDED, fault_point))  # noqa: B010
    with ExitStack() as held:
        configure_logging("text", held.enter_context((life.root / "log").open("a")))
        if wall is not None:
            held.enter_context(edge_clock(wall))
        choose = at_random(life.seed) if life.varied else later(trigger, clock)
        second: SecondReader = stand_in_cloud(choose)
        if life.cloud is not None:
            second = open_second_reader(life.settings, held, time.monotonic)
        run_agent(
            life.settings,
            read=reader(second, life.settings, varied=life.varied, point=fault_point),
            second=second,
            on_step=on_step,
            clock=clock,
            make_objects=_around(made_objects, OBJECTS, fault_point),
        )


def _around(what: Callable[..., Any], name: str, point: Point) -> Any:

    def run(*arguments: Any, **options: Any) -> Any:
        point(name, False)
        result = what(*arguments, **options)
        point(name, True)
        return result

    return run


def reader(
    second: SecondReader,
    settings: EdgeSettings,
    *,
    varied: bool,
    point: Point = lambda _name, _after: None,
) -> Callable[[Job, PersistPending], StudyResult]:
    """Return what reads studies for `run_agent`; it calls ``point`` around the report."""
    pipeline = stand_in_pipeline(second, varied=varied, settings=settings)
    pipeline = replace(pipeline, write=_around(pipeline.write, REPORT, point))
    return lambda job, persist: read_and_report(replace(pipeline, persist_pending=persist), job)


class WallClock:
    """A time of day that jumps by an hour up to more than a year, both ways, also when it is read.

    ``counts`` has at `JUMPS` how often it was set, and at `LOOKS` how often it was read.
    """

    def __init__(self, seed: int, real_s: float, counts: Any) -> None:
        self._chance, self._ahead_s, self._counts = random.Random(seed), 0.0, counts
        self._began_s = real_s - time.monotonic()

    def jump(self) -> None:
        """Set the clock before or after the right time."""
        by_s = MIN_S * (MAX_S / MIN_S) ** self._chance.random()
        self._ahead_s = self._chance.choice((-1.0, 1.0)) * by_s
        self._counts[JUMPS] += 1

    def now_s(self) -> float:
        """Return the seconds since 1970 by this clock."""
        self._counts[LOOKS] += 1
        if self._chance.random() < 0.5:
            self.jump()
        return self._began_s + time.monotonic() + self._ahead_s


@contextmanager
def edge_clock(clock: WallClock) -> Iterator[None]:
    """Replace the time of day in the edge by ``clock`` for the time of the context.

    It is replaced for no library: pynetdicom's timers go by it, and would abort associations.
    Monotonic time stays, as it does where an administrator or a time server sets a clock.
    """

    class Jumping(datetime):
        """The time of day by that clock."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """As `datetime.now`."""
            return cls.fromtimestamp(clock.now_s(), tz)

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "edge"]
    dated = [module for module in modules if getattr(module, "datetime", None) is datetime]
    real = time.time

    def seconds() -> float:
        asks = sys._getframe(1).f_globals.get("__name__", "")  # no other way
        return clock.now_s() if asks.split(".")[0] == "edge" else real()

    for module in dated:
        module.datetime = Jumping  # type: ignore[attr-defined] # each imports it by this name
    time.time = seconds
    try:
        yield
    finally:
        time.time = real
        for module in dated:
            module.datetime = datetime  # type: ignore[attr-defined] # put back, by the same name
