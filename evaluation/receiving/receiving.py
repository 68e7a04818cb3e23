"""``overread-eval receiving``: series by C-STORE, as the installed agent takes and answers them.

``--scenario times`` measures the time from the first byte to the report. The same series goes to
the same agent in turn: a program copies its files into the inbox and marks them as complete, and a
scanner sends them by C-STORE and releases the association, which completes them. The agent polls
its inbox as often as it does without any settings. Sender and agent share the machine. Both ways
must end in the same report. For ``--scenario endurance`` see `evaluation.receiving.endurance`.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.folders import DONE
from edge.settings.core import EdgeSettings
from evaluation.errors import MissingData
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.receiving.endurance import SPEC, endure
from evaluation.receiving.sender import Series, copied, send_files, sender_name
from evaluation.result import Bar, Result, Table
from evaluation.run import command, counting, each
from evaluation.world import Agent, running_agent
from imaging.dicom.arrival import files_of

BAR_S = 0.5
"""By C-STORE may take so much longer, in the median and in the 95th percentile."""
SLICES, SPACING_MM = 133, 2.5
ROUNDS, ENDURED = 10, 300
"""Readings by each way, and studies to endure."""
LIMIT_S = 300.0
FOLDER, DICOM = "files in the inbox", "C-STORE"

SAME = (
    "findings", "possible_findings", "limitations", "guarantee", "coverage", "status", "models",
)  # fmt: skip
"""What must be the same in both reports: all that pixels and headers decide."""


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
    """Send files by C-STORE; return the folder of the report.

    Raises:
        ServiceFailed: not all were acknowledged.
    """
    if not send_files(agent.endpoint, series.files):
        raise agent.process.failed("refused an image")
    return agent.out(series.study_uid, series.series_uid)


WAYS = {FOLDER: put, DICOM: send}


def timed(agent: Agent, way: str, series: Series) -> dict[str, Any]:
    """Bring a series to the agent; return times in seconds, and the report.

    Raises:
        MissingData: the series is refused.
    """
    began_s = time.monotonic()
    out = WAYS[way](agent, series)
    arrived_s, path = time.monotonic(), out / "report.json"
    agent.process.wait_until(path.is_file, "answer", LIMIT_S, poll_s=0.002)
    ended_s = time.monotonic()
    report = json.loads(path.read_bytes())
    if report["rejection"] is not None:
        raise MissingData(path, f"the series was refused: {report['rejection']['reason']}")
    return {
        "arrival_s": arrived_s - began_s,
        "answer_s": ended_s - arrived_s,
        "all_s": ended_s - began_s,
        "report": {key: without_uids(report.get(key)) for key in SAME},
    }


def without_uids(value: Any) -> Any:
    """Return a value of a report without the UIDs of images, which differ between the series."""
    if isinstance(value, dict):
        return {key: without_uids(v) for key, v in value.items() if not key.endswith("_uid")}
    return [without_uids(one) for one in value] if isinstance(value, list) else value


def compare(files: Sequence[Path], rounds: int, work: Path) -> dict[str, Any]:
    """Read the series by both ways in turn; return times, and whether the reports are the same.

    Raises:
        ServiceFailed: the agent failed.
        MissingData: the series is refused.
    """
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
        "more_from_there_s": ours["answer_median_s"] - theirs["answer_median_s"],
        "more_median_s": ours["all_median_s"] - theirs["all_median_s"],
        "more_p95_s": ours["all_p95_s"] - theirs["all_p95_s"],
        "bar_s": BAR_S,
        "same_report": all(one["report"] == first for many in found.values() for one in many),
        "findings": len(first["findings"]),
    }


def _times(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for key in ("arrival", "answer", "all"):
        values = [one[f"{key}_s"] for one in results]
        found[f"{key}_median_s"] = float(np.median(values))
        found[f"{key}_p95_s"] = float(np.percentile(values, 95))
    return found


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
        yield Bar("C-STORE: reports that differ from those of files", not result["same_report"], 0)
        return
    what = "studies by C-STORE at twice the sustainable rate"
    count, answered = result["studies"], result["answered"]
    yield Bar(f"{what}: answered", answered, count, least=True)
    yield Bar(f"{what}: second reports", result["doubled"], 0)
    for name, one in result["memory"].items():
        what = f"growth of memory meanwhile, {name}"
        shown = f"{100 * one['growth']:+.1f} %"
        yield Bar(what, one["growth"], result["growth_bar"], "{:.0%}", shown=shown)


TIMES_TABLE = Table(
    "ways",
    {
        "way": "series comes as",
        "arrival_median_s": ("all there, median s", "{:.2f}"),
        "arrival_p95_s": ("p95", "{:.2f}"),
        "answer_median_s": ("from there to the report, median s", "{:.2f}"),
        "answer_p95_s": ("p95", "{:.2f}"),
        "all_median_s": ("together, median s", "{:.2f}"),
        "all_p95_s": ("p95", "{:.2f}"),
    },
    lambda result: result.get("ways", ()),
    "From the first byte to the report; {cores} cores of {cpu}, shared with the sender ({sender})",
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
