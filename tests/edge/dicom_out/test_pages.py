"""The pages of the report as PDF, read back with poppler."""

import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from edge.dicom_out.pages import printable, report_pages, shown_name
from edge.report.model import NOT_A_DEVICE, Rejection, Report
from imaging.render import encode_jpeg
from tests.edge.dicom_out.studies import write_reported, write_study
from tests.edge.report.reports import REPORT


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("pages")
    return write_reported(write_study(folder / "study"), folder / "report")


def text_of(pages: bytes, folder: Path) -> list[str]:
    if which("pdftotext") is None:
        pytest.skip("needs pdftotext (Debian: poppler-utils)")
    (folder / "report.pdf").write_bytes(pages)
    command = ["pdftotext", "-layout", str(folder / "report.pdf"), "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("\f")[:-1]


def test_the_pages_hold_what_the_report_says(report: Report, tmp_path: Path) -> None:
    text = "\n".join(text_of(report_pages(report, {}), tmp_path))
    for said in (
        *("Doe Jane", "P7", "2026-02-28", "A12", "screening-int8 1 (openvino)"),
        *("part-solid", "3 of 3 uncertain candidates", "No guarantee for this scan"),
    ):
        assert said in text
    x, y, z = report.findings[0].centre_mm
    assert f"{x:.1f}, {y:.1f}, {z:.1f}" in text


def test_the_pages_begin_with_the_result_and_have_key_images_and_readers_that_disagree(
    report: Report, tmp_path: Path
) -> None:
    """A damaged picture is left out."""
    picture = encode_jpeg(np.zeros((640, 1280, 3), np.uint8))
    apart = replace(report.findings[0], edge_score=0.1)
    pictures = {"finding_01.jpg": picture, "finding_02.jpg": b"damaged"}
    pages = report_pages(replace(report, findings=(apart, report.findings[1])), pictures)
    text = " ".join("\n".join(text_of(pages, tmp_path)).split())
    assert text.index("2 findings, the largest 12 mm") < text.index("Look first") < text.index("#")
    assert "the readers disagree" in text
    assert text.count("the cloud raised …") == 2  # once in each list
    assert pages.count(b"/Subtype /Image") == 2  # beside the row, and below


def test_every_page_says_that_it_is_no_medical_device(report: Report, tmp_path: Path) -> None:
    """Also with more findings, longer reasons and wider words than a page has room for."""
    reasons = (f"because {n} " * 80 + "x" * 400 + " <b>&</b>" for n in range(1, 40))
    many = tuple(replace(report.findings[0], reason=reason) for reason in reasons)
    pages = text_of(report_pages(replace(report, findings=many), {}), tmp_path)
    assert len(pages) > 5
    assert all(NOT_A_DEVICE in page for page in pages)
    assert "<b>&</b>" in "".join(pages)


def test_values_of_any_length_are_cut(tmp_path: Path) -> None:
    names = ("patient_id", "patient_name", "sex", "age", "study_date", "accession")
    values = {name: f"{name} " + "long\n" * 20_000 for name in (*names, "series_description")}
    pages = report_pages(replace(REPORT, header=replace(REPORT.header, **values)), {})
    text = "".join(text_of(pages, tmp_path))
    assert "..." in text
    assert "accession long" in text


def test_a_refused_study_s_page_says_why(tmp_path: Path) -> None:
    report = replace(REPORT, rejection=Rejection("NoLung", "there is no lung"))
    text = "".join(text_of(report_pages(report, {}), tmp_path))
    assert "This study was not read" in text
    assert "there is no lung" in text
    assert "Findings" not in text


@pytest.mark.parametrize(
    ("name", "shown", "noted"),
    [
        ("Doe^Jane", "Doe Jane", False),
        ("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "Yamada Tarou", True),
        ("\u5c71\u7530^\u592a\u90ce", "?? ??", True),
        ("\u05db\u05d4\u05df^\u05d3\u05df", "??? ??", True),
        ("", "", False),
    ],
)
def test_a_name_is_printed_as_far_as_the_font_goes(name: str, shown: str, noted: bool) -> None:
    text, note = shown_name(name)
    assert (text, bool(note)) == (shown, noted)


def test_western_letters_are_printed_with_any_font() -> None:
    assert printable("J\u00e9r\u00f4me \u00d8\u00df") == "J\u00e9r\u00f4me \u00d8\u00df"
