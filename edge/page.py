"""The report as one HTML page that needs no other file and runs no script.

Everything in it may come from a stranger's DICOM header, so every value is escaped and the page
forbids its own scripts as well.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from edge.finding import SecondReading
from edge.outcome import NOT_A_DEVICE, Report, Status


@dataclass(frozen=True)
class Banner:
    """What a reader must know before anything else; ``level`` is good, warn or bad."""

    level: str
    title: str
    text: str


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        report: what is to be said.
        pictures: file name to PNG, as `edge.report.draw_pictures` names them.
    """
    return _template().render(
        report=report,
        banners=banners(report),
        images={name: b64encode(png).decode() for name, png in pictures.items()},
        disclaimer=NOT_A_DEVICE,
        total_s=max(report.took_s, 1e-9),
    )


@cache
def _template() -> Template:
    """The page's template, compiled once: that takes longer than filling it."""
    environment = Environment(
        loader=PackageLoader("edge", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    environment.filters["iso_date"] = _iso_date
    return environment.get_template("report.html.j2")


def banners(report: Report) -> tuple[Banner, ...]:
    """What stands above the findings, most urgent first; never empty."""
    if report.rejection is not None:
        why = report.rejection
        text = f"{why.reason} ({why.file})" if why.file else why.reason
        return (Banner("bad", f"This study was not read: {why.kind}", text),)
    found = []
    if report.version > 1:
        title = f"Amended report, version {report.version}"
        found.append(Banner("warn", title, "What changed is listed below."))
    if report.status is Status.PROVISIONAL:
        found.append(Banner("warn", "Provisional report", "It may still be amended."))
    found.append(_second_reading(report))
    return tuple(found)


def _second_reading(report: Report) -> Banner:
    title = f"Second reading {report.second_reading.value}"
    unread = report.second_reading in (SecondReading.MISSING, SecondReading.PARTIAL)
    return Banner("warn" if unread else "good", title, report.second_reading_reason)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _iso_date(text: str) -> str:
    """DICOM writes 20260301; whatever is no such date stays as it is."""
    dicom = len(text) == 8 and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if dicom else text
