"""Final reports against known lesions: sensitivity and false positives a scan, as users get them.

Studies go through the edge's whole pipeline, from files to the report, and so do phantoms, whose
nodules are all known. No threshold is moved: all that the report lists counts.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from edge.report.overwrite import admission, require_separate
from evaluation.accuracy.bootstrap import (
    Interval,
    format_value,
    operating_point,
    percent_cells,
    span,
)
from evaluation.accuracy.nodules import score_scan
from evaluation.accuracy.truth import RIM_MM, Lesion, Truth, scan_name
from evaluation.errors import MissingData
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.volume import Nodule
from models.markdown import Rows

COUNTED_MM = 5.0
"""Least diameter of the nodules of phantoms that count; smaller ones are ignored."""

CAVEAT = (
    "Phantoms are synthetic: they show what the pipeline does, not how well it works on patients."
)


@dataclass(frozen=True)
class ReportScores:
    """One study's report: its findings sorted by truth, and the time of each stage.

    ``counts`` are its lesions, those found, and the false positives; None without known truth.
    ``refused`` is why it was not read.
    """

    name: str
    counts: tuple[int, int, int] | None
    findings: int
    stages_s: Mapping[str, float]
    second_reading: str
    refused: str = ""


def study_folders(folder: Path) -> list[Path]:
    """Return the studies in ``folder``: its sub-folders.

    Raises:
        MissingData: it is not a folder, or has no sub-folder.
    """
    if not folder.is_dir():
        raise MissingData(folder, "not a folder, expected a folder of studies")
    studies = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if not studies:
        raise MissingData(folder, "no sub-folder, expected one a study")
    return studies


def read_one(
    pipeline: Pipeline, study: Path, out: Path, truth: Truth | None, *, rim_mm: float = RIM_MM
) -> ReportScores:
    """Read one study; its report is left in a sub-folder of ``out``.

    A study without known truth, or that is not fully marked, counts only for the times.

    Raises:
        UnfitFolder: the sub-folder holds another study's report, or is the study's own.
    """
    name = scan_name(study)
    require_separate(out / name, study)
    admitted = replace(pipeline, admit=admission(overwrite=False))
    report = read_and_report(admitted, Job(study, out / name)).report
    detections = [(finding.centre_mm, finding.probability) for finding in report.findings]
    counts = None
    if truth is not None and truth.fully_marked:
        scores = score_scan(name, detections, truth, rim_mm=rim_mm)
        found = int(np.isfinite(scores.lesion_score).sum())
        counts = (len(truth.lesions), found, scores.false_score.size)
    return ReportScores(
        name=name,
        counts=counts,
        findings=len(report.findings),
        stages_s=ledger_s(report),
        second_reading=report.second_reading.value,
        refused=refusal(report),
    )


def ledger_s(report: Report) -> dict[str, float]:
    """Return the seconds by stage, in the order of the pipeline."""
    return {entry.stage: entry.took_s for entry in report.ledger}


def refusal(report: Report) -> str:
    """Return why the study was not read, empty if it was."""
    rejection = report.rejection
    return "" if rejection is None else f"{rejection.kind}: {rejection.reason}"


def read_phantom(pipeline: Pipeline, spec: PhantomSpec, out: Path) -> ReportScores:
    """Write a phantom as a DICOM series, read that, and compare the report with the truth.

    The truth is exact, so there is no rim: a finding outside every nodule is a false positive.
    """
    phantom = make_phantom(spec)
    with tempfile.TemporaryDirectory(prefix="overread-phantom-") as folder:
        study = Path(folder, f"phantom-{spec.seed}")
        write_series(phantom.volume, study, seed=spec.seed)
        return read_one(pipeline, study, out, truth_of(phantom.nodules), rim_mm=0.0)


def truth_of(nodules: Sequence[Nodule]) -> Truth:
    """Return the truth of a phantom; within 5 mm of a nodule too small to count is ignored."""
    return Truth(
        tuple(Lesion(n.centre_mm, n.diameter_mm) for n in nodules if n.diameter_mm >= COUNTED_MM),
        tuple(Lesion(n.centre_mm, 10.0) for n in nodules if n.diameter_mm < COUNTED_MM),
    )


def as_dict(results: Sequence[ReportScores], *, seed: int = 0) -> dict[str, Any]:
    """Return the result for JSON; a refused study counts, its lesions are missed."""
    known = [result.counts for result in results if result.counts is not None]
    counts = np.array(known, float).reshape(-1, 3)
    lesions, found, false = counts.sum(axis=0)
    sensitivity = false_per_scan = None
    if known:
        found_share, false_rate = operating_point(counts, seed=seed)
        sensitivity = None if found_share is None else found_share.as_dict()
        false_per_scan = false_rate.as_dict()
    return {
        "sensitivity": sensitivity,
        "false_positives_per_scan": false_per_scan,
        "studies": len(results),
        "studies_with_truth": len(known),
        "lesions": int(lesions),
        "found": int(found),
        "false_positives": int(false),
        "stages": stage_times([result.stages_s for result in results if not result.refused]),
        "per_study": [_study_json(result) for result in results],
    }


def stage_times(ledgers: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return median and 95th percentile of each stage over ``ledgers``, then of their ``total``."""
    stages = dict.fromkeys(name for ledger in ledgers for name in ledger)
    times = {name: [ledger[name] for ledger in ledgers if name in ledger] for name in stages}
    if ledgers:
        times["total"] = [sum(ledger.values()) for ledger in ledgers]
    return {
        name: {"median_s": float(np.median(seconds)), "p95_s": float(np.percentile(seconds, 95))}
        for name, seconds in times.items()
    }


def _study_json(result: ReportScores) -> dict[str, Any]:
    lesions, found, false = result.counts or (None, None, None)
    return {
        "study": result.name,
        "findings": result.findings,
        "lesions": lesions,
        "found": found,
        "false_positives": false,
        "second_reading": result.second_reading,
        "total_s": sum(result.stages_s.values()),
        "refused": result.refused or None,
    }


def rates_table(result: Mapping[str, Any]) -> Rows:
    """Return the table of the operating point; there is one if any truth is known."""
    false = Interval(**result["false_positives_per_scan"])
    cells = [["false positives a scan", format_value(false.value, "{:.2f}"), span(false, "{:.2f}")]]
    if result["sensitivity"] is not None:
        cells.insert(0, ["sensitivity", *percent_cells(Interval(**result["sensitivity"]))])
    found = f"{result['found']} of {result['lesions']} lesions found"
    title = f"{found} in {result['studies_with_truth']} studies"
    return Rows(["final reports", "value", "95 % interval"], cells, title)


def studies_table(studies: Sequence[Mapping[str, Any]]) -> Rows:
    """Return each study with its findings, hits and false positives."""
    heads = ("study", "findings", "found", "false", "second reading", "s")
    cells = []
    for one in studies:
        hits = (f"{one['found']} of {one['lesions']}", one["false_positives"])
        known = hits if one["lesions"] is not None else ("unknown", "unknown")
        cells.append([one["study"], one["refused"] or one["findings"], *known,
                      one["second_reading"], f"{one['total_s']:.2f}"])  # fmt: skip
    return Rows(heads, cells, "Studies")
