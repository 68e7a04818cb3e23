"""How the pages put numbers, times and states into words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any
from urllib.parse import urlencode

from edge.budget import LedgerEntry
from edge.findings import SecondReading
from edge.report.model import Report

STAGES = ("wait", "read", "preprocess", "screen", "decide", "escalate", "merge", "draw", "report",
          "failed")  # fmt: skip
"""In the order of the pipeline; a stage has its colour by its place here."""

_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))


def age(seconds: float) -> str:
    """Return a span in its largest unit: ``12 min``."""
    for unit, length_s in _UNITS:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def since(moment: str) -> str:
    """Return how long ago it was."""
    return age((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def moment(value: datetime | str) -> str:
    """Return date and time in the zone of this machine, to the minute."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float) -> str:
    """Return bytes in a fitting unit."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def seconds(value: float) -> str:
    """Return a time with its unit."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def count(number: int, word: str) -> str:
    """Return ``1 study`` or ``2 studies``."""
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def second(reading: SecondReading) -> str:
    """Return how the second reading ended."""
    return "edge only" if reading is SecondReading.OFF else reading.value


def patient(report: Report | None, name: str) -> str:
    """Return whom a study is of: name, else identifier, else the name of its folder."""
    if report is None:
        return name
    words = report.header.patient_name.replace("^", " ").strip()
    return words or report.header.patient_id or name


@dataclass(frozen=True)
class Cut:
    """One page of a long list: its rows, and links to the pages beside it.

    ``start`` is the place of the first row, from 0; ``count`` is that of the whole list.
    """

    rows: Sequence[Any]
    start: int
    count: int
    links: Mapping[str, str]


def cut(rows: Sequence[Any], name: str, query: Mapping[str, str], size: int = 50) -> Cut:
    """Return the page that the query names for this list, the last one where it has fewer.

    The links leave the other lists of the page where they are.
    """
    text, last = query.get(name, "1"), max(1, -(-len(rows) // size))
    number = min(max(int(text[:9]), 1), last) if text.isascii() and text.isdigit() else 1
    near = {"Previous": number - 1, "Next": number + 1}
    links = {
        word: f"?{urlencode({**query, name: to})}#{name}"
        for word, to in near.items()
        if 1 <= to <= last
    }
    start = size * (number - 1)
    return Cut(rows[start : start + size], start, len(rows), links)


def bars(ledger: Sequence[LedgerEntry]) -> list[dict[str, Any]]:
    """Return the parts of a bar of time: stage, its number, start and width in percent."""
    took = [one.took_s for one in ledger]
    scale = 100 / max(sum(took), 1e-9)
    return [
        {
            "stage": one.stage,
            "number": STAGES.index(one.stage if one.stage in STAGES else "failed"),
            "start": round(scale * (end_s - one.took_s), 2),
            "width": round(scale * one.took_s, 2),
            "took_s": one.took_s,
        }
        for one, end_s in zip(ledger, accumulate(took), strict=True)
    ]
