"""What the audit trail says of a report: its study, what was found, and who decided.

Of a patient only the identifiers that an audit message needs are taken: the patient's and the
study's. No name, no date, no description.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def report_in(out: Path) -> dict[str, Any]:
    """Return what the report in this folder says, as `report_facts`; empty if there is none."""
    try:
        return report_facts(json.loads((out / "report.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def report_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return from the values of ``report.json``: version, models, counts, and who decided.

    Raises:
        KeyError, TypeError, AttributeError: they are no report.
    """
    listed = [*report["findings"], *report["possible_findings"]]
    changes = [one["kind"] for one in report["changes"] if one["version"] == report["version"]]
    rejection = report["rejection"]
    return {
        "version": report["version"],
        "status": report["status"],
        "models": report["models"],
        "findings": len(report["findings"]),
        "possible_findings": len(report["possible_findings"]),
        "decided_by": dict(Counter(one["decided_by"] for one in listed)),
        "second_reading": report["second_reading"],
        "patient_id": report["study"]["patient_id"],
        "study_uid": report["study"]["study_uid"],
        "series_uid": report["series_uid"],
        **({"changes": changes} if changes else {}),
        **({"kind": rejection["kind"]} if rejection else {}),
    }
