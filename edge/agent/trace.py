"""Record the trace of a study from what is durable once its first report is out."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from edge.agent.claim import received
from edge.store.record import Record
from imaging.dicom.arrival import files_of
from process import tracing


def record_trace(record: Record, source: Path, report: Mapping[str, Any], began_s: float) -> None:
    """Record the root of a study whose first report is out, and how it arrived and waited.

    It is recorded from what is durable by then: the row of the study, and what a receiver has left
    in its folder. So a restart loses nothing of it.

    Args:
        record: the study.
        source: its folder, with what a receiver says of it.
        report: facts of its report; nothing of the patient or the findings is taken.
        began_s: wall-clock time at which its reading began.
    """
    root = tracing.root_of(record.id)
    if root is None or report.get("version", 1) != 1:
        return
    claimed_s = datetime.fromisoformat(record.created).timestamp()
    arrival = received(source)
    first_s = _seconds(arrival.get("first"))
    if first_s is not None:
        files = files_of(source)
        last_s = max((file.stat().st_mtime for file in files), default=first_s)
        way = str(arrival.get("way", ""))
        tracing.record("receive", root, first_s, last_s, way=way, images=len(files))
        tracing.record("inbox", root, last_s, claimed_s)
    tracing.record("wait", root, claimed_s, began_s)
    words = {name: report.get(name) for name in ("status", "second_reading", "kind")}
    known = {name: str(word) for name, word in words.items() if word}
    tracing.record_study(record.id, first_s or claimed_s, time.time(), **known)


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
