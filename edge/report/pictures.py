"""Draw the pictures of a report: an overview of the lung box, and one picture a finding.

The first possible findings have pictures too, as far as findings leave room. In the overview they
have a question mark behind their number.

An amended report keeps the pictures of version 1, since a finding keeps its number. The lung box
is gone by then: a finding without a picture in version 1 is drawn from the ROI that was sent.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder, write_whole
from edge.decide import Plan
from edge.findings import Finding
from edge.report.evidence import remove_evidence
from edge.report.model import Report
from imaging.preprocess import Preprocessed
from imaging.render import Contour, Mark, encode_jpeg, finding_picture, overview_picture
from imaging.roi import roi_start
from imaging.volume import UInt8Array
from protos.messages import Roi

PICTURED = 20
"""The most findings and possible findings with a picture each; the overview shows all."""

PICTURED_POSSIBLE = 4
"""The most possible findings that are drawn before the report, which must not wait for them."""

OVERVIEW = "overview.jpg"

log = structlog.get_logger()

Pictures = Mapping[str, bytes]
"""File name to JPEG: ``overview.jpg``, then ``finding_01.jpg`` and so on, in their order."""


def draw_pictures(
    findings: Sequence[Finding],
    possible: Sequence[Finding],
    box: Preprocessed,
    out: Path | None,
    most_possible: int = PICTURED_POSSIBLE,
) -> Pictures:
    """Draw the pictures of one study and write them into the folder ``out``, if there is one.

    Of the possible findings ``most_possible`` have a picture. An older report is removed from the
    folder first. A picture that cannot be drawn is left out. They are durable with the report.

    Raises:
        OSError: the folder cannot be written.
        Exception: no picture at all can be drawn.
    """
    marks = [
        Mark(f.index_zyx, f.diameter_mm, str(n), _contour(f, (0, 0, 0)))
        for n, f in enumerate((*findings, *possible), 1)
    ]
    sure, unsure = marks[: len(findings)], marks[len(findings) :]
    overview = [*sure, *(replace(mark, label=f"{mark.label}?") for mark in unsure)]
    most = min(len(sure) + min(len(unsure), most_possible), PICTURED)
    to_draw = {OVERVIEW: partial(overview_picture, box.voxels, overview)} | {
        picture_name(number): partial(finding_picture, box.voxels, mark)
        for number, mark in enumerate(marks[:most], start=1)
    }
    if out:
        clear_pictures(out)
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV and files release the interpreter lock
        tasks = {name: pool.submit(_drawn, out, name, draw) for name, draw in to_draw.items()}
    pictures: dict[str, bytes] = {}
    for name, task in tasks.items():
        try:
            pictures[name] = task.result()
        except OSError:
            raise
        except Exception:  # whatever it is: the findings are worth more than their pictures
            log.exception("picture not drawn", picture=name)
            if name == [*tasks][-1] and not pictures:
                raise
    return pictures


def redraw(report: Report, plan: Plan, roi_of: Callable[[int], Roi | None], out: Path) -> Pictures:
    """Return the pictures of an amended report by file name, the overview first.

    ``out`` has those of the version before. ``roi_of`` gives the ROI of a candidate in ``plan``,
    None if it is not stored.
    """
    pictures = {OVERVIEW: (out / OVERVIEW).read_bytes()} if (out / OVERVIEW).is_file() else {}
    undrawn = undrawn_numbers(report)
    # findings before possible findings; in each list those drawn in version 1 before the others
    for numbered in (report.numbered, report.numbered_possible):
        for number, finding in sorted(numbered, key=lambda one: one[0] in undrawn):
            path = out / picture_name(number)
            if len(pictures) > PICTURED:
                break
            if path.is_file():
                pictures[path.name] = path.read_bytes()
            elif number in undrawn and number <= 99:  # file names have two digits
                roi = roi_of(plan.index_of(finding))
                if roi is not None:
                    pictures[path.name] = _draw_from_roi(number, finding, roi, plan)
    return pictures


def pictures_in(out: Path, report: Report) -> Pictures:
    """Read the pictures of a report from its folder, the overview first; some may be missing."""
    paths = [out / name for name in (OVERVIEW, *(picture_name(n) for n, _ in report.listed))]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def picture_note(report: Report, pictures: Pictures) -> str:
    """Return the note on pictures that are missing, of an older version, or drawn from an ROI."""
    undrawn, version = undrawn_numbers(report), report.read_version
    names = {n: f"finding {n}" for n, _ in report.numbered}
    names |= {n: f"possible finding {n}" for n, _ in report.numbered_possible}
    drawn = [number for number in names if picture_name(number) in pictures]
    old, new = [n for n in drawn if n not in undrawn], [n for n in drawn if n in undrawn]
    missing = [number for number in names if number not in drawn]
    sentences = []
    if OVERVIEW in pictures:
        sentences.append(f"The overview shows the findings of version {version}.")
    for words, listed in (
        (f"Pictures of version {version}", old),
        ("Pictures of the ROI that was sent to the cloud", new),
        ("Without a picture", missing),
    ):
        if listed:
            sentences.append(f"{words}: {', '.join(names[number] for number in listed)}.")
    return " ".join(sentences)


def first_note(
    findings: int, possible: int, pictures: Pictures, most_possible: int = PICTURED_POSSIBLE
) -> str:
    """Return the note on pictures that a first report does not have; empty for none.

    ``findings`` and ``possible`` count the findings and the possible findings, of which
    ``most_possible`` were to be drawn.
    """
    drawn = min(findings + min(possible, most_possible), PICTURED)
    expected = {OVERVIEW: "overview"} | {
        picture_name(n): f"{'finding' if n <= findings else 'possible finding'} {n}"
        for n in range(1, drawn + 1)
    }
    failed = ", ".join(words for name, words in expected.items() if name not in pictures)
    sentences = [f"An error of this program prevented pictures: {failed}."] if failed else []
    if drawn < findings + possible:
        sentences.append(f"Numbers above {drawn} are in the overview only.")
    return " ".join(sentences)


def undrawn_numbers(report: Report) -> frozenset[int]:
    """Return the numbers in the report that had no picture when the study was read.

    They were added to either list later, or are beyond those that are drawn first.
    """
    return frozenset(number for number, _ in report.listed) - frozenset(report.pictured)


def picture_name(number: int) -> str:
    """Return the file name of the picture of a finding or possible finding."""
    return f"finding_{number:02d}.jpg"


def stray_pictures(out: Path, keep: Collection[str] = ()) -> list[Path]:
    """Return the pictures in ``out`` that are not among ``keep``."""
    pictures = [out / OVERVIEW, *out.glob("finding_[0-9][0-9].jpg")]
    return [path for path in pictures if path.name not in keep]


def clear_pictures(out: Path, keep: Collection[str] = ()) -> None:
    """Make the folder, and remove an older report from it, ``report.json`` first."""
    make_folder(out)
    sync_folder(out.parent)
    versions = out.glob("report.v[0-9]*.*")
    paths = (out / "report.json", out / "report.html", *versions, *stray_pictures(out, keep))
    older = [path for path in paths if os.path.lexists(path)]
    for path in older:
        path.unlink(missing_ok=True)
    if remove_evidence(out) or older:
        sync_folder(out)


def _drawn(out: Path | None, name: str, draw: Callable[[], UInt8Array]) -> bytes:
    data = encode_jpeg(draw())
    if out:
        write_whole(out / name, data)
    return data


def _draw_from_roi(number: int, finding: Finding, roi: Roi, plan: Plan) -> bytes:
    """Draw a finding in the voxels of its ROI; indices there begin at the ROI's first voxel."""
    candidate = plan.decisions[roi.roi_id].candidate
    first = tuple(int(index) for index in roi_start(candidate.index_zyx, roi.voxels.shape))
    z, y, x = (index - start for index, start in zip(finding.index_zyx, first, strict=True))
    mark = Mark((z, y, x), finding.diameter_mm, str(number), _contour(finding, first))
    return encode_jpeg(finding_picture(roi.voxels, mark, "ROI"))


def _contour(finding: Finding, first: Sequence[int]) -> Contour | None:
    """Return the outline in a picture whose first voxel is ``first`` of the lung box."""
    if finding.outline is None:
        return None
    z, y, x = (index - start for index, start in zip(finding.outline.start, first, strict=True))
    return Contour(finding.outline.mask, (z, y, x))
