"""The report as files: ``report.json`` for programs, ``report.html`` and PNGs for people.

The one place that names the keys of ``report.json``; the command line's ``--json`` prints the
same. It knows nothing of how a finding was decided.

The pictures of an amended report, for which the lung box is not there any more.

Those of version 1 are kept: a finding keeps its number, so they still name the right one. A
finding that an amendment added is drawn from the region that was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.atomic_files import sync_folder, write_atomically
from edge.decide import Plan
from edge.findings import Finding
from edge.report.model import ChangeKind, Report
from imaging.preprocess import Preprocessed
from imaging.render import Contour, Mark, encode_png, finding_picture, overview_picture
from imaging.roi import roi_start
from protos.messages import Roi

PICTURED_FINDINGS = 20
"""Findings with pictures of their own, by falling probability; the overview shows all."""

OVERVIEW = "overview.png"

Pictures = Mapping[str, bytes]
"""File name to PNG: ``overview.png``, then ``finding_01.png`` and so on, in their order."""


def draw_pictures(findings: Sequence[Finding], box: Preprocessed, out: Path) -> Pictures:
    """The pictures of one study, which lie in the folder ``out`` too when this returns.

    What an older report has left there is gone by then.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = _drawn(findings, box)
    clear_pictures(out)
    for name, png in pictures.items():
        write_atomically(out / name, png)
    return pictures


def _drawn(findings: Sequence[Finding], box: Preprocessed) -> Pictures:
    marks = [
        Mark(f.index_zyx, f.diameter_mm, str(n), _contour(f)) for n, f in enumerate(findings, 1)
    ]
    pictured = marks[:PICTURED_FINDINGS]
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV lets go of the interpreter
        overview = pool.submit(lambda: encode_png(overview_picture(box.voxels, marks)))
        pngs = list(pool.map(lambda m: encode_png(finding_picture(box.voxels, m)), pictured))
    named = {picture_name(n): png for n, png in enumerate(pngs, start=1)}
    return {OVERVIEW: overview.result(), **named}


def picture_name(number: int) -> str:
    """The file with the picture of the finding of this number."""
    return f"finding_{number:02d}.png"


def stray_pictures(out: Path, keep: Collection[str] = ()) -> list[Path]:
    """The pictures in ``out`` that are not among ``keep``."""
    pictures = [out / OVERVIEW, *out.glob("finding_[0-9][0-9].png")]
    return [path for path in pictures if path.name not in keep]


def _contour(finding: Finding) -> Contour | None:
    outline = finding.outline
    return None if outline is None else Contour(outline.mask, outline.start)


def clear_pictures(out: Path, keep: Collection[str] = ()) -> None:
    """Make the folder, and remove an older report: what vouches for the pictures goes first."""
    out.mkdir(parents=True, exist_ok=True)
    sync_folder(out.parent)
    versions = out.glob("report.v[0-9]*.*")
    for path in (out / "report.json", out / "report.html", *versions, *stray_pictures(out, keep)):
        path.unlink(missing_ok=True)
    sync_folder(out)


LAST_PICTURED = 99
"""Names of pictures have two digits."""


def redraw(
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
            roi = region_of(plan.index_of(finding))
            pictures |= {} if roi is None else {name: _draw_from_roi(number, finding, roi, plan)}
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


def _draw_from_roi(number: int, finding: Finding, roi: Roi, plan: Plan) -> bytes:
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
