"""Say a report in a few words: result, what to do next, coverage, and each reason once."""

import re
from collections.abc import Iterable, Sequence

from edge.findings import Finding, SecondReading, named
from edge.report.model import Report

MAY_CHANGE = "a second reading may change the findings, or add size, type and outline"
"""What a provisional report says of itself."""


def result_of(report: Report) -> str:
    """Return the result in one sentence."""
    if not report.was_read:
        return "This study was not read."
    parts = [_described(report, report.numbered, "finding")]
    if not report.findings:
        parts.append(_described(report, report.numbered_possible, "possible finding"))
    elif report.possible:
        parts.append(counted(len(report.possible), "possible finding"))
    off = report.second_reading is SecondReading.OFF
    title = "no second reading" if off else report.second_reading_title
    line = "; ".join([*parts, f"{title[0].lower()}{title[1:]}"])
    return f"{line[0].upper()}{line[1:]}."


def next_steps(report: Report) -> tuple[str, ...]:
    """Return what a reader must know and do, in sentences, the most urgent first."""
    if not report.was_read:
        unread = "A radiologist must read the images: this report says nothing about them."
        unknown = "The files do not say whose study this is, or name several patients or studies."
        header = report.header
        is_known = header.study_uid or header.patient_id or header.patient_name
        return (unread,) if is_known else (unread, unknown)
    steps = ["A radiologist must read all images: the program can miss nodules."]
    if limits := len(report.limitations):
        steps.insert(0, f"No guarantee: this study has {counted(limits, 'limitation')}.")
    lists = (("finding", report.numbered), ("possible finding", report.numbered_possible))
    if filled := [one for one in lists if one[1]]:
        noun, numbered = filled[0]
        number, _ = max(numbered, key=lambda one: one[1].probability)
        location = report.locations.get(number)
        where = f" ({location.text})" if location else ""
        most = ", the most probable" if len(numbered) > 1 else ""
        steps.append(f"Look first at {noun} {number}{most}{where}.")
    apart = [(noun, [n for n, one in numbered if one.disagreement]) for noun, numbered in lists]
    if told := [named(noun, numbers) for noun, numbers in apart if numbers]:
        steps.append(f"The two readers disagree strongly about {' and '.join(told)}.")
    return tuple(steps)


def coverage_text(report: Report) -> str:
    """Say in a sentence how much of the lungs the images show; empty where it is not known."""
    coverage = report.coverage
    if coverage is None:
        return ""
    sides = " and ".join(one.side for one in coverage.cuts)
    height = f"{coverage.lung_height_mm:g} mm of lung from apex to base"
    whole = " the whole lungs:" if report.shows_whole_lungs else ""
    return f"The images show{whole} {height}{sides and f', cut at {sides}'}."


def counted(count: int, noun: str) -> str:
    """Return ``no findings``, ``1 finding`` or ``2 findings``."""
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def characterizations(count: int) -> str:
    """Return what the cloud gives of findings that the edge reports by itself."""
    return f"size, type and outline of {counted(count, 'finding')}"


def reasons_once(numbered: Iterable[tuple[int, Finding]]) -> dict[str, list[int]]:
    """Return each reason once, with the numbers of its findings.

    The scores stand in a table beside; an ellipsis takes their place, so that equal reasons are
    one. A threshold stays.
    """
    found: dict[str, list[int]] = {}
    for number, finding in numbered:
        cloud = [finding.verdict.probability] if finding.verdict else []
        scores = (finding.edge_score, finding.probability, *cloud)
        # a score that was stored with four digits may be printed otherwise than before
        near = [score + off for score in scores for off in (-5e-5, 0.0, 5e-5)]
        own = {f"{score:.{digits}f}" for score in near for digits in (2, 3)}
        told, word, thresholds = finding.reason.partition("threshold")
        parts = ("…" if part in own else part for part in re.split(r"(\d\.\d+)", told))
        found.setdefault("".join(parts) + word + thresholds, []).append(number)
    return found


def _described(report: Report, found: Sequence[tuple[int, Finding]], noun: str) -> str:
    """Count what was found, and describe the largest."""
    if not found:
        return counted(0, noun)
    number, one = max(found, key=lambda numbered: numbered[1].diameter_mm)
    location, size = report.locations.get(number), one.diameter_mm
    words = (
        counted(len(found), noun),
        f"{'the largest ' if len(found) > 1 else ''}{size:.{0 if size >= 10 else 1}f} mm",
        one.verdict.texture if one.verdict else "",
        location.place if location else "",
    )
    return ", ".join(filter(None, words))


def date(text: str) -> str:
    """Turn DICOM's 20260301 into 2026-03-01; other text is returned as it is."""
    return re.sub("^([0-9]{4})([0-9]{2})([0-9]{2})$", r"\1-\2-\3", text)
