"""What a report says, as text in sections and rows: the page, the terminal and the PDF write it.

It is made once, from a report as it was composed or as it was read again: every number is rounded
as in ``report.json`` first. A writer chooses what it shows, and where; it words nothing itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge.clinical.brock import MODEL, REFERENCE, notes_of
from edge.clinical.lung_rads import STANDARD
from edge.findings import SMALL_MM, Finding, SecondReading, named
from edge.report.model import Report, Status
from edge.report.pictures import picture_name
from edge.report.wording import MAY_CHANGE, counted, coverage_text, date, reasons_once
from edge.rules.rule import BY_DEFAULT

Facts = tuple[tuple[str, str], ...]
"""Names and values; a value that is not stated is empty."""


@dataclass(frozen=True)
class Section:
    """Sentences under a title; ``level`` is note, warn or bad where they stand as a banner."""

    title: str
    lines: tuple[str, ...]
    level: str = ""


@dataclass(frozen=True)
class Row:
    """One finding or possible finding; a text is empty where its value is not known.

    Attributes:
        picture: file name of its picture, which may be missing.
        place: image, side and zone.
        centre: x, y, z in mm, LPS.
        diameter, volume: in mm and mm³, without the unit.
        small: what marks a diameter below `SMALL_MM`.
        edge, cloud: probabilities by one reader alone.
        malignancy: how malignant it looks to the cloud, 0 to 1.
        cancer: the probability by the Brock model, and what is unknown of the nodule.
        category: of Lung-RADS.
    """

    number: int
    picture: str
    place: str
    centre: str
    diameter: str
    volume: str
    small: str
    texture: str
    probability: str
    edge: str
    cloud: str
    disagreement: str
    malignancy: str
    cancer: str
    category: str
    decided_by: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The findings, or the possible findings; ``reasons`` are for all numbers before the colon."""

    title: str
    note: str
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """All that a report says, but its candidates, its times and its pictures.

    Attributes:
        who: the patient, or where no one is named, the file.
        state: whether it may change, and its version.
        study: facts of patient and study, the patient's name first.
        banners: the most urgent first.
        lists: findings and possible findings; none of a study that was not read.
        sections: by a name that no user sees; what a banner says is in none.
        origin: facts of how and from what the report was made.
    """

    who: str
    state: str
    created: str
    study: Facts
    banners: tuple[Section, ...]
    lists: tuple[Listing, ...]
    sections: Mapping[str, Section]
    origin: Facts


def view_of(report: Report) -> View:
    """Return what a report says."""
    header = report.header
    name = header.patient_name.replace("^", " ")
    unread = not report.was_read and report.rule.name == BY_DEFAULT.name
    rule = [report.rule.name, report.rule.priority.value, "screening" * report.rule.screening]
    return View(
        who=name or header.patient_id or report.source.name,
        state=f"{report.status.value.capitalize()} report, version {report.version}",
        created=report.created.replace("T", " "),
        study=(
            ("Patient", name),
            ("Patient ID", header.patient_id),
            ("Sex, age", ", ".join(filter(None, (header.sex, header.age)))),
            ("Accession number", header.accession),
            ("Study date", date(header.study_date)),
            ("Series", header.series_description),
        ),
        banners=tuple(_banners(report)),
        lists=tuple(_lists(report)),
        sections={
            key: Section(title, found)
            for key, (title, lines) in _sections(report).items()
            if (found := tuple(filter(None, lines)))
        },
        origin=(
            ("Rule", "" if unread else ", ".join(filter(None, rule))),
            ("Scanner", header.manufacturer),
            ("Kernel", header.kernel),
            ("Source", report.source.name),
            ("Series UID", report.series_uid),
            ("Study key", report.study_key),
        ),
    )


def _banners(report: Report) -> Iterator[Section]:
    why, unread = report.rejection, "This study was not read"
    if why is not None:
        text = f"{why.reason} ({why.file})" if why.file else why.reason
        yield Section(f"{unread}: {why.kind}", (text,), "bad")
    elif report.status is Status.IGNORED:
        yield Section(unread, (_sentence(report.second_reading_reason),), "note")
    if not report.was_read:
        return
    if limits := tuple(one.text for one in report.limitations):
        yield Section("Limitation" + "s" * (len(limits) > 1), limits, "bad")
    if report.version > 1:
        now = [one.text for one in report.changes if one.version == report.version]
        text = now[0] if len(now) == 1 else "The changes are listed below."
        yield Section(f"Amended report, version {report.version}", (text,), "warn")
    if report.status is Status.PROVISIONAL:
        yield Section("Provisional report", (_sentence(MAY_CHANGE),), "warn")
    if _lacks_reading(report):
        yield Section(report.second_reading_title, (report.second_reading_reason,), "warn")


def _sections(report: Report) -> Mapping[str, tuple[str, Iterable[str]]]:
    """Return title and lines of each section, which may be empty."""
    suggested, audit, clinical = report.lung_rads, report.audit, report.clinical
    newest_first = sorted(report.changes, key=lambda change: -change.version)
    ended = report.second_reading_title.removeprefix("Second reading ").lower()
    reading = f"{ended}: {report.second_reading_reason}"
    has_banner = not report.was_read or _lacks_reading(report)
    return {
        "changes": (
            "Changes since version 1",
            (f"Version {one.version}, {one.kind.value}: {one.text}" for one in newest_first),
        ),
        "groups": (
            "Consolidation",
            (f"{named('Finding', group)} lie in one consolidation." for group in report.groups),
        ),
        "category": (
            f"{STANDARD}, suggested: {suggested.text}" if suggested else "",
            [" ".join(suggested.reasons)] if suggested else (),
        ),
        "not used": (f"{clinical.source} was not used", [clinical.problem]),
        "cancer": ("Brock probability of cancer", _cancer(report)),
        "guarantee": ("Guarantee", [report.guarantee.text]),
        "reading": ("Second reading", () if has_banner else [reading]),
        "coverage": ("Coverage", [coverage_text(report)]),
        "audit": ("Audit", [audit.text if audit else ""]),
        "models": ("Models", (f"{role}: {model}" for role, model in report.models.items())),
        "unread series": ("Series that were not read", report.other_series),
    }


def _cancer(report: Report) -> Iterator[str]:
    """Yield the probabilities of cancer, and what they rest on."""
    if not (patient := report.brock_of_patient):
        return
    yield ", ".join(f"{number}: {_brock(report, number)}" for number in report.brock)
    unknown = ", ".join(patient.unknown_of_patient)
    yield (
        f"Of findings and adults only: {MODEL}."
        + (unknown and f" Unknown of the patient: {unknown}.")
        + f" Reference values of unknown inputs: {REFERENCE}."
        + f" Notes: {'; '.join(notes_of(report.header, report.clinical))}."
    )


def _lists(report: Report) -> Iterator[Listing]:
    if not report.was_read:
        return
    for noun, note, numbered in (
        ("finding", "" if report.findings else "No candidate is probable enough for a finding.",
         report.numbered),
        ("possible finding", "Their probability is below the threshold of findings. Most of them"
         " are not nodules. They are listed so that fewer nodules are missed.",
         report.numbered_possible),
    ):  # fmt: skip
        if numbered or noun == "finding":
            reasons = reasons_once(numbered).items()
            yield Listing(
                _sentence(counted(len(numbered), noun), end=""),
                note,
                tuple(_row(report, number, one) for number, one in numbered),
                tuple(f"{', '.join(map(str, numbers))}: {reason}" for reason, numbers in reasons),
            )


def _row(report: Report, number: int, finding: Finding) -> Row:
    location, verdict = report.locations.get(number), finding.verdict
    inputs = report.lung_rads.inputs if report.lung_rads else ()
    categories = {one.number: "unknown" if one.missing else str(one.least) for one in inputs}
    return Row(
        number,
        picture_name(number),
        place=location.text if location else "",
        centre=", ".join(_number(value, 2, 1) for value in finding.centre_mm),
        diameter=_number(finding.diameter_mm, 2, 1),
        volume=_number(finding.volume_mm3, 1, 0),
        small=f"below {SMALL_MM:g} mm" if finding.small else "",
        texture=verdict.texture if verdict else "",
        probability=_number(finding.probability, 4, 2),
        edge=_number(finding.edge_score, 4, 2),
        cloud=_number(verdict.probability, 4, 2) if verdict else "",
        disagreement=finding.disagreement,
        malignancy=_number(verdict.malignancy, 4, 2) if verdict else "",
        cancer=_brock(report, number),
        category=categories.get(number, ""),
        decided_by=finding.decided_by.value,
        reason=finding.reason,
    )


def _brock(report: Report, number: int) -> str:
    brock = report.brock.get(number)
    if brock is None:
        return ""
    without = ", ".join(brock.unknown_of_nodule)
    return f"{100 * round(brock.probability, 4):.1f} %" + (without and f" without {without}")


def _number(value: float | None, stored: int, shown: int) -> str:
    """Return a number as it is shown, after it was rounded as it is stored."""
    return "" if value is None else f"{round(value, stored):.{shown}f}"


def _lacks_reading(report: Report) -> bool:
    return report.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING)


def _sentence(text: str, end: str = ".") -> str:
    return f"{text[:1].upper()}{text[1:]}{end}"
