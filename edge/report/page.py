"""Render ``report.html``, the page of a report for people.

The page needs no other file. Its text may come from an untrusted DICOM header, so it is escaped,
and the page forbids scripts.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from string import ascii_letters, digits

from jinja2 import Environment, FileSystemBytecodeCache, PackageLoader, StrictUndefined, Template
from jinja2.bccache import Bucket

from edge.clinical.brock import MODEL as BROCK
from edge.clinical.brock import REFERENCE, notes_of
from edge.clinical.lung_rads import STANDARD
from edge.findings import READERS_MM, SecondReading
from edge.report.model import NOT_A_DEVICE, Change, ChangeKind, Report, Status
from edge.report.pictures import picture_name
from edge.report.wording import MAY_CHANGE, date, reasons_once

PAGES = "~/.cache/overread/pages"


@dataclass(frozen=True)
class Banner:
    """A message above the findings; ``level`` is note, warn or bad."""

    level: str
    title: str
    text: str


def render_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Render the page with its pictures, which are named as `draw_pictures` names them."""
    return _template().render(
        report=report,
        banners=banners(report),
        images={name: b64encode(data).decode() for name, data in pictures.items()},
        reasons=reasons_once(report.listed),
        picture_name=picture_name,
        disclaimer=NOT_A_DEVICE,
        readers_mm=READERS_MM,
        standard=STANDARD,
        brock_model=BROCK,
        brock_reference=REFERENCE,
        brock_notes=notes_of(report.header, report.clinical),
        running_head=_running_head(report),
        total_s=max(report.took_s, 1e-9),
    )


def changed_page(page: str, change: Change, now: str) -> str:
    """Put stamp, printed head and a banner of the new version into a page."""
    is_last = change.kind is ChangeKind.GIVEN_UP
    stamp = rf"(\w+) report, version {change.version - 1}<br>[^<]*<"
    kind = "Final" if is_last else r"\1"
    stamped = rf"{kind} report, version {change.version}<br>{now.replace('T', ' ')}<"
    page = re.sub(stamp, stamped, page, count=1)
    head = rf'report version {change.version - 1} of [0-9-]{{10}}"'
    page = re.sub(head, f'report version {change.version} of {now[:10]}"', page, count=1)
    banner = '<div class="banner warn" role="alert"><strong>{}</strong><span>{}</span></div>'
    if is_last:  # in place of the banner that it is provisional
        place = r'<div class="banner[^>]*><strong>Provisional report</strong>.*?</div>'
        title, text = "Last version, {}", f"The second reading was {change.text}."
    else:
        place = r'(?=<div class="banner|<dl)'  # above all banners, or where they would be
        title, text = "Amended report, version {}", change.text
    made = banner.format(title.format(change.version), escape(text))
    return re.sub(place, lambda _: made, page, count=1)


def banners(report: Report) -> tuple[Banner, ...]:
    """Return the messages above the findings, without limitations, the most urgent first."""
    if report.rejection is not None:
        why = report.rejection
        text = f"{why.reason} ({why.file})" if why.file else why.reason
        return (Banner("bad", f"This study was not read: {why.kind}", text),)
    if report.status is Status.IGNORED:
        text = f"{report.second_reading_reason[:1].upper()}{report.second_reading_reason[1:]}."
        return (Banner("note", "This study was not read", text),)
    messages = []
    if report.version > 1:
        title = f"Amended report, version {report.version}"
        messages.append(Banner("warn", title, "The changes are listed below."))
    if report.status is Status.PROVISIONAL:
        messages.append(
            Banner("warn", "Provisional report", f"{MAY_CHANGE[0].upper()}{MAY_CHANGE[1:]}.")
        )
    if report.second_reading in (SecondReading.PARTIAL, SecondReading.MISSING):
        title, text = report.second_reading_title, report.second_reading_reason
        messages.append(Banner("warn", title, text))
    return tuple(messages)


class _Compiled(FileSystemBytecodeCache):
    """The template as it was compiled, for the next start; without the folder it is compiled."""

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            Path(self.directory).mkdir(parents=True, exist_ok=True, mode=0o700)
            super().dump_bytecode(bucket)


@cache
def _template() -> Template:
    """Compile the page's template once: that takes longer than filling it."""
    environment = Environment(
        bytecode_cache=_Compiled(os.path.expanduser(PAGES)),
        loader=PackageLoader("edge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    environment.filters["date"] = date
    environment.filters["css_string"] = _css_string
    return environment.get_template("report.html.j2")


def _running_head(report: Report) -> str:
    """Say whose report a printed page belongs to."""
    header = report.header
    who = (header.patient_name.replace("^", " "), header.patient_id, date(header.study_date))
    named = ", ".join(part for part in who if part) or report.source.name
    return f"{named}, report version {report.version} of {report.created[:10]}"


def _css_string(text: str) -> str:
    """Escape text for a string in CSS: it may come from an untrusted header."""
    plain = frozenset(" ,.:-" + ascii_letters + digits)
    return "".join(c if c in plain else f"\\{ord(c):x} " for c in text)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
