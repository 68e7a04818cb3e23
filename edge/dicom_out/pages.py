"""Set the pages of the report as PDF, A4: for archives and viewers that show no HTML."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    Image,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

from edge.report.model import NOT_A_DEVICE, Report
from edge.report.view import Row, View, view_of
from edge.report.wording import date
from imaging.render import TILE_PX

_FONTS = (
    # of Debian's fonts-dejavu-core: Latin, Greek, Cyrillic and more
    ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    # comes with reportlab: western Latin alone
    ("Vera.ttf", "VeraBd.ttf"),
)
_FONT, _BOLD = "Overread", "Overread-Bold"
_MARGIN, _HEAD, _FOOT = 18 * mm, 30 * mm, 20 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_PICTURES_IN_ROW = 2
_KEY_WIDTH, _KEY_PART = 18 * mm, slice(TILE_PX // 7, TILE_PX - TILE_PX // 7)
"""Of the key image beside a finding: the middle of the first tile of its picture."""
_TOP = ("VALIGN", (0, 0), (-1, -1), "TOP")
_MAX_VALUE = 300
"""Characters of a header's value that are printed: no valid one has more."""
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_SECTIONS = ("groups", "reading", "guarantee", "coverage", "changes", "unread series", "models")
_UNPRINTED = "Some characters of this text cannot be printed here. The DICOM header has them."
_GREY, _LINE, _WARN = map(colors.HexColor, ("#555555", "#bbbbbb", "#8a4b00"))


def report_pages(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """Return the report as PDF; the same report gives the same bytes.

    ``pictures`` are JPEG by file name.
    """
    _register_fonts()
    file = BytesIO()
    pages = BaseDocTemplate(
        file,
        pagesize=A4,
        title=f"Overread report, version {report.version}",
        author="Overread",
        subject=NOT_A_DEVICE,
        invariant=1,
    )
    frame = Frame(_MARGIN, _FOOT, _WIDTH, A4[1] - _HEAD - _FOOT, 0, 0, 0, 0)
    furnish = partial(_draw_head_and_foot, report)
    pages.addPageTemplates([PageTemplate(frames=[frame], onPage=furnish)])
    pages.build(list(_content(report, pictures)))
    return file.getvalue()


@cache
def _register_fonts() -> None:
    for regular, bold in _FONTS:
        path = Path(regular)
        if not path.is_absolute() or path.is_file():
            pdfmetrics.registerFont(TTFont(_FONT, regular))
            pdfmetrics.registerFont(TTFont(_BOLD, str(path.with_name(bold))))
            pdfmetrics.registerFontFamily(_FONT, normal=_FONT, bold=_BOLD, italic=_FONT)
            return


def _style(name: str, **values: Any) -> ParagraphStyle:
    usual: dict[str, Any] = {"fontName": _FONT, "fontSize": 9, "leading": 12, "splitLongWords": 1}
    return ParagraphStyle(name, **usual | values)


_BODY, _SMALL = _style("body"), _style("small", fontSize=8, leading=10, textColor=_GREY)
_CELL = _style("cell", fontSize=8, leading=10)
_TITLE = _style("title", fontName=_BOLD, fontSize=12, leading=16, spaceBefore=10, spaceAfter=4)
_BANNER = _style("banner", fontName=_BOLD, textColor=_WARN)


def _text(value: object, style: ParagraphStyle = _BODY) -> Paragraph:
    return Paragraph(escape(printable(str(value))).replace("\n", "<br/>"), style)


def printable(text: str) -> str:
    """Return the text with a question mark for each character that the font cannot print.

    Letters from right to left are among them: they would be set in the wrong order.
    """
    _register_fonts()
    font = pdfmetrics.getFont(_FONT)
    assert isinstance(font, TTFont)
    glyphs = font.face.charToGlyph

    def is_printed(letter: str) -> bool:
        is_left_to_right = unicodedata.bidirectional(letter) not in _RIGHT_TO_LEFT
        return letter == "\n" or (ord(letter) in glyphs and is_left_to_right)

    return "".join(letter if is_printed(letter) else "?" for letter in text)


def shown_name(name: str) -> tuple[str, str]:
    """Return a patient's name as it can be printed, and a note where that is not all of it.

    A name may be written in letters, in ideographs and phonetically, with ``=`` between them.
    """
    parts = [part.replace("^", " ").strip() for part in name.split("=")]
    parts = [part for part in parts if part]
    whole = [part for part in parts if printable(part) == part]
    if len(whole) == len(parts):
        return " = ".join(parts), ""
    return (" = ".join(whole) or printable(parts[0])), _UNPRINTED


def _draw_head_and_foot(report: Report, canvas: Canvas, _pages: BaseDocTemplate) -> None:
    header, width = report.header, A4[0]
    canvas.saveState()
    canvas.setFont(_BOLD, 11)
    canvas.drawString(_MARGIN, A4[1] - 14 * mm, "Overread: chest CT, lung nodules")
    canvas.setFont(_FONT, 8)
    state = f"{report.status.value} report, version {report.version}"
    canvas.drawRightString(width - _MARGIN, A4[1] - 14 * mm, state)
    name, _ = shown_name(_cut(header.patient_name))
    line = f"{name or 'no name'}   ID {printable(_cut(header.patient_id)) or 'not stated'}"
    canvas.drawString(_MARGIN, A4[1] - 20 * mm, _fitting(canvas, line, _WIDTH * 0.7))
    day = _cut(date(header.study_date) or "date not stated")
    canvas.drawRightString(width - _MARGIN, A4[1] - 20 * mm, f"study of {day}")
    canvas.setStrokeColor(_LINE)
    canvas.line(_MARGIN, A4[1] - 23 * mm, width - _MARGIN, A4[1] - 23 * mm)
    canvas.line(_MARGIN, 15 * mm, width - _MARGIN, 15 * mm)
    canvas.setFont(_BOLD, 8)
    canvas.drawString(_MARGIN, 10 * mm, NOT_A_DEVICE)
    canvas.setFont(_FONT, 8)
    canvas.drawRightString(width - _MARGIN, 10 * mm, f"page {canvas.getPageNumber()}")
    canvas.restoreState()


def _fitting(canvas: Canvas, text: str, width: float) -> str:
    """Cut the text where it would run into its neighbour."""
    cut = text
    while cut and canvas.stringWidth(cut, _FONT, 8) > width:
        cut = cut[:-1]
    return cut if cut == text else f"{cut[:-3]}..."


def _content(report: Report, pictures: Mapping[str, bytes]) -> Iterator[Flowable]:
    view = view_of(report)
    yield from _study(view, report.study_key)
    yield _text(report.result, _TITLE)
    yield from map(_text, report.next_steps)
    for banner in view.banners:
        yield _text(f"{banner.title}: {' '.join(banner.lines)}", _BANNER)
    for listing in view.lists:
        yield _text(listing.title, _TITLE)
        if listing.note:
            yield _text(listing.note, _SMALL)
        if listing.rows:
            yield _table(listing.rows, pictures)
            yield Spacer(1, 3)
        yield from (_text(reason, _SMALL) for reason in listing.reasons)
    for section in (view.sections[name] for name in _SECTIONS if name in view.sections):
        first, *others = map(_text, section.lines)
        yield KeepTogether([_text(section.title, _TITLE), first])
        yield from others
    if report.was_read:
        yield from _pictures(report, pictures)


def _study(view: View, study_key: str) -> Iterator[Flowable]:
    facts = (*view.study, ("Report of", view.created), ("Study key", study_key))
    name, note = shown_name(_cut(view.study[0][1]))
    shown = [name, *(_cut(value) for _, value in facts[1:])]
    cells = [
        cell
        for (label, _), value in zip(facts, shown, strict=True)
        for cell in (_text(label, _SMALL), _text(value or "not stated", _CELL))
    ]
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    yield Table(rows, colWidths=[_WIDTH * share for share in (0.18, 0.32) * 2], style=[_TOP])
    if note:
        yield _text(note, _SMALL)


def _table(rows: Sequence[Row], pictures: Mapping[str, bytes]) -> Flowable:
    heads = ("#", "", "where", "x, y, z mm (LPS)", "mm", "mm³", "type",
             "probability of being a nodule", "decided by")  # fmt: skip
    cells: list[list[Flowable]] = [[_text(head, _SMALL) for head in heads]]
    for row in rows:
        key = _image(pictures.get(row.picture, b""), _KEY_WIDTH, _KEY_PART) or Spacer(0, 0)
        size = row.diameter + (" (small)" if row.small else "")
        apart = "the readers disagree: " if row.disagreement else ""
        scores = f"edge {row.edge}" + (f", cloud {row.cloud}" if row.cloud else "")
        texts = (row.place, row.centre, size, row.volume, row.texture,
                 f"{row.probability}\n{apart}{scores}", row.decided_by)  # fmt: skip
        cells.append([_text(row.number, _CELL), key, *(_text(text, _CELL) for text in texts)])
    shares = (0.05, 0.12, 0.17, 0.16, 0.09, 0.08, 0.1, 0.15, 0.08)
    style: list[Any] = [
        _TOP,
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2),
    ]
    return Table(cells, colWidths=[_WIDTH * s for s in shares], style=style, repeatRows=1)


def _pictures(report: Report, pictures: Mapping[str, bytes]) -> Iterator[Flowable]:
    cells: list[tuple[Image, Paragraph]] = []
    for name, data in pictures.items():
        width = _WIDTH if name.startswith("overview") else _WIDTH / _PICTURES_IN_ROW - 6
        if (image := _image(data, width)) is not None:
            cells.append((image, _text(_caption(name), _SMALL)))
    if not cells:
        return
    title: list[Flowable] = [_text("Pictures", _TITLE)]
    if report.picture_note:
        title.append(_text(report.picture_note, _SMALL))
    wide = [cell for cell in cells if cell[0].wrap(*A4)[0] > _WIDTH / 2]
    for cell in wide:
        yield KeepTogether([*title, *cell, Spacer(1, 6)])
        title = []
    yield from title
    small: list[list[Flowable]] = [[*cell] for cell in cells if cell not in wide]
    rows = [small[i : i + _PICTURES_IN_ROW] for i in range(0, len(small), _PICTURES_IN_ROW)]
    if rows:
        rows[-1] += [[] for _ in range(_PICTURES_IN_ROW - len(rows[-1]))]
        width = _WIDTH / _PICTURES_IN_ROW
        style: list[Any] = [_TOP, ("LEFTPADDING", (0, 0), (-1, -1), 0)]
        yield Table(rows, colWidths=[width] * _PICTURES_IN_ROW, style=style)


def _image(data: bytes, place: float, part: slice = slice(None)) -> Image | None:
    """Return a square ``part`` of the picture, all by default; None where it is damaged.

    ``place`` is its width in points.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None or not pixels[part, part].size:
        return None
    pixels = np.ascontiguousarray(pixels[part, part])
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])
    height, width = pixels.shape[:2]
    scale = min(place / width, 0.6 * A4[1] / height)
    return Image(BytesIO(encoded.tobytes()), width * scale, height * scale)


def _caption(name: str) -> str:
    stem = name.removesuffix(".jpg")
    return "Overview" if stem == "overview" else f"Number {int(stem.removeprefix('finding_'))}"


def _cut(value: str) -> str:
    """Make one line of a header's value, and cut what is too long: a cell must fit on a page."""
    line = value.replace("\n", " ")
    return line if len(line) <= _MAX_VALUE else f"{line[: _MAX_VALUE - 3]}..."
