"""A report's page in a real browser; skipped where Chromium is not installed."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edge.guarantee import Guarantee
from edge.report.model import NOT_A_DEVICE, Rejection, Report, Status
from edge.report.pictures import draw_pictures
from edge.report.write import write_report
from evaluation.errors import MissingProgram
from imaging.volume import Limitation, LimitationKind, StudyHeader
from tests.edge.builders import TERMS
from tests.edge.report.reports import CHANGE, FINDING, POSSIBLE, REPORT, VERDICT, box
from tests.page_views import VIEWS, look
from tools.pictures import README_PX, Browser, View, app, browser

pytestmark = pytest.mark.long
NAME = "Wolfeschlegelsteinhausenbergerdorff^Hubert Blaine"
SHOWN = replace(
    REPORT,
    header=StudyHeader(
        patient_id="9" * 64,
        patient_name=NAME,
        study_date="20260301",
        accession="A" * 16,
        series_description="THORAX_1.0_B70f_" * 4,
        manufacturer="SIEMENS Healthineers",
    ),
    series_uid="1.2.826.0.1." + "3680043" * 7,
    source=Path("/inbox") / ("a_long_folder_without_a_break" * 4),
    findings=tuple(
        replace(
            FINDING,
            diameter_mm=4.0 + number,
            verdict=replace(VERDICT, texture="ground glass", malignancy=0.41)
            if number % 2
            else None,
        )
        for number in range(5)
    ),
    possible=(POSSIBLE,) * 2,
    limitations=tuple(
        Limitation(kind, f"The {kind.value} is {'not ' * 12}covered.") for kind in LimitationKind
    ),
    guarantee=Guarantee(TERMS, "", permanent=False),
    changes=(CHANGE,),
    version=2,
    status=Status.PROVISIONAL,
    models={"edge": "screening-int8 " + "0123456789abcdef" * 3},
)
REFUSED = Report(
    "k",
    "2026-03-01T10:11:12+00:00",
    Path("/inbox/x"),
    10.0,
    status=Status.REJECTED,
    rejection=Rejection("IncompleteSeries", "slice 12 of 100 is missing", "0" * 120 + ".dcm"),
)


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    try:
        with browser() as one:
            yield one
    except MissingProgram as error:
        pytest.skip(str(error))


def page_of(report: Report, out: Path) -> Path:
    pictures = (
        {} if report.rejection else draw_pictures(report.findings, report.possible, box(), out)
    )
    return write_report(report, pictures, out).html


@pytest.mark.parametrize(
    "report", [SHOWN, REFUSED, replace(REPORT, findings=())], ids=["full", "refused", "none"]
)
def test_nothing_overflows_and_every_contrast_is_enough(
    shown: Browser, tmp_path: Path, report: Report
) -> None:
    """At 1280 and 390 pixels, light and dark, with the longest texts that a header can hold."""
    found = look(shown, page_of(report, tmp_path / "report"), tmp_path)
    assert found == {view.name: [] for view in VIEWS}
    assert all((tmp_path / f"{view.name}.png").stat().st_size > 10_000 for view in VIEWS)


def test_a_wide_table_and_pale_text_are_faults(shown: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta name='viewport' content='width=device-width'>"
        "<body style='background: #fff'><table><tr><td style='min-width: 900px'>wide</table>"
        "<p style='color: #999'>pale</p>"
    )
    found = look(shown, page, tmp_path)
    assert any("reaches from" in fault for fault in found["phone"])
    assert found["desktop"] == ["p has a contrast of 2.8"]


def test_each_printed_page_has_the_disclaimer_and_the_patient_and_no_caption_is_torn(
    shown: Browser, tmp_path: Path
) -> None:
    """A caption stands on the page of its picture: heading and last line are on one page."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed: apt-get install poppler-utils")
    shown.page.goto(page_of(SHOWN, tmp_path / "report").as_uri())
    shown.page.pdf(format="A4", path=tmp_path / "printed.pdf")
    text = output("pdftotext", "-layout", tmp_path / "printed.pdf", "-")
    pages = text.split("\f")[:-1]
    assert len(pages) > 3
    for page in pages:
        assert NOT_A_DEVICE in page
        assert NAME.replace("^", " ") in page
    images = output("pdfimages", "-list", tmp_path / "printed.pdf")
    with_picture = {int(line.split()[0]) for line in images.splitlines()[2:]}
    assert "It is about many patients on average" in text  # what a fold hides on the screen
    assert "Brock probability of cancer" in text
    captions = [
        number
        for number, page in enumerate(pages, 1)
        if re.search(r"mm, probability of being a nodule \d", page)
    ]
    assert captions
    assert set(captions) <= with_picture


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_printed_page_is_light_where_the_screen_is_dark(shown: Browser, tmp_path: Path) -> None:
    shown.page.goto(page_of(REPORT, tmp_path / "report").as_uri())
    shown.show(View("dark", 1280, dark=True))
    shown.page.emulate_media(media="print", color_scheme="dark")
    style = "[getComputedStyle(document.body)].map(s => s.backgroundColor + s.color)[0]"
    assert shown.page.evaluate(style) == "rgb(255, 255, 255)rgb(22, 35, 43)"


def test_the_picture_in_the_readme_is_one_that_the_command_draws(
    shown: Browser, tmp_path: Path
) -> None:
    shown.page.goto(page_of(SHOWN, tmp_path / "report").as_uri())
    shown.show(View("readme", README_PX[0]))
    drawn = cv2.imdecode(np.frombuffer(shown.screenshot(README_PX[1]), np.uint8), cv2.IMREAD_COLOR)
    picture = cv2.imread(str(Path(__file__).parents[2] / "docs" / "report.png"))
    assert drawn is not None
    assert picture is not None
    assert picture.shape == drawn.shape


def test_without_a_browser_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    done = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert isinstance(done.exception, MissingProgram)
    assert "apt-get install chromium" in str(done.exception)
