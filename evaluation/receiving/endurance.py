"""More studies by C-STORE than the agent can read, for minutes: answers, queue and memory.

Some scanners send at once, each one study after the other. First the sustainable rate is measured:
all scanners send as fast as the agent takes their studies and reads them. Then studies become ready
at twice that rate, the scanners send them as soon as they can, and a series that was not taken as a
whole is sent again as a whole. The agent may use so much of the disk only, so that its bound is met
in the run. In the end every study must have its one report. Memory of the agent and of the process
that reads is sampled: the median of the last quarter must not be above that of the second quarter
by more than a tenth.
"""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.errors import ServiceFailed
from evaluation.process_memory import children_of, resident_mb
from evaluation.receiving.sender import copied, send_files, sender_name
from evaluation.world import Agent, running_agent
from imaging.phantom.phantom import PhantomSpec

SCANNERS = 4
"""Associations that may be open at once."""
OVERLOAD = 2.0
"""The rate at which studies become ready, as a multiple of the sustainable one."""
WARM_UP, AT_ONCE = 2, 20
"""Studies before the rate is measured, and for it."""
SAMPLE_S = 0.5
PAUSE_S = 1.0
"""A scanner waits so long before it sends again what was refused."""
GROWTH_BAR = 0.1
ROOM_SHARE, LEAST_ROOM_MB = 0.5, 1000
"""The agent may use so much of the size of all studies, and so much at least: others write too."""
KEEP_GB = 0.3
LIMIT_S = 3600.0
MB = 1_000_000

SPEC = PhantomSpec(
    seed=5, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
    nodule_count=2, diameter_mm=(12.0, 20.0),
)  # fmt: skip
"""A chest of 70 slices, read by the network of the settings."""


@dataclass
class Study:
    """One study on its way; times on the monotonic clock, None before.

    Attributes:
        ready_s: when a scanner may send it.
        took_s: for how long its last association, which brought all of it, was open.
        again: how often it was sent again.
    """

    ready_s: float
    out: Path | None = None
    took_s: float = 0.0
    acknowledged_s: float | None = None
    answered_s: float | None = None
    again: int = 0


class Scanners:
    """Make ``count`` studies from one phantom, and send each when it is ready.

    ``interval_s`` is the time between two studies that become ready; 0: all of them are at once.
    """

    def __init__(
        self, files: Sequence[Path], agent: Agent, work: Path, count: int, interval_s: float = 0.0
    ) -> None:
        self._files, self._agent, self._work = files, agent, work
        began_s = time.monotonic()
        self.studies = [Study(began_s + number * interval_s) for number in range(count)]
        self._left = iter(list(self.studies))  # a list's iterator gives each to one thread only
        self._stop, self._failed = threading.Event(), list[BaseException]()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SCANNERS)]
        for thread in self._threads:
            thread.start()

    def all_answered(self) -> bool:
        """Note the reports that are out; return whether all are."""
        for study in self.studies:
            if study.answered_s is None and study.out and (study.out / "report.json").is_file():
                study.answered_s = time.monotonic()
        return all(study.answered_s is not None for study in self.studies)

    def stop(self) -> None:
        """End the sending.

        Raises:
            ServiceFailed: a scanner failed.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self._failed:
            raise ServiceFailed(f"a scanner: {self._failed[0]!r}") from self._failed[0]

    def _run(self) -> None:
        try:
            for study in self._left:
                folder = self._work / f"{id(study)}"
                series = copied(self._files, folder)
                study.out = self._agent.out(series.study_uid, series.series_uid)
                self._stop.wait(max(0.0, study.ready_s - time.monotonic()))
                self._send(study, series.files)
                shutil.rmtree(folder)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._failed.append(error)

    def _send(self, study: Study, files: Sequence[Path]) -> None:
        """Send a series until all of it is acknowledged."""
        until_s, began_s = time.monotonic() + LIMIT_S, time.monotonic()
        while not self._stop.is_set() and not send_files(self._agent.endpoint, files):
            self._agent.process.require_alive()
            if time.monotonic() > until_s:
                raise self._agent.process.failed(f"took no whole study within {LIMIT_S:g} s")
            self._stop.wait(PAUSE_S)
            study.again += 1
            began_s = time.monotonic()
        study.acknowledged_s = time.monotonic()
        study.took_s = study.acknowledged_s - began_s


@dataclass(frozen=True)
class Sample:
    """What is so at one time: memory in MB, studies that wait, and for how long the oldest has.

    ``late`` studies are ready and not acknowledged; the others wait for their report.
    """

    agent_mb: float
    reader_mb: float
    late: int
    waiting: int
    oldest_s: float


def endure(
    files: Sequence[Path], count: int, work: Path, step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measure the rate, then send ``count`` studies; return the result.

    Raises:
        ServiceFailed: the agent ended, or did not answer within `LIMIT_S`.
    """
    size = sum(file.stat().st_size for file in files)
    room = max(LEAST_ROOM_MB * MB, ROOM_SHARE * count * size)
    free_mb = max(1, int((shutil.disk_usage(work).free - room) / MB))
    bounds: dict[str, Any] = {"receive__min_free_mb": free_mb, "retention__studies_gb": KEEP_GB}
    with running_agent(work / "site", work / "edge.log", **bounds) as agent:
        for many in (WARM_UP, AT_ONCE):
            scanners = Scanners(files, agent, work / "scanner", many)
            _watch(agent, scanners, lambda *_: None)
        times = sorted(one.answered_s or 0.0 for one in scanners.studies)
        rate = (len(times) - 1) / (times[-1] - times[0])
        scanners = Scanners(files, agent, work / "scanner", count, 1 / (OVERLOAD * rate))
        samples = _watch(agent, scanners, step)
    about = {"slices": len(files), "megabytes": size / MB, "sustainable_per_s": rate}
    return about | _result(scanners.studies, samples, rate)


def _watch(agent: Agent, scanners: Scanners, step: Callable[[int, int], None]) -> list[Sample]:
    """Wait until all studies are answered; return what was so meanwhile."""
    samples, until_s = list[Sample](), time.monotonic() + LIMIT_S
    try:
        while not scanners.all_answered():
            agent.process.require_alive()
            if time.monotonic() > until_s:
                raise agent.process.failed(f"has not answered all within {LIMIT_S:g} s")
            samples.append(_sample(agent, scanners.studies))
            answered = sum(one.answered_s is not None for one in scanners.studies)
            step(answered, len(scanners.studies))
            time.sleep(SAMPLE_S)
    finally:
        scanners.stop()
    return samples


def _sample(agent: Agent, studies: Sequence[Study]) -> Sample:
    now_s, pid = time.monotonic(), agent.process.pid
    waiting = [
        now_s - one.acknowledged_s
        for one in studies
        if one.acknowledged_s is not None and one.answered_s is None
    ]
    late = sum(one.ready_s <= now_s and one.acknowledged_s is None for one in studies)
    reader_mb = max(map(resident_mb, children_of(pid)), default=0.0)
    return Sample(resident_mb(pid), reader_mb, late, len(waiting), max(waiting, default=0.0))


def _result(studies: Sequence[Study], samples: Sequence[Sample], rate: float) -> dict[str, Any]:
    ends = [one.acknowledged_s for one in studies if one.acknowledged_s]
    answers = [one.answered_s - one.acknowledged_s for one in studies
               if one.answered_s and one.acknowledged_s]  # fmt: skip
    from_ready = [one.answered_s - one.ready_s for one in studies if one.answered_s]
    outs = [one.out for one in studies if one.out]
    took_s = [one.took_s for one in studies]
    return {
        "studies": len(studies),
        "answered": sum((out / "report.json").is_file() for out in outs),
        "doubled": sum(out.with_name(f"{out.name}-2").exists() for out in outs),
        "sender": sender_name(),
        "scanners": SCANNERS,
        "ready_per_s": OVERLOAD * rate,
        "taken_per_s": (len(ends) - 1) / (max(ends) - min(ends)),
        "span_s": SAMPLE_S * len(samples),
        "sent_again": sum(one.again for one in studies),
        "transfer_p50_s": float(np.percentile(took_s, 50)),
        "transfer_p95_s": float(np.percentile(took_s, 95)),
        "answer_p50_s": float(np.percentile(answers, 50)),
        "answer_p95_s": float(np.percentile(answers, 95)),
        "from_ready_p95_s": float(np.percentile(from_ready, 95)),
        "late_most": max(one.late for one in samples),
        "queue_most": max(one.waiting for one in samples),
        "queue_oldest_most_s": max(one.oldest_s for one in samples),
        "memory": {
            "agent": growth_of([one.agent_mb for one in samples]),
            "reader": growth_of([one.reader_mb for one in samples]),
        },
        "growth_bar": GROWTH_BAR,
    }


def growth_of(values: Sequence[float]) -> dict[str, float]:
    """Return the medians of the second and the last quarter in MB, and the growth between them."""
    count = len(values)
    second = [one for one in values[count // 4 : count // 2] if one > 0]
    last = [one for one in values[3 * count // 4 :] if one > 0]
    medians = [float(np.median(part)) for part in (second, last)] if second and last else [0.0, 0.0]
    return {
        "second_mb": medians[0],
        "last_mb": medians[1],
        "most_mb": max(values, default=0.0),
        "growth": medians[1] / medians[0] - 1 if medians[0] else 0.0,
    }
