"""``overread-eval receiving``: the time from the first byte to the report, by C-STORE and as files.

The same series goes to the same agent in turn: a program copies its files into the inbox and marks
them as complete, and a scanner sends them by C-STORE and releases the association, which completes
them. Both times begin with the first byte and end with the report. The agent polls its inbox as
often as it does without any settings. The sender and the agent share the machine. Both ways must
end in the same report.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from edge.folders import DONE
from edge.settings.core import EdgeSettings
from evaluation.common.cli import STUDIES, Cache, Json, each, show
from evaluation.common.phantoms import prepare, whole_chest
from evaluation.common.tables import columns_table
from evaluation.errors import MissingData
from evaluation.receiving.real_agent import RealAgent, real_agent
from evaluation.receiving.sender import send_files, sender_name
from evaluation.run import this_machine
from imaging.dicom.arrival import files_of

BAR_S = 0.5
"""By C-STORE may take so much longer, in the median and in the 95th percentile."""
SLICES, SPACING_MM = 133, 2.5
SEED = 7
LIMIT_S = 300.0
POLL_S = 0.002
FOLDER, DICOM = "files in the inbox", "C-STORE"

SAME = (
    "findings", "possible_findings", "limitations", "guarantee", "coverage", "status", "models",
)  # fmt: skip
"""What must be the same in both reports: all that pixels and headers decide."""


def phantom(cache: Path) -> Path:
    """Return the folder of a whole chest of `SLICES` slices."""
    spec = replace(whole_chest(SEED), size_mm=(SLICES * SPACING_MM, 360.0, 360.0))
    (prepared,) = prepare([spec], cache)
    return prepared.folder


def with_new_uids(folder: Path, target: Path) -> list[Path]:
    """Write a series as another one of another study; return its files."""
    target.mkdir()
    study, series, files = generate_uid(), generate_uid(), []
    for number, file in enumerate(files_of(folder)):
        image = dcmread(file)
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.save_as(target / f"{number:05d}.dcm")
        files.append(target / f"{number:05d}.dcm")
    return files


def by_folder(agent: RealAgent, files: Sequence[Path]) -> dict[str, Any]:
    """Copy files into the inbox as a program does; return times in seconds, and the report."""
    name = files[0].parent.name
    began_s = time.monotonic()
    hidden = agent.inbox / f".{name}"
    hidden.mkdir()
    for file in files:
        shutil.copyfile(file, hidden / file.name)
    (hidden / DONE).touch()
    hidden.rename(agent.inbox / name)
    arrived_s = time.monotonic()
    return _answer(agent, agent.folder / "outbox" / name / "report.json", began_s, arrived_s)


def by_dicom(agent: RealAgent, files: Sequence[Path]) -> dict[str, Any]:
    """Send files by C-STORE, by DCMTK where it is installed; return times, and the report.

    Raises:
        ServiceFailed: not all were acknowledged.
    """
    head: Dataset = dcmread(files[0], stop_before_pixels=True)
    began_s = time.monotonic()
    if not send_files(agent.endpoint, files):
        raise agent.process.failed("refused an image")
    arrived_s = time.monotonic()
    report = agent.report(str(head.StudyInstanceUID), str(head.SeriesInstanceUID))
    return _answer(agent, report, began_s, arrived_s)


def _answer(agent: RealAgent, path: Path, began_s: float, arrived_s: float) -> dict[str, Any]:
    until_s = time.monotonic() + LIMIT_S
    while not path.is_file():
        agent.process.require_alive()
        if time.monotonic() > until_s:
            raise agent.process.failed(f"has not answered within {LIMIT_S:g} s")
        time.sleep(POLL_S)
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


def measure(study: Path, rounds: int, work: Path) -> dict[str, Any]:
    """Read the study by both ways in turn, and return times and whether the reports are the same.

    Raises:
        ServiceFailed: the agent failed.
        MissingData: the study is refused.
    """
    found: dict[str, list[dict[str, Any]]] = {FOLDER: [], DICOM: []}
    ways = {FOLDER: by_folder, DICOM: by_dicom}
    polls = {"poll_s": EdgeSettings.model_fields["poll_s"].default}
    with real_agent(work / "site", work / "edge.log", **polls) as agent:
        for number in each(range(-1, rounds), "rounds"):
            for way, do in ways.items():
                files = with_new_uids(study, work / f"{number}-{way.replace(' ', '-')}")
                result = do(agent, files)
                shutil.rmtree(files[0].parent)
                if number >= 0:  # the first of each is a warm-up
                    found[way].append(result)
    first = found[FOLDER][0]["report"]
    same = all(one["report"] == first for results in found.values() for one in results)
    times = {way: _times(results) for way, results in found.items()}
    more = {
        key: times[DICOM][f"all_{key}_s"] - times[FOLDER][f"all_{key}_s"]
        for key in ("median", "p95")
    }
    return {
        **this_machine(),
        "slices": len(files_of(study)),
        "megabytes": sum(file.stat().st_size for file in files_of(study)) / 1e6,
        "rounds": rounds,
        **polls,
        "sender": sender_name(),
        "more_from_there_s": times[DICOM]["answer_median_s"] - times[FOLDER]["answer_median_s"],
        "ways": [{"way": way, **one} for way, one in times.items()],
        "more_median_s": more["median"],
        "more_p95_s": more["p95"],
        "bar_s": BAR_S,
        "same_report": same,
        "findings": len(first["findings"]),
        "met": same and max(more.values()) <= BAR_S,
    }


def _times(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for key in ("arrival", "answer", "all"):
        values = [one[f"{key}_s"] for one in results]
        found[f"{key}_median_s"] = float(np.median(values))
        found[f"{key}_p95_s"] = float(np.percentile(values, 95))
    return found


COLUMNS = {
    "way": ("series comes as", "{}"),
    "arrival_median_s": ("all of it there, median s", "{:.2f}"),
    "arrival_p95_s": ("p95", "{:.2f}"),
    "answer_median_s": ("from there to the report, median s", "{:.2f}"),
    "answer_p95_s": ("p95", "{:.2f}"),
    "all_median_s": ("together, median s", "{:.2f}"),
    "all_p95_s": ("p95", "{:.2f}"),
}

NOTE = (
    "{slices} slices, {megabytes:.0f} MB; {rounds} rounds of both in turn; {cores} cores of {cpu},"
    " shared with the sender ({sender}); the inbox is polled each {poll_s:g} s, and at once when a"
    " release completes a series. From the last image to the report C-STORE takes"
    " {more_from_there_s:+.2f} s; from the first it takes {more_median_s:+.2f} s in the median and"
    " {more_p95_s:+.2f} s in the p95; required: at most {bar_s:g} s more, and the same report"
    " ({same}): {verdict}."
)


def receiving_command(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", exists=True, help="Series; a phantom if omitted."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Readings by each way.")] = 10,
    cache: Cache = STUDIES,
    as_json: Json = False,
) -> None:
    """Time from the first byte to the report: by C-STORE against files in the inbox."""
    with tempfile.TemporaryDirectory(prefix="overread-receiving-") as work:
        result = measure(study or phantom(cache), rounds, Path(work))
    words = {"same": "yes" if result["same_report"] else "no"}
    words["verdict"] = "met" if result["met"] else "not met"
    shown = columns_table(COLUMNS, result["ways"], "From the first byte to the report")
    show(result, as_json, shown, NOTE.format(**result, **words))
    raise typer.Exit(0 if result["met"] else 1)
