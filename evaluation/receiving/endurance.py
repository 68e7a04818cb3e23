"""``overread-eval endurance``: more studies by C-STORE than the agent can read, for minutes.

First the sustainable rate is measured: studies that come at once, answered one after the other.
Then the scanner sends at twice that rate, and sends again what is refused. The agent may use so
much of the disk only, so that its bound is met in the run. In the end every study must have its one
report. Memory of the agent and of the process that reads is sampled: the median of the last quarter
must not be above that of the second quarter by more than a tenth.
"""

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import generate_uid

from edge.dicom_out.subject import put
from evaluation.common.cli import STUDIES, Cache, Json, counting, show
from evaluation.common.phantoms import prepare
from evaluation.errors import ServiceFailed
from evaluation.receiving.real_agent import MB, RealAgent, children_of, real_agent, resident_mb
from evaluation.receiving.sender import send
from evaluation.timing.latency import this_machine
from imaging.dicom.arrival import files_of
from imaging.phantom.phantom import PhantomSpec
from models.markdown import Rows

OVERLOAD = 2.0
"""The rate at which the scanner sends, as a multiple of the sustainable one."""
WARM_UP, AT_ONCE = 2, 6
"""Studies before the rate is measured, and for it."""
SAMPLE_S = 0.5
PAUSE_S = 1.0
"""A scanner waits so long before it sends again what was refused."""
GROWTH_BAR = 0.1
ROOM_SHARE, LEAST_ROOM_MB = 0.5, 1000
"""The agent may use so much of the size of all studies, and so much at least: others write too."""
LIMIT_S = 3600.0

SPEC = PhantomSpec(
    seed=5, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
    nodule_count=2, diameter_mm=(12.0, 20.0),
)  # fmt: skip
"""A chest of 70 slices, read by the network of the settings."""


@dataclass
class Study:
    """One study on its way; times on the monotonic clock, None before."""

    images: Sequence[Dataset]
    report: Path
    began_s: float | None = None
    acknowledged_s: float | None = None
    answered_s: float | None = None


@dataclass
class Counts:
    """What happened to associations and images."""

    associations: Counter[str] = field(default_factory=Counter)
    refused_images: int = 0
    acknowledge_ms: list[float] = field(default_factory=list)


class Scanner:
    """Makes studies from one phantom, and sends them."""

    def __init__(self, phantom: Path, agent: RealAgent) -> None:
        self._images = [dcmread(file) for file in files_of(phantom)]
        self._agent, self.counts = agent, Counts()
        self.slices = len(self._images)
        self.bytes = sum(file.stat().st_size for file in files_of(phantom))

    def new(self) -> Study:
        """Return the phantom as another study of another patient."""
        study, series, images = generate_uid(), generate_uid(), list[Dataset]()
        for one in self._images:
            image = Dataset()
            image.update({element.tag: element for element in one})
            image.file_meta = FileMetaDataset(one.file_meta)
            put(image, "PatientID", study[-16:])
            put(image, "StudyInstanceUID", study)
            put(image, "SeriesInstanceUID", series)
            put(image, "SOPInstanceUID", generate_uid())
            images.append(image)
        return Study(images, self._agent.report(study, series))

    def send(self, study: Study, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send a study, and again what was refused, until all of it is acknowledged.

        Raises:
            ServiceFailed: the agent ended, or takes it not within `LIMIT_S`.
        """
        left, last_s = list(study.images), time.monotonic()
        study.began_s = last_s

        def acknowledged(_image: Dataset) -> None:
            nonlocal last_s
            now_s = time.monotonic()
            self.counts.acknowledge_ms.append(1000 * (now_s - last_s))
            last_s = now_s

        while left and not stopped():
            last_s = time.monotonic()
            sent = send(self._agent.endpoint, left, acknowledged)
            done = {id(image) for image in sent.acknowledged}
            left = [image for image in left if id(image) not in done]
            self.counts.refused_images += sent.refused
            self.counts.associations[_outcome(sent.associated, sent.aborted, bool(left))] += 1
            if left:
                self._agent.process.require_alive()
                if time.monotonic() > study.began_s + LIMIT_S:
                    raise self._agent.process.failed(f"took no whole study within {LIMIT_S:g} s")
                time.sleep(PAUSE_S)
        study.acknowledged_s, study.images = time.monotonic(), ()


def _outcome(associated: bool, aborted: bool, left: bool) -> str:
    if not associated:
        return "rejected"
    if aborted:
        return "aborted"
    return "released, images refused" if left else "released, all acknowledged"


def measure(phantom: Path, count: int, work: Path, step: Callable[[int, int], None]) -> Any:
    """Measure the rate, then send ``count`` studies; return the result.

    Raises:
        ServiceFailed: the agent ended, or did not answer within `LIMIT_S`.
    """
    settings = {"receive_min_free_mb": _bound_mb(phantom, count, work), "keep_done_gb": 0.001}
    with real_agent(work / "site", work / "edge.log", **settings) as agent:
        scanner = Scanner(phantom, agent)
        rate = _sustainable_rate(scanner, agent)
        scanner.counts = Counts()
        sending = _Sending(scanner, count, OVERLOAD * rate)
        samples = _watch(agent, sending, count, step)
    return _result(sending, samples, rate, scanner)


def _bound_mb(phantom: Path, count: int, work: Path) -> int:
    """Return how much of the disk stays free, so that the agent may fill only a part of it."""
    each = sum(file.stat().st_size for file in files_of(phantom))
    room = max(LEAST_ROOM_MB * MB, ROOM_SHARE * count * each)
    return max(1, int((shutil.disk_usage(work).free - room) / MB))


def _sustainable_rate(scanner: Scanner, agent: RealAgent) -> float:
    """Return studies per second that are answered while more wait."""
    for many in (WARM_UP, AT_ONCE):
        studies = [scanner.new() for _ in range(many)]
        for study in studies:
            scanner.send(study)
        while not _all_answered(studies):
            agent.process.require_alive()
            time.sleep(0.02)
    times = sorted(study.answered_s or 0.0 for study in studies)
    return (len(times) - 1) / (times[-1] - times[0])


def _all_answered(studies: Sequence[Study]) -> bool:
    """Note the reports that are out; return whether all are."""
    for study in studies:
        if study.answered_s is None and study.report.is_file():
            study.answered_s = time.monotonic()
    return all(study.answered_s is not None for study in studies)


class _Sending:
    """A thread that sends studies at a rate."""

    def __init__(self, scanner: Scanner, count: int, per_s: float) -> None:
        self.studies = list[Study]()
        self._scanner, self._count, self._per_s = scanner, count, per_s
        self._stop = threading.Event()
        self.failed: BaseException | None = None
        self.took_s = 0.0
        self.thread = threading.Thread(target=self._run, name="scanner", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            began_s = time.monotonic()
            for number in range(self._count):
                self._stop.wait(max(0.0, began_s + number / self._per_s - time.monotonic()))
                if self._stop.is_set():
                    return
                study = self._scanner.new()
                self.studies.append(study)
                self._scanner.send(study, self._stop.is_set)
            self.took_s = time.monotonic() - began_s
        except BaseException as error:
            self.failed = error

    def stop(self) -> None:
        """End the sending."""
        self._stop.set()
        self.thread.join(60)


@dataclass(frozen=True)
class Sample:
    """What is so at one time: memory in MB, studies that wait, and for how long the oldest has."""

    agent_mb: float
    reader_mb: float
    waiting: int
    oldest_s: float


def _watch(
    agent: RealAgent, sending: _Sending, count: int, step: Callable[[int, int], None]
) -> list[Sample]:
    samples, until_s = list[Sample](), time.monotonic() + LIMIT_S
    try:
        while sending.thread.is_alive() or not _all_answered(sending.studies):
            agent.process.require_alive()
            if time.monotonic() > until_s:
                raise agent.process.failed(f"has not answered all within {LIMIT_S:g} s")
            _all_answered(sending.studies)
            samples.append(_sample(agent, sending.studies))
            step(sum(one.answered_s is not None for one in sending.studies), count)
            time.sleep(SAMPLE_S)
    finally:
        sending.stop()
    if sending.failed is not None:
        raise ServiceFailed(f"the scanner: {sending.failed!r}") from sending.failed
    return samples


def _sample(agent: RealAgent, studies: Sequence[Study]) -> Sample:
    now_s, pid = time.monotonic(), agent.process.pid
    waiting = [
        now_s - one.acknowledged_s
        for one in list(studies)
        if one.acknowledged_s is not None and one.answered_s is None
    ]
    readers = [resident_mb(child) for child in children_of(pid)]
    return Sample(
        resident_mb(pid), max(readers, default=0.0), len(waiting), max(waiting, default=0.0)
    )


def _result(
    sending: _Sending, samples: Sequence[Sample], rate: float, scanner: Scanner
) -> dict[str, Any]:
    studies, counts = sending.studies, scanner.counts
    answers = [
        one.answered_s - one.acknowledged_s
        for one in studies
        if one.answered_s is not None and one.acknowledged_s is not None
    ]
    answered = sum(one.report.is_file() for one in studies)
    doubled = sum(one.report.parent.with_name(f"{one.report.parent.name}-2").exists()
                  for one in studies)  # fmt: skip
    memory = {
        name: growth_of([getattr(one, key) for one in samples])
        for name, key in (("agent", "agent_mb"), ("reader", "reader_mb"))
    }
    flat = all(one["growth"] <= GROWTH_BAR for one in memory.values())
    return {
        **this_machine(),
        "studies": len(studies),
        "answered": answered,
        "doubled": doubled,
        "slices": scanner.slices,
        "megabytes": scanner.bytes / MB,
        "sustainable_per_s": rate,
        "sent_per_s": len(studies) / sending.took_s if sending.took_s else None,
        "span_s": SAMPLE_S * len(samples),
        "associations": dict(sorted(counts.associations.items())),
        "refused_images": counts.refused_images,
        "acknowledge_p50_ms": float(np.percentile(counts.acknowledge_ms, 50)),
        "acknowledge_p95_ms": float(np.percentile(counts.acknowledge_ms, 95)),
        "answer_p50_s": float(np.percentile(answers, 50)),
        "answer_p95_s": float(np.percentile(answers, 95)),
        "queue_most": max(one.waiting for one in samples),
        "queue_oldest_p50_s": float(np.percentile([one.oldest_s for one in samples], 50)),
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
    " settings without a cloud; {cores} cores of {cpu}, shared with the scanner. Sustainable:"
    " {sustainable_per_s:.2f} studies a second. Sent: {sent_per_s:.2f} a second. Longest queue"
    " {queue_most} studies; the oldest has waited {queue_oldest_p50_s:.0f} s in the median and"
    " {queue_oldest_most_s:.0f} s at most.\nAn image is acknowledged within"
    " {acknowledge_p50_ms:.1f} ms (median; p95 {acknowledge_p95_ms:.1f} ms). From the last"
    " acknowledgement to the report: median {answer_p50_s:.1f} s, p95 {answer_p95_s:.1f} s."
    "\nAssociations: {ends}. Images refused because the disk's bound was met, and sent again:"
    " {refused_images}."
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
    ends = ", ".join(f"{count} {words}" for words, count in result["associations"].items())
    show(result, as_json, table(result), NOTE.format(**result, ends=ends))
    raise typer.Exit(0 if result["sound"] else 1)
