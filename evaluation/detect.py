"""Studies through the agent's whole line, from files to report, against what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edge.job import Job
from edge.pipeline import Line, read_and_report
from edge.report.model import Report
from evaluation.errors import MissingData
from evaluation.findings import StudyResult
from evaluation.scan import score_scan
from evaluation.truth import RIM_MM, Lesion, scan_name


def study_folders(folder: Path) -> list[Path]:
    """The studies in `folder`: each of its sub-folders.

    Raises:
        MissingData: it is no folder, or has no sub-folder.
    """
    if not folder.is_dir():
        raise MissingData(folder, "is no folder of studies")
    studies = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if not studies:
        raise MissingData(folder, "holds no sub-folder; each study must be one")
    return studies


def detect(
    line: Line, studies: Iterable[Path], truth: Mapping[str, tuple[Lesion, ...]], out: Path
) -> list[StudyResult]:
    """Every study's result; its report is left in a sub-folder of `out`.

    A study that `truth` does not name counts for the times alone.
    """
    return [read_one(line, study, out, truth.get(scan_name(study))) for study in studies]


def read_one(
    line: Line,
    study: Path,
    out: Path,
    lesions: tuple[Lesion, ...] | None,
    ignored: tuple[Lesion, ...] = (),
    *,
    rim_mm: float = RIM_MM,
) -> StudyResult:
    """One study's result; `lesions` is None where nothing at all is known of it."""
    name = scan_name(study)
    report = read_and_report(line, Job(study, out / name)).report
    marks = [(finding.centre_mm, finding.probability) for finding in report.findings]
    scores = None
    if lesions is not None:
        scores = score_scan(name, marks, lesions, ignored, rim_mm=rim_mm)
    return StudyResult(
        name=name,
        scores=scores,
        findings=sum(not finding.small for finding in report.findings),
        small=sum(finding.small for finding in report.findings),
        stages_s=ledger_s(report),
        second_reading=report.second_reading.value,
        refused=refusal(report),
    )


def ledger_s(report: Report) -> dict[str, float]:
    """Seconds by stage, in the order of the line."""
    return {entry.stage: entry.took_s for entry in report.ledger}


def refusal(report: Report) -> str:
    """Why the study was not read, empty if it was."""
    rejection = report.rejection
    return "" if rejection is None else f"{rejection.kind}: {rejection.reason}"
