"""The pictures of an amended report, for which the lung box is not there any more.

Those of version 1 are kept: a finding keeps its number, so they still name the right one. A
finding that an amendment added is drawn from the region that was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edge.changes import place_of
from edge.decide import Plan
from edge.finding import Finding
from edge.outcome import ChangeKind, Report
from edge.report import OVERVIEW, PICTURED_FINDINGS, Pictures, picture_name
from imaging.render import Contour, Mark, encode_png, finding_picture
from imaging.roi import roi_start
from protos.messages import Roi

LAST_PICTURED = 99
"""Names of pictures have two digits."""


def redrawn(
    report: Report, plan: Plan, region_of: Callable[[int], Roi | None], out: Path
) -> Pictures:
    """The pictures that there are for ``report``, by file name, the overview first.

    Args:
        report: the amended one.
        plan: its candidates.
        region_of: the region of a place in the plan, None if it is not kept.
        out: the folder with the pictures of the version before.
    """
    pictures = {name: (out / name).read_bytes() for name in _kept_names(report, out)}
    added = added_numbers(report)
    for number, finding in report.numbered:
        name, room = picture_name(number), len(pictures) <= PICTURED_FINDINGS
        if number in added and name not in pictures and room and number <= LAST_PICTURED:
            roi = region_of(place_of(finding, plan))
            pictures |= {} if roi is None else {name: _drawn(number, finding, roi, plan)}
    return pictures


def picture_note(report: Report, pictures: Pictures) -> str:
    """In words, which pictures are older than the report, drawn otherwise, or missing."""
    added = added_numbers(report)
    have = [number for number, _ in report.numbered if picture_name(number) in pictures]
    old, new = [n for n in have if n not in added], [n for n in have if n in added]
    none = [number for number, _ in report.numbered if number not in have]
    told = []
    if OVERVIEW in pictures:
        told.append("The overview is that of version 1 and shows the findings of then.")
    if old:
        told.append(f"Drawn for version 1: {_list(old)}.")
    if new:
        told.append(f"Drawn from the region that was sent: {_list(new)}.")
    if none:
        told.append(f"No picture is there of: {_list(none)}.")
    return " ".join(told)


def added_numbers(report: Report) -> frozenset[int]:
    """The findings that version 1 did not have."""
    return frozenset(
        c.number for c in report.changes if c.kind is ChangeKind.ADDED and c.number is not None
    )


def _kept_names(report: Report, out: Path) -> list[str]:
    names = [OVERVIEW, *(picture_name(number) for number, _ in report.numbered)]
    return [name for name in names if (out / name).is_file()]


def _drawn(number: int, finding: Finding, roi: Roi, plan: Plan) -> bytes:
    candidate = plan.decisions[roi.roi_id].candidate
    start = [int(first) for first in roi_start(candidate.index_zyx, roi.voxels.shape)]
    z, y, x = (at - first for at, first in zip(finding.index_zyx, start, strict=True))
    contour = None
    if finding.outline is not None:
        a, b, c = (o - first for o, first in zip(finding.outline.start, start, strict=True))
        contour = Contour(finding.outline.mask, (a, b, c))
    mark = Mark((z, y, x), finding.diameter_mm, str(number), contour)
    return encode_png(finding_picture(roi.voxels, mark))


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(f"finding {number}" for number in numbers)
