"""What is known of the arrival of a study: who sent it, and its identifiers.

Of a patient only the identifiers that an audit message needs are taken: the patient's and the
study's. No name, no date, no description.
"""

import json
import os
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
