"""The page that readers open."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import pytest

from edge.finding import SecondReading
from edge.outcome import NOT_A_DEVICE, Rejection, Report, Status
from edge.page import banners
from edge.report import (
    write_report,
)
from tests.edge.reports import REPORT, page, write


def test_page_holds_its_own_pictures_and_points_nowhere(tmp_path: Path) -> None:
    """Every picture is in the page as it is on disk, and nothing is fetched or run."""
    paths = write(REPORT, tmp_path)
    text = paths.html.read_text()
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(data) for data in inside] == [p.read_bytes() for p in paths.pictures]
    assert len(re.findall(r"<img[^>]+alt=\"[^\"]+\"", text)) == len(inside) == 2
    assert not re.search(r"<script|<link|https?:|@import|url\(|javascript:", text)


@pytest.mark.parametrize(
    ("status", "second", "expected"),
    [
        (Status.FINAL, SecondReading.COMPLETE, [("good", "Second reading complete")]),
        (
            Status.PROVISIONAL,
            SecondReading.MISSING,
            [("warn", "Provisional report"), ("warn", "Second reading missing")],
        ),
        (
            Status.PROVISIONAL,
            SecondReading.PARTIAL,
            [("warn", "Provisional report"), ("warn", "Second reading partial")],
        ),
    ],
)
def test_banner_tells_how_far_the_reading_went(
    status: Status, second: SecondReading, expected: list[tuple[str, str]]
) -> None:
    """What is not complete is said above everything else, with its reason."""
    report = dataclasses.replace(
        REPORT, status=status, second_reading=second, second_reading_reason="the link is down"
    )
    assert [(banner.level, banner.title) for banner in banners(report)] == expected
    assert banners(report)[-1].text == "the link is down"
    assert all(banner.title in page(report) for banner in banners(report))


def test_a_rejected_study_has_a_page_that_says_why(tmp_path: Path) -> None:
    """Kind, reason and file stand in the banner; no findings are claimed, none denied."""
    report = Report(
        "k",
        "2026-03-01T10:11:12+00:00",
        Path("/inbox/x"),
        10.0,
        status=Status.REJECTED,
        rejection=Rejection("IncompleteSeries", "slice 12 of 100 is missing", "000012.dcm"),
    )
    paths = write_report(report, {}, tmp_path)
    text = paths.html.read_text()
    assert "IncompleteSeries" in text
    assert "slice 12 of 100 is missing (000012.dcm)" in text
    assert "finding" not in re.sub(r"Findings are suggestions.*", "", text.split("<main>")[1])
    assert paths.pictures == ()
    assert json.loads(paths.json.read_text())["rejection"]["kind"] == "IncompleteSeries"


def test_page_names_everything_that_the_reader_must_know() -> None:
    """Patient, finding, who decided and why, times, models, guarantee, other series."""
    text = page()
    for words in (
        "Doe Jane",
        "2026-03-01</dd>",
        "12.3 mm",
        "0.95",
        "the cloud says 0.93",
        "400 ms",
        "10.00 s",
        "screening-int8 1 on openvino",
        REPORT.guarantee,
        "1.2.4: 2 slices, localizer",
        "highest score dismissed: 0.041",
        NOT_A_DEVICE,
    ):
        assert words in text
