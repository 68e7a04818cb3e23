"""What the audit trail says of a study: who sent it, and what was reported.

Of a patient only the identifiers that an audit message needs are taken: the patient's and the
study's. No name, no date, no description.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.access import user_name
from edge.folders import RECEIVED
from imaging.dicom.arrival import files_of, look

RECEIVED_KEYS = ("way", "calling_ae", "called_ae", "caller", "peer", "first")
"""What `RECEIVED` says; a folder that a program copied has no such file."""

_SAMPLE = 16
"""Files of which the first that is a DICOM image tells the identifiers: 2 ms each."""


def arrival_of(study: Path) -> dict[str, Any]:
    """Return who sent a study, and its identifiers where it is DICOM.

    ``owner`` is the user of this machine to whom the folder or file belongs. The keys of
    `RECEIVED` are there if a network service received it.
    """
    files = files_of(study) or [study]
    step = max(1, len(files) // _SAMPLE)
    image = next(filter(None, map(look, files[::step])), None)
    facts: dict[str, Any] = {
        "name": study.name,
        "files": len(files),
        "owner": user_name(study.lstat().st_uid),
        **received(study),
    }
    if image is not None:
        facts |= {
            "patient_id": image.patient_id,
            "study_uid": image.study_uid,
            "series_uid": image.series_uid,
        }
    return facts


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


def received(study: Path) -> dict[str, Any]:
    """Return the known keys of the file that a receiver leaves; values of other types are not."""
    try:
        handle = os.open(study / RECEIVED, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            values = json.loads(stream.read(1 << 16))
        known = {key: values[key] for key in RECEIVED_KEYS if key in values}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, (str, int))}
