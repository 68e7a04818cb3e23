"""How the pages put numbers, times and states into words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any
from urllib.parse import urlencode

SECOND_READING = {"off": "edge only"}
"""Where the pages have another word than the report."""
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


def patient(report: Mapping[str, Any] | None, name: str) -> str:
    """Return whom a study is of: name, else identifier, else the name of its folder."""
    header = report["study"] if report else {}
    words = header.get("patient_name", "").replace("^", " ").strip()
    return str(words or header.get("patient_id", "") or name)


def place(finding: Mapping[str, Any]) -> str:
    """Return where a finding lies: ``left upper zone, image 45``."""
    location = finding.get("location") or {}
    zone = location.get("zone")
    words = " ".join(filter(None, (location.get("side"), zone and f"{zone} zone")))
    image, frame = location.get("image_number"), location.get("frame_number")
    if image is not None:
        slice_ = f"image {image}" + (f", frame {frame}" if frame is not None else "")
    elif "slice_index" in location:
        slice_ = f"slice {location['slice_index'] + 1} from the feet"
    else:
        slice_ = ""
    return ", ".join(filter(None, (words, slice_)))


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


def bars(ledger: list[Mapping[str, Any]], total_s: float) -> list[dict[str, Any]]:
    """Return the parts of a bar of time: stage, its number, start and width in percent."""
    took = [float(one["took_s"] or 0) for one in ledger]
    scale = 100 / max(total_s, sum(took), 1e-9)
    return [
        {
            "stage": one["stage"],
            "number": STAGES.index(one["stage"] if one["stage"] in STAGES else "failed"),
            "start": round(scale * (end_s - took_s), 2),
            "width": round(max(scale * took_s, 0.0), 2),
            "took_s": took_s,
        }
        for one, took_s, end_s in zip(ledger, took, accumulate(took), strict=True)
    ]
