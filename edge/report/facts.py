"""What the audit trail says of a report: its study, what was found, and who decided.

Of a patient only the identifiers that an audit message needs are taken: the patient's and the
study's. No name, no date, no description.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from edge.report.model import Report
from edge.report.serialize import NotAReport, read_report


def report_in(out: Path) -> dict[str, Any]:
    """Return what the report in this folder says, as `report_facts`; empty if there is none."""
    try:
        return report_facts(read_report(out / "report.json"))
    except (OSError, NotAReport):
        return {}


def report_facts(report: Report) -> dict[str, Any]:
    """Return version, models and counts of a report, and who decided."""
    changes = [one.kind.value for one in report.changes if one.version == report.version]
    return {
        "version": report.version,
        "status": report.status.value,
        "models": report.models,
        "findings": len(report.findings),
        "possible_findings": len(report.possible),
        "decided_by": dict(Counter(one.decided_by.value for _, one in report.listed)),
        "second_reading": report.second_reading.value,
        "patient_id": report.header.patient_id,
        "study_uid": report.header.study_uid,
        "series_uid": report.series_uid,
        **({"changes": changes} if changes else {}),
        **({"kind": report.rejection.kind} if report.rejection else {}),
    }
