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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

Files = Sequence[Path]


@dataclass
class Study:
    """One study on its way; times on the monotonic clock, None before.

    Attributes:
        ready_s: when a scanner may send it.
        out: the folder of its report.
        took_s: for how long its last association, which brought all of it, was open.
        again: how often it was sent again.
    """

    ready_s: float
    out: Path | None = None
    took_s: float = 0.0
    acknowledged_s: float | None = None
    answered_s: float | None = None
    again: int = 0

    def is_answered(self) -> bool:
        """Return whether its report is out, and note when it was seen first."""
        if self.answered_s is None and self.out and (self.out / "report.json").is_file():
            self.answered_s = time.monotonic()
        return self.answered_s is not None


Sample = dict[str, float]
"""What is so at one time.

``agent`` and ``reader`` are memory in MB. ``late`` studies are ready and not acknowledged, those
that are ``waiting`` wait for their report, the oldest of them for ``oldest_s``.
"""


def endure(
    files: Files, count: int, work: Path, step: Callable[[int, int], None]
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
            studies, _ = _send_all(agent, files, work, many, 0.0, lambda *_: None)
        times = sorted(one.answered_s or 0.0 for one in studies)
        rate = (len(times) - 1) / (times[-1] - times[0])
        studies, samples = _send_all(agent, files, work, count, 1 / (OVERLOAD * rate), step)
    about = {"slices": len(files), "megabytes": size / MB, "sustainable_per_s": rate}
    return about | _result(studies, samples, rate)


def _send_all(
    agent: Agent,
    files: Files,
    work: Path,
    count: int,
    interval_s: float,
    step: Callable[[int, int], None],
) -> tuple[list[Study], list[Sample]]:
    """Send studies, one ready each ``interval_s``, until all are answered; sample meanwhile."""
    began_s, stop, samples = time.monotonic(), threading.Event(), list[Sample]()
    studies = [Study(began_s + number * interval_s) for number in range(count)]

    def scan(number: int) -> None:
        study, folder = studies[number], work / "scanner" / f"{number}"
        series = copied(files, folder)
        study.out = agent.out(series.study_uid, series.series_uid)
        stop.wait(max(0.0, study.ready_s - time.monotonic()))
        sent_s = time.monotonic()
        while not stop.is_set() and not send_files(agent.endpoint, series.files):
            stop.wait(PAUSE_S)
            study.again += 1
            sent_s = time.monotonic()
        study.acknowledged_s = time.monotonic()
        study.took_s = study.acknowledged_s - sent_s
        shutil.rmtree(folder)

    with ThreadPoolExecutor(SCANNERS) as scanners:
        sending = [scanners.submit(scan, number) for number in range(count)]
        try:
            while (answered := sum(one.is_answered() for one in studies)) < count:
                agent.process.require_alive()
                if time.monotonic() - began_s > LIMIT_S:
                    raise agent.process.failed(f"has not answered all within {LIMIT_S:g} s")
                for failed in (one for one in sending if one.done()):
                    failed.result()
                samples.append(_sample(agent, studies))
                step(answered, count)
                time.sleep(SAMPLE_S)
        finally:
            stop.set()
    return studies, samples


def _sample(agent: Agent, studies: Sequence[Study]) -> Sample:
    now_s, pid = time.monotonic(), agent.process.pid
    waiting = [
        now_s - one.acknowledged_s
        for one in studies
        if one.acknowledged_s is not None and one.answered_s is None
    ]
    late = sum(one.ready_s <= now_s and one.acknowledged_s is None for one in studies)
    reader_mb = max(map(resident_mb, children_of(pid)), default=0.0)
    return {
        "agent": resident_mb(pid), "reader": reader_mb, "late": late, "waiting": len(waiting),
        "oldest_s": max(waiting, default=0.0),
    }  # fmt: skip


def _result(studies: Sequence[Study], samples: Sequence[Sample], rate: float) -> dict[str, Any]:
    ends = [one.acknowledged_s or 0.0 for one in studies]
    outs = [one.out for one in studies if one.out]
    spans_s = {
        "transfer": [one.took_s for one in studies],
        "answer": [(one.answered_s or 0.0) - (one.acknowledged_s or 0.0) for one in studies],
        "from_ready": [(one.answered_s or 0.0) - one.ready_s for one in studies],
    }
    return {
        "studies": len(studies),
        "answered": sum(one.is_answered() for one in studies),
        "doubled": sum(out.with_name(f"{out.name}-2").exists() for out in outs),
        "sender": sender_name(),
        "scanners": SCANNERS,
        "ready_per_s": OVERLOAD * rate,
        "taken_per_s": (len(ends) - 1) / (max(ends) - min(ends)),
        "span_s": SAMPLE_S * len(samples),
        "sent_again": sum(one.again for one in studies),
        **{
            f"{name}_p{q}_s": float(np.percentile(values, q))
            for name, values in spans_s.items()
            for q in (50, 95)
        },
        "late_most": max(one["late"] for one in samples),
        "queue_most": max(one["waiting"] for one in samples),
        "queue_oldest_most_s": max(one["oldest_s"] for one in samples),
        "memory": {name: growth_of([one[name] for one in samples]) for name in ("agent", "reader")},
        "growth_bar": GROWTH_BAR,
    }


def growth_of(values: Sequence[float]) -> dict[str, float]:
    """Return the medians of the second and the last quarter in MB, and the growth between them."""
    quarters = [[one for one in part if one > 0] for part in np.array_split(values, 4)]
    second, last = (float(np.median(part)) if part else 0.0 for part in quarters[1::2])
    growth = last / second - 1 if second and last else 0.0
    most_mb = max(values, default=0.0)
    return {"second_mb": second, "last_mb": last, "most_mb": most_mb, "growth": growth}
