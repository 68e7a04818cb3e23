"""``overread-eval endurance``: more studies by C-STORE than the agent can read, for minutes.

Some scanners send at once, each one study after the other. First the sustainable rate is measured:
all scanners send as fast as the agent takes their studies and reads them. Then studies become ready
at twice that rate, the scanners send them as soon as they can, and a series that was not taken as a
whole is sent again as a whole. The agent may use so much of the disk only, so that its bound is met
in the run. In the end every study must have its one report. Memory of the agent and of the process
that reads is sampled: the median of the last quarter must not be above that of the second quarter
by more than a tenth.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydicom import dcmread
from pydicom.uid import generate_uid

from edge.dicom_out.subject import put
from evaluation.common.cli import STUDIES, Cache, Json, counting, show
from evaluation.common.phantoms import prepare
from evaluation.errors import ServiceFailed
from evaluation.receiving.real_agent import MB, RealAgent, children_of, real_agent, resident_mb
from evaluation.receiving.sender import send_files, sender_name
from evaluation.run import this_machine
from imaging.dicom.arrival import files_of
from imaging.phantom.phantom import PhantomSpec
from models.markdown import Rows

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

    report: Path
    ready_s: float
    took_s: float | None = None
    acknowledged_s: float | None = None
    answered_s: float | None = None
    again: int = 0


class Scanners:
    """Make studies from one phantom, and send those that are ready.

    ``ready_s`` is the time between two studies that become ready; 0: all of them are at once.
    """

    def __init__(
        self, phantom: Path, agent: RealAgent, work: Path, count: int, ready_s: float = 0.0
    ) -> None:
        self._images = [dcmread(file) for file in files_of(phantom)]
        self._agent, self._work, self._left = agent, work, count
        self._ready_s, self._began_s = ready_s, time.monotonic()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.studies, self.failed = list[Study](), list[BaseException]()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SCANNERS)]
        for thread in self.threads:
            thread.start()

    @property
    def sending(self) -> bool:
        """Whether studies are left."""
        return any(thread.is_alive() for thread in self.threads)

    @property
    def late(self) -> int:
        """How many studies are ready and not acknowledged."""
        now_s = time.monotonic()
        ready = now_s - self._began_s
        due = len(self.studies) + self._left
        if self._ready_s:
            due = min(due, 1 + int(ready / self._ready_s))
        return due - sum(one.acknowledged_s is not None for one in self.studies)

    def stop(self) -> None:
        """End the sending.

        Raises:
            ServiceFailed: a scanner failed.
        """
        self._stop.set()
        for thread in self.threads:
            thread.join(60)
        if self.failed:
            raise ServiceFailed(f"a scanner: {self.failed[0]!r}") from self.failed[0]

    def _run(self) -> None:
        try:
            while (taken := self._next()) is not None:
                study, uids, folder = taken
                files = self._written(uids, folder)
                self._stop.wait(max(0.0, study.ready_s - time.monotonic()))
                if not self._stop.is_set():
                    self._send(study, files)
                shutil.rmtree(folder)
        except BaseException as error:
            self.failed.append(error)

    def _next(self) -> tuple[Study, tuple[str, str], Path] | None:
        """Take the next study: its UIDs, and the folder for its files; None after the last one."""
        with self._lock:
            if not self._left or self._stop.is_set():
                return None
            self._left -= 1
            number = len(self.studies)
            uids = str(generate_uid()), str(generate_uid())
            ready_s = self._began_s + number * self._ready_s
            study = Study(self._agent.report(*uids), ready_s)
            self.studies.append(study)
        return study, uids, self._work / f"{uids[1][-16:]}"

    def _written(self, uids: tuple[str, str], folder: Path) -> list[Path]:
        """Write the phantom as another study of another patient; return its files."""
        folder.mkdir(parents=True)
        files = list[Path]()
        with self._lock:  # the data sets are changed for each study
            for number, image in enumerate(self._images):
                put(image, "PatientID", uids[0][-16:])
                put(image, "StudyInstanceUID", uids[0])
                put(image, "SeriesInstanceUID", uids[1])
                put(image, "SOPInstanceUID", generate_uid())
                image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
                files.append(folder / f"{number:05d}.dcm")
                image.save_as(files[-1])
        return files

    def _send(self, study: Study, files: Sequence[Path]) -> None:
        """Send a series until all of it is acknowledged.

        Raises:
            ServiceFailed: the agent ended, or takes it not within `LIMIT_S`.
        """
        until_s = time.monotonic() + LIMIT_S
        began_s = time.monotonic()
        while not send_files(self._agent.endpoint, files):
            self._agent.process.require_alive()
            if time.monotonic() > until_s:
                raise self._agent.process.failed(f"took no whole study within {LIMIT_S:g} s")
            if self._stop.wait(PAUSE_S):
                return
            study.again += 1
            began_s = time.monotonic()
        study.acknowledged_s = time.monotonic()
        study.took_s = study.acknowledged_s - began_s


def measure(phantom: Path, count: int, work: Path, step: Callable[[int, int], None]) -> Any:
    """Measure the rate, then send ``count`` studies; return the result.

    Raises:
        ServiceFailed: the agent ended, or did not answer within `LIMIT_S`.
    """
    free_mb = _bound_mb(phantom, count, work)
    settings = {"receive__min_free_mb": free_mb, "retention__studies_gb": KEEP_GB}
    with real_agent(work / "site", work / "edge.log", **settings) as agent:
        for many in (WARM_UP, AT_ONCE):
            scanners = Scanners(phantom, agent, work / "scanner", many)
            _watch(agent, scanners, many, lambda *_: None)
        times = sorted(one.answered_s or 0.0 for one in scanners.studies)
        rate = (len(times) - 1) / (times[-1] - times[0])
        scanners = Scanners(phantom, agent, work / "scanner", count, 1 / (OVERLOAD * rate))
        samples = _watch(agent, scanners, count, step)
    return _result(scanners.studies, samples, rate, phantom)


def _bound_mb(phantom: Path, count: int, work: Path) -> int:
    """Return how much of the disk stays free, so that the agent may fill only a part of it."""
    each = sum(file.stat().st_size for file in files_of(phantom))
    room = max(LEAST_ROOM_MB * MB, ROOM_SHARE * count * each)
    return max(1, int((shutil.disk_usage(work).free - room) / MB))


def _all_answered(studies: Sequence[Study]) -> bool:
    """Note the reports that are out; return whether all are."""
    for study in studies:
        if study.answered_s is None and study.report.is_file():
            study.answered_s = time.monotonic()
    return all(study.answered_s is not None for study in studies)


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


def _watch(
    agent: RealAgent, scanners: Scanners, count: int, step: Callable[[int, int], None]
) -> list[Sample]:
    """Wait until all studies are answered; return what was so meanwhile."""
    samples, until_s = list[Sample](), time.monotonic() + LIMIT_S
    try:
        while scanners.sending or not _all_answered(scanners.studies):
            agent.process.require_alive()
            if time.monotonic() > until_s:
                raise agent.process.failed(f"has not answered all within {LIMIT_S:g} s")
            _all_answered(scanners.studies)
            samples.append(_sample(agent, scanners))
            step(sum(one.answered_s is not None for one in scanners.studies), count)
            time.sleep(SAMPLE_S)
    finally:
        scanners.stop()
    return samples


def _sample(agent: RealAgent, scanners: Scanners) -> Sample:
    now_s, pid = time.monotonic(), agent.process.pid
    waiting = [
        now_s - one.acknowledged_s
        for one in list(scanners.studies)
        if one.acknowledged_s is not None and one.answered_s is None
    ]
    readers = [resident_mb(child) for child in children_of(pid)]
    most_mb, oldest_s = max(readers, default=0.0), max(waiting, default=0.0)
    return Sample(resident_mb(pid), most_mb, scanners.late, len(waiting), oldest_s)


def _result(
    studies: Sequence[Study], samples: Sequence[Sample], rate: float, phantom: Path
) -> dict[str, Any]:
    sent = [one for one in studies if one.acknowledged_s is not None]
    ends = [one.acknowledged_s or 0.0 for one in sent]
    answers = [one.answered_s - one.acknowledged_s for one in sent
               if one.answered_s and one.acknowledged_s]  # fmt: skip
    from_ready = [one.answered_s - one.ready_s for one in studies if one.answered_s]
    answered = sum(one.report.is_file() for one in studies)
    doubled = sum(one.report.parent.with_name(f"{one.report.parent.name}-2").exists()
                  for one in studies)  # fmt: skip
    memory = {
        name: growth_of([getattr(one, key) for one in samples])
        for name, key in (("agent", "agent_mb"), ("reader", "reader_mb"))
    }
    flat = all(one["growth"] <= GROWTH_BAR for one in memory.values())
    files = files_of(phantom)
    return {
        **this_machine(),
        "studies": len(studies),
        "answered": answered,
        "doubled": doubled,
        "slices": len(files),
        "megabytes": sum(file.stat().st_size for file in files) / MB,
        "sender": sender_name(),
        "scanners": SCANNERS,
        "sustainable_per_s": rate,
        "ready_per_s": OVERLOAD * rate,
        "taken_per_s": (len(ends) - 1) / (max(ends) - min(ends)),
        "span_s": SAMPLE_S * len(samples),
        "sent_again": sum(one.again for one in studies),
        "transfer_p50_s": float(np.percentile([one.took_s or 0.0 for one in sent], 50)),
        "transfer_p95_s": float(np.percentile([one.took_s or 0.0 for one in sent], 95)),
        "answer_p50_s": float(np.percentile(answers, 50)),
        "answer_p95_s": float(np.percentile(answers, 95)),
        "from_ready_p95_s": float(np.percentile(from_ready, 95)),
        "late_most": max(one.late for one in samples),
        "queue_most": max(one.waiting for one in samples),
        "queue_oldest_most_s": max(one.oldest_s for one in samples),
        "memory": memory,
        "growth_bar": GROWTH_BAR,
        "flat": flat,
        "sound": flat and answered == len(studies) and not doubled,
    }


def growth_of(values: Sequence[float]) -> dict[str, float]:
    """Return the medians of the second and the last quarter in MB, and the growth between them."""
    count = len(values)
    second = [one for one in values[count // 4 : count // 2] if one > 0]
    last = [one for one in values[3 * count // 4 :] if one > 0]
    if not second or not last:
        return {
            "second_mb": 0.0,
            "last_mb": 0.0,
            "most_mb": max(values, default=0.0),
            "growth": 0.0,
        }
    medians = float(np.median(second)), float(np.median(last))
    return {
        "second_mb": medians[0],
        "last_mb": medians[1],
        "most_mb": max(values),
        "growth": medians[1] / medians[0] - 1,
    }


def table(result: dict[str, Any]) -> Rows:
    """Return the bars with what was measured."""
    memory = [
        [f"growth of memory, {name}", f"at most {GROWTH_BAR:.0%}",
         f"{one['growth']:+.1%} ({one['second_mb']:.0f} to {one['last_mb']:.0f} MB)",
         "yes" if one["growth"] <= GROWTH_BAR else "no"]
        for name, one in result["memory"].items()
    ]  # fmt: skip
    count = result["studies"]
    return Rows(
        ["what", "required", "measured", "met"],
        [
            ["studies with a report", str(count), str(result["answered"]),
             "yes" if result["answered"] == count else "no"],
            ["studies with a second report", "0", str(result["doubled"]),
             "no" if result["doubled"] else "yes"],
            *memory,
        ],
        "Studies at twice the sustainable rate",
    )  # fmt: skip


NOTE = (
    "{studies} studies of {slices} slices ({megabytes:.1f} MB each), read by the network of the"
    " settings without a cloud; {cores} cores of {cpu}, shared with {scanners} scanners ({sender})."
    " Sustainable: {sustainable_per_s:.2f} studies a second. Ready: {ready_per_s:.2f} a second;"
    " taken: {taken_per_s:.2f}. Most studies that were ready and not acknowledged: {late_most};"
    " that waited for their report: {queue_most}, the oldest for {queue_oldest_most_s:.0f} s."
    "\nA series is acknowledged in {transfer_p50_s:.1f} s (median; p95 {transfer_p95_s:.1f} s)."
    " From there to the report: median {answer_p50_s:.1f} s, p95 {answer_p95_s:.1f} s. From ready"
    " to the report: p95 {from_ready_p95_s:.0f} s.\nSeries that were sent again, because not all of"
    " them was taken: {sent_again}."
)


def endurance_command(
    studies: Annotated[int, typer.Option(min=4, help="Studies that are sent.")] = 300,
    cache: Cache = STUDIES,
    as_json: Json = False,
) -> None:
    """More studies by C-STORE than can be read, for minutes: answers, queue and memory."""
    (prepared,) = prepare([SPEC], cache)
    with (
        tempfile.TemporaryDirectory(prefix="overread-endurance-") as work,
        counting("studies answered") as step,
    ):
        result = measure(prepared.folder, studies, Path(work), step)
    show(result, as_json, table(result), NOTE.format(**result))
    raise typer.Exit(0 if result["sound"] else 1)
