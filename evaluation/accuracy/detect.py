"""``overread-eval detect``: final reports against known lesions, as users get them.

Studies go through the edge's whole pipeline, from files to the report, and so do phantoms, whose
nodules are all known. No threshold is moved: all that the report lists counts.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.assemble import open_pipeline
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from edge.settings.core import load_settings
from evaluation.accuracy.bootstrap import operating_point
from evaluation.accuracy.nodules import CAVEAT
from evaluation.accuracy.options import Marks
from evaluation.accuracy.truth import Truth, read_truth, scan_name, score_scan, truth_of
from evaluation.phantoms import prepare
from evaluation.run import SHARE, Deadline, Seed, Table, command, each
from evaluation.world import running_cloud
from imaging.phantom.phantom import TRAINING_SEED, PhantomSpec
from models.runtime.errors import MissingData

PHANTOMS = (
    "Phantoms are synthetic: they show what the pipeline does, not how well it works on patients."
)

TIMES = Table(
    "stages",
    {"stage": "stage", "median_ms": ("median ms", "{:.0f}"), "p95_ms": ("p95 ms", "{:.0f}")},
    title="Times",
)
"""The time of each stage, as `stage_times` makes its rows."""

StudyRow = dict[str, Any]
"""The row of a study in the result, and its ``stages_s``, the seconds of each stage."""


@command(
    Table("studies", {
        "study": "study", "findings": "findings", "found": "lesions found", "lesions": "of",
        "false_positives": "others", "second_reading": "second reading",
        "total_s": ("s", "{:.2f}"), "refused": "refused",
    }, title="Studies"),
    TIMES,
    Table("rates", {
        "found": "lesions found", "lesions": "of", "sensitivity": ("sensitivity", SHARE),
        "false_positives_per_scan": ("false positives a scan", "{:.2f}"), "with_truth": "studies",
    }, lambda result: [result], "Final reports of studies with known lesions"),
    "{caveat}",
)  # fmt: skip
def detect(
    studies: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with one folder a study.")
    ] = None,
    truth: Marks = [],  # noqa: B006 # typer copies it
    phantoms: Annotated[int, typer.Option(min=0, help="Phantoms in place of studies.")] = 0,
    deadline: Deadline = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Final reports of edge and cloud against known lesions: of studies, or of phantoms.

    Phantoms have the seeds SEED, SEED + 1 and so on. Every nodule in them is known.
    """
    if bool(studies and truth) == bool(phantoms):
        raise typer.BadParameter("give either --studies with --truth, or --phantoms")
    if phantoms and seed + phantoms > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: seeds from {TRAINING_SEED} on were used in training")
    known = read_truth(*truth)
    specs = [PhantomSpec(seed=seed + i) for i in range(phantoms)]
    with opened(deadline) as (pipeline, folder):
        if studies is None:
            read = [read_phantom(pipeline, spec, folder) for spec in each(specs, "phantoms")]
        else:
            read = [
                read_one(pipeline, study, folder, known.get(scan_name(study)))
                for study in each(study_folders(studies), "studies")
            ]
    return {**as_dict(read), "caveat": PHANTOMS if phantoms else CAVEAT}


@contextmanager
def opened(deadline_s: float | None) -> Iterator[tuple[Pipeline, Path]]:
    """Yield the pipeline with a cloud on loopback, and a temporary folder."""
    with (
        running_cloud() as cloud,
        open_pipeline(load_settings(cloud__address=cloud.address, deadline_s=deadline_s)) as opens,
        tempfile.TemporaryDirectory(prefix="overread-eval-") as folder,
    ):
        yield opens, Path(folder)


def study_folders(folder: Path) -> list[Path]:
    """Return the studies in ``folder``: its sub-folders."""
    if not folder.is_dir():
        raise MissingData(folder, "not a folder, expected a folder of studies")
    studies = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if not studies:
        raise MissingData(folder, "no sub-folder, expected one a study")
    return studies


def read_one(pipeline: Pipeline, study: Path, out: Path, truth: Truth | None) -> StudyRow:
    """Read one study; its report is left in a sub-folder of ``out``.

    A study without known truth, or that is not fully marked, counts only for the times.
    """
    name = scan_name(study)
    report = read_and_report(pipeline, Job(study, out / name)).report
    known = truth if truth is not None and truth.fully_marked else None
    return {
        "study": name,
        "findings": len(report.findings),
        "second_reading": report.second_reading.value,
        "total_s": sum(ledger_s(report).values()),
        **against_truth(report, known),
    }


def against_truth(report: Report, truth: Truth | None) -> StudyRow:
    """Return what a report has of the lesions, why its study was refused, and its times."""
    row: StudyRow = {
        **dict.fromkeys(("lesions", "found", "false_positives")),
        "refused": refusal(report) or None,
        "stages_s": ledger_s(report),
    }
    if truth is not None:
        detections = [(finding.centre_mm, finding.probability) for finding in report.findings]
        scores = score_scan(detections, truth)
        row |= {"lesions": len(truth.lesions), "found": scores.found}
        row["false_positives"] = scores.false_score.size
    return row


def ledger_s(report: Report) -> dict[str, float]:
    """Return the seconds by stage, in the order of the pipeline."""
    return {entry.stage: entry.took_s for entry in report.ledger}


def refusal(report: Report) -> str:
    """Return why the study was not read, empty if it was."""
    rejection = report.rejection
    return "" if rejection is None else f"{rejection.kind}: {rejection.reason}"


def read_phantom(pipeline: Pipeline, spec: PhantomSpec, out: Path) -> StudyRow:
    """Write a phantom as a DICOM series, read that, and compare the report with the truth."""
    with tempfile.TemporaryDirectory(prefix="overread-phantom-") as folder:
        (made,) = prepare([spec], Path(folder))
        return read_one(pipeline, made.folder, out, truth_of(made.nodules))


def as_dict(rows: Sequence[StudyRow]) -> dict[str, Any]:
    """Return the result for JSON.

    The lesions of a refused study are missed; in the rate a scan it does not count.
    """
    known = [row for row in rows if row["lesions"] is not None]
    names = ("lesions", "found", "false_positives")
    counts = np.array(
        [[*(row[name] for name in names), not row["refused"]] for row in known], float
    ).reshape(-1, 4)
    share, rate = operating_point(counts) if known else (None, None)
    return {
        "sensitivity": share and share.as_dict(),
        "false_positives_per_scan": rate and rate.as_dict(),
        "with_truth": len(known),
        **dict(zip(names, counts.sum(axis=0).astype(int).tolist(), strict=False)),
        "stages": stage_times([row["stages_s"] for row in rows if not row["refused"]]),
        "studies": [{key: one for key, one in row.items() if key != "stages_s"} for row in rows],
    }


def stage_times(ledgers: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return median and 95th percentile of each stage over ``ledgers``, then of their ``total``."""
    stages = dict.fromkeys(name for ledger in ledgers for name in ledger)
    times = {name: [ledger[name] for ledger in ledgers if name in ledger] for name in stages}
    if ledgers:
        times["total"] = [sum(ledger.values()) for ledger in ledgers]
    return [
        {"stage": name, "median_ms": 1e3 * float(np.median(seconds)),
         "p95_ms": 1e3 * float(np.percentile(seconds, 95))}
        for name, seconds in times.items()
    ]  # fmt: skip
