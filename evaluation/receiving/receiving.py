"""``overread-eval receiving``: series by C-STORE, as the installed agent takes and answers them.

``--scenario times`` brings the same series to the same agent in turn: a program copies its files
into the inbox and marks them as complete, and a scanner sends them by C-STORE and releases the
association, which completes them. The agent polls its inbox as often as it does without any
settings. Sender and agent share the machine. Both ways must end in the same report. At the end many
studies wait at once, for an agent with a cloud on loopback.

``--scenario endurance`` sends more studies than the agent can read, for minutes. First all scanners
send as fast as the agent takes their studies and reads them, which gives the sustainable rate. Then
studies become ready at twice that rate, and a series that was not taken as a whole is sent again as
a whole. The agent may use so much of the disk only, so that its bound is met in the run.
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.folders import DONE
from edge.settings.core import EdgeSettings
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.process_memory import children_of, resident_mb
from evaluation.receiving.sender import Series, copied, send_files, sender_name
from evaluation.run import Bar, OnStep, Result, Table, command, counting, each
from evaluation.world import Agent, running_agent, running_cloud
from imaging.dicom.arrival import files_of
from imaging.phantom.phantom import PhantomSpec
from models.runtime.errors import MissingData

BAR_S = 0.5
"""By C-STORE may take so much longer, in the median and in the 95th percentile."""
SLICES, SPACING_MM = 133, 2.5
ROUNDS, WAITING, ENDURED = 10, 30, 500
"""Readings by each way, studies that wait at once, and studies to endure."""
ANSWER_S = 300.0
"""Longest wait for a report."""
FOLDER, DICOM = "files in the inbox", "C-STORE"

SAME = (
    "findings", "possible_findings", "limitations", "guarantee", "coverage", "status", "models",
)  # fmt: skip
"""What must be the same in both reports: all that pixels and headers decide."""

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
ROOM_SHARE, MIN_ROOM_MB = 0.5, 1000
"""The agent may use so much of the size of all studies, and so much at least: others write too."""
KEEP_GB = 0.3
LIMIT_S = 3600.0
"""Longest wait for the reports of all studies."""
MB = 1_000_000

SPEC = PhantomSpec(
    seed=5, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
    nodule_count=2, diameter_mm=(12.0, 20.0),
)  # fmt: skip
"""A chest of 70 slices, read by the network of the settings."""

Files = Sequence[Path]


class Scenario(StrEnum):
    """What is measured."""

    TIMES = "times"
    ENDURANCE = "endurance"


def put(agent: Agent, series: Series) -> Path:
    """Copy files into the inbox as a program does; return the folder of the report."""
    name = series.files[0].parent.name
    hidden = agent.inbox / f".{name}"
    hidden.mkdir()
    for file in series.files:
        shutil.copyfile(file, hidden / file.name)
    (hidden / DONE).touch()
    hidden.rename(agent.inbox / name)
    return agent.folder / "outbox" / name


def send(agent: Agent, series: Series) -> Path:
    """Send files by C-STORE; return the folder of the report."""
    if not send_files(agent.endpoint, series.files):
        raise agent.process.failed("refused an image")
    return agent.out(series.study_uid, series.patient_id)


WAYS = {FOLDER: put, DICOM: send}


def timed(agent: Agent, way: str, series: Series) -> dict[str, Any]:
    """Bring a series to the agent; return times in seconds, and the report."""
    began_s = time.monotonic()
    out = WAYS[way](agent, series)
    arrived_s, arrived_wall_s, path = time.monotonic(), time.time(), out / "report.json"
    agent.process.wait_until(path.is_file, "answer", ANSWER_S, poll_s=0.002)
    ended_s = time.monotonic()
    report = json.loads(path.read_bytes())
    if report["rejection"] is not None:
        raise MissingData(path, f"the series was refused: {report['rejection']['reason']}")
    return {
        "arrival_s": arrived_s - began_s,
        "candidates_s": _decided_s(agent.process.log) - arrived_wall_s,
        "answer_s": ended_s - arrived_s,
        "all_s": ended_s - began_s,
        "report": {key: without_uids(report.get(key)) for key in SAME},
    }


def _decided_s(log: Path) -> float:
    """Return when the agent last had all candidates of a study, by its log."""
    *_, line = (one for one in log.read_text().splitlines() if "decided" in one)
    return datetime.fromisoformat(line.split()[0]).timestamp()


def per_minute(files: Files, count: int, work: Path) -> float:
    """Return how many studies a minute are answered where ``count`` wait at once."""
    with (
        running_cloud() as cloud,
        running_agent(work / "site", work / "edge.log", cloud__address=cloud.address) as agent,
    ):
        waiting = [copied(files, agent.inbox / f".{n}").files[0].parent for n in range(count)]
        began_s, outs = time.monotonic(), list[Path]()
        for folder in waiting:
            (folder / DONE).touch()
            folder.rename(agent.inbox / folder.name[1:])
            outs.append(agent.folder / "outbox" / folder.name[1:] / "report.json")
        agent.process.wait_until(lambda: all(map(Path.is_file, outs)), "answer", LIMIT_S)
        return 60 * count / (time.monotonic() - began_s)


def without_uids(value: Any) -> Any:
    """Return a value of a report without the UIDs of images, which differ between the series."""
    if isinstance(value, dict):
        return {key: without_uids(v) for key, v in value.items() if not key.endswith("_uid")}
    return [without_uids(one) for one in value] if isinstance(value, list) else value


def compare(files: Sequence[Path], rounds: int, work: Path) -> dict[str, Any]:
    """Read the series by both ways in turn; return times, and whether the reports are the same."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    polls = {"poll_s": EdgeSettings.model_fields["poll_s"].default}
    with running_agent(work / "site", work / "edge.log", **polls) as agent:
        for number in each(range(-1, rounds), "rounds"):
            for way in WAYS:
                series = copied(files, work / f"{number}-{way.replace(' ', '-')}")
                result = timed(agent, way, series)
                shutil.rmtree(series.files[0].parent)
                if number >= 0:  # the first of each is a warm-up
                    found[way].append(result)
    first = found[FOLDER][0]["report"]
    times = {way: _times(results) for way, results in found.items()}
    ours, theirs = times[DICOM], times[FOLDER]
    return {
        "slices": len(files),
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
        "rounds": rounds,
        **polls,
        "sender": sender_name(),
        "ways": [{"way": way, **one} for way, one in times.items()],
        "waiting": WAITING,
        "per_minute": per_minute(files, WAITING, work / "waiting"),
        "more_from_there_s": ours["answer_median_s"] - theirs["answer_median_s"],
        "more_median_s": ours["all_median_s"] - theirs["all_median_s"],
        "more_p95_s": ours["all_p95_s"] - theirs["all_p95_s"],
        "bar_s": BAR_S,
        "same_report": all(one["report"] == first for many in found.values() for one in many),
        "findings": len(first["findings"]),
    }


def _times(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for key in ("arrival", "candidates", "answer", "all"):
        values = [one[f"{key}_s"] for one in results]
        found[f"{key}_median_s"] = float(np.median(values))
        found[f"{key}_p95_s"] = float(np.percentile(values, 95))
    return found


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


def endure(files: Files, count: int, work: Path, step: OnStep) -> dict[str, Any]:
    """Measure the rate, then send ``count`` studies; return the result."""
    size = sum(file.stat().st_size for file in files)
    room = max(MIN_ROOM_MB * MB, ROOM_SHARE * count * size)
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
    agent: Agent, files: Files, work: Path, count: int, interval_s: float, step: OnStep
) -> tuple[list[Study], list[dict[str, float]]]:
    """Send studies, one ready each ``interval_s``, until all are answered; sample meanwhile."""
    began_s, stop, samples = time.monotonic(), threading.Event(), list[dict[str, float]]()
    studies = [Study(began_s + number * interval_s) for number in range(count)]

    def scan(number: int) -> None:
        study, folder = studies[number], work / "scanner" / f"{number}"
        series = copied(files, folder)
        study.out = agent.out(series.study_uid, series.patient_id)
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


def _sample(agent: Agent, studies: Sequence[Study]) -> dict[str, float]:
    """Return memory in MB, how many studies are late or wait for their report, and how long."""
    now_s, pid = time.monotonic(), agent.process.pid
    waiting = [
        now_s - study.acknowledged_s
        for study in studies
        if study.acknowledged_s is not None and study.answered_s is None
    ]
    late = sum(one.ready_s <= now_s and one.acknowledged_s is None for one in studies)
    reader_mb = max(map(resident_mb, children_of(pid)), default=0.0)
    return {
        "agent": resident_mb(pid), "reader": reader_mb, "late": late, "waiting": len(waiting),
        "oldest_s": max(waiting, default=0.0),
    }  # fmt: skip


def _result(
    studies: Sequence[Study], samples: Sequence[dict[str, float]], rate: float
) -> dict[str, Any]:
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


def growth_of(values: Sequence[float]) -> dict[str, float | None]:
    """Return the medians of the second and the last quarter in MB, and the growth between them.

    It is None where no memory was seen in one of them.
    """
    quarters = [[one for one in part if one > 0] for part in np.array_split(values, 4)]
    second, last = (float(np.median(part)) if part else 0.0 for part in quarters[1::2])
    growth = last / second - 1 if second and last else None
    most_mb = max(values, default=0.0)
    return {"second_mb": second, "last_mb": last, "most_mb": most_mb, "growth": growth}


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of times, or of endurance."""
    if "ways" in result:
        what = "C-STORE: more than files in the inbox, from the"
        for key, words in {
            "from_there": "last image, median",
            "median": "first byte, median",
            "p95": "first byte, p95",
        }.items():
            yield Bar(f"{what} {words}", result[f"more_{key}_s"], result["bar_s"], "{:.2f} s")
        differ = int(not result["same_report"])
        yield Bar("C-STORE: reports that differ from those of files", differ, 0)
        return
    what = "studies by C-STORE at twice the sustainable rate"
    count, answered = result["studies"], result["answered"]
    yield Bar(f"{what}: answered", answered, count, least=True)
    yield Bar(f"{what}: second reports", result["doubled"], 0)
    for name, row in result["memory"].items():
        what = f"growth of memory meanwhile, {name}"
        shown = "not seen" if row["growth"] is None else f"{100 * row['growth']:+.1f} %"
        yield Bar(what, row["growth"], result["growth_bar"], "{:.0%}", shown=shown)


TIMES_TABLE = Table(
    "ways",
    {
        "way": "series comes as",
        "arrival_median_s": ("all there, median s", "{:.2f}"),
        "arrival_p95_s": ("p95", "{:.2f}"),
        "candidates_median_s": ("from there to the candidates, median s", "{:.2f}"),
        "candidates_p95_s": ("p95", "{:.2f}"),
        "answer_median_s": ("from there to the report, median s", "{:.2f}"),
        "answer_p95_s": ("p95", "{:.2f}"),
        "all_median_s": ("together, median s", "{:.2f}"),
        "all_p95_s": ("p95", "{:.2f}"),
    },
    title="From the first byte to the report; {cores} cores of {cpu}, shared with {sender}. Of"
    " {waiting} studies that wait, {per_minute:.1f} a minute are answered",
)

ENDURANCE_ROWS = {
    "taken_per_s": ("studies a second that are taken", "{:.2f}"),
    "late_most": ("most studies that are ready and not acknowledged", "{}"),
    "queue_most": ("most studies that wait for their report", "{}"),
    "queue_oldest_most_s": ("age of the oldest of these, at most", "{:.0f} s"),
    "transfer_p50_s": ("transfer of a series, median", "{:.1f} s"),
    "transfer_p95_s": ("transfer of a series, p95", "{:.1f} s"),
    "answer_p50_s": ("from the acknowledgement to the report, median", "{:.1f} s"),
    "answer_p95_s": ("from the acknowledgement to the report, p95", "{:.1f} s"),
    "from_ready_p95_s": ("from ready to the report, p95", "{:.0f} s"),
    "sent_again": ("series that were sent again", "{}"),
    "doubled": ("studies with a second report", "{}"),
}
ENDURANCE_TABLE = Table(
    "endurance",
    {"what": "what", "measured": "measured"},
    lambda result: [
        {"what": words, "measured": form.format(result[key])}
        for key, (words, form) in ENDURANCE_ROWS.items()
        if key in result
    ],
    "More studies than can be read; {cores} cores of {cpu}, shared with the sender ({sender})",
)


@command(TIMES_TABLE, ENDURANCE_TABLE, bars=bars, strict=True)
def receiving(
    scenario: Annotated[Scenario, typer.Option(help="What is measured.")] = Scenario.TIMES,
) -> dict[str, Any]:
    """Series by C-STORE: times against files in the inbox, or more than can be read."""
    chest = replace(whole_chest(7), size_mm=(SLICES * SPACING_MM, 360.0, 360.0))
    (study,) = prepare([chest if scenario is Scenario.TIMES else SPEC], STUDIES)
    files = files_of(study.folder)
    with tempfile.TemporaryDirectory(prefix="overread-receiving-") as work:
        if scenario is Scenario.TIMES:
            return compare(files, ROUNDS, Path(work))
        with counting("studies answered") as step:
            return endure(files, ENDURED, Path(work), step)
