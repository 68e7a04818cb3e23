from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from edge.atomic_files import write_atomically
from edge.budget import LedgerEntry
from edge.findings import DecidedBy, Decision, Finding, Outline, Route, SecondReading
from edge.report.model import NOT_A_DEVICE, Change, ChangeKind, Rejection, Report, Status
from edge.report.pictures import PICTURED_FINDINGS, draw_pictures
from edge.report.write import (
    SCHEMA,
    Banner,
    ReportPaths,
    banners,
    render_page,
    report_to_dict,
    version_in,
    write_report,
    write_version,
)
from imaging.location import Locator
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, ImageRef, Limitation, LimitationKind, StudyHeader
from models.runtime.detection import Candidate
from protos.messages import Verdict

VERDICT = Verdict(3, 0.93, 11.5, "hybrid-int8 1", 0.01, 0.04)
FINDING = Finding(
    (-21.104, -137.2, 237.1),
    12.346,
    0.95,
    0.61234,
    DecidedBy.CLOUD,
    "0.61 lies between 0.10 and 0.90; the cloud says 0.93",
    (20.0, 30.0, 40.0),
    Route.ESCALATE,
    VERDICT,
)
DISMISSED = Decision(
    Candidate((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 5.0, 0.0412), Route.DISMISS, "below 0.10"
)
REPORT = Report(
    study_key="k1",
    created="2026-03-01T10:11:12+00:00",
    source=Path("/inbox/case 1"),
    deadline_s=10.0,
    header=StudyHeader(patient_id="P1", patient_name="Doe^Jane", study_date="20260301"),
    series_uid="1.2.3",
    findings=(FINDING,),
    decisions=(DISMISSED,),
    ledger=(LedgerEntry("read", 10.0, 0.3), LedgerEntry("screen", 9.7, 0.1)),
    second_reading=SecondReading.COMPLETE,
    second_reading_reason="1 of 1 regions",
    models={"edge": "screening-int8 1 on openvino"},
    other_series=("1.2.4: 2 slices, localizer",),
)


def box() -> Preprocessed:
    voxels = np.random.default_rng(0).integers(0, 255, (48, 64, 80)).astype(np.uint8)
    return Preprocessed(voxels, Geometry())


def write(report: Report, out: Path) -> ReportPaths:
    return write_report(report, draw_pictures(report.findings, box(), out), out)


def page(report: Report = REPORT) -> str:
    return render_page(report, {})


def test_json_keys_of_the_contract_are_there() -> None:
    values = report_to_dict(REPORT)
    (finding,) = values["findings"]
    assert values["schema"] == SCHEMA == "overread.report/2"
    assert finding["centre_mm"] == [-21.1, -137.2, 237.1]
    assert finding["diameter_mm"] == 12.35
    assert (finding["probability"], finding["edge_score"]) == (0.95, 0.6123)
    assert (finding["decided_by"], finding["route"]) == ("cloud", "escalate")
    assert finding["verdict"]["probability"] == 0.93
    assert values["second_reading"] == "complete"
    assert values["ledger"][0] == {"stage": "read", "budget_s": 10.0, "took_s": 0.3}
    assert values["took_s"] == 0.4
    assert values["highest_dismissed_score"] == 0.0412
    assert values["candidates"][0]["route"] == "dismiss"
    assert values["disclaimer"] == NOT_A_DEVICE
    assert values["rejection"] is None


LOCATOR = Locator(
    (-100.0, -200.0, 235.0),
    (2.0, 1.0, 1.0),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    2,
    (ImageRef(57, "1.2.3.57"), ImageRef(56, "1.2.3.56")),
    "1.2.9",
    between=((90.0, 110.0),) * 2,
    zones=(-1.0, 0.5),
)


def test_a_finding_names_image_side_and_zone() -> None:
    report = replace(REPORT, locator=LOCATOR)
    (finding,) = report_to_dict(report)["findings"]
    assert finding["location"] == {
        "image_number": 56,
        "frame_number": None,
        "sop_instance_uid": "1.2.3.56",
        "frame_of_reference_uid": "1.2.9",
        "slice_index": 1,
        "side": "right",
        "zone": "upper",
    }
    assert "right upper zone, image 56" in page(report)


def test_what_the_files_do_not_state_of_a_location_is_null() -> None:
    bare = replace(LOCATOR, images=(), frame_of_reference_uid="", between=(), zones=None)
    (finding,) = report_to_dict(replace(REPORT, locator=bare))["findings"]
    known = {key: value for key, value in finding["location"].items() if value is not None}
    assert known == {"slice_index": 1}
    assert "slice 2 of 2 from the feet" in page(replace(REPORT, locator=bare))
    assert report_to_dict(REPORT)["findings"][0]["location"] is None


def test_findings_of_all_sizes_are_one_list_and_those_below_6_mm_are_marked() -> None:
    small = replace(FINDING, diameter_mm=4.2)
    values = report_to_dict(replace(REPORT, findings=(small, FINDING)))
    marks = [(one["number"], one["small"]) for one in values["findings"]]
    assert marks == [(1, True), (2, False)]
    assert "small_nodules" not in values
    text = page(replace(REPORT, findings=(small, FINDING)))
    assert "2 findings<" in text
    assert text.count("below 6 mm") == 1
    assert "below 6 mm" not in page()


def test_no_report_says_what_a_guideline_asks() -> None:
    """Guidelines exclude patients whom the program does not recognise; nobody may rest on them."""
    small = replace(FINDING, diameter_mm=4.2)
    text = page(replace(REPORT, findings=(small,))).lower()
    for word in ("guideline", "follow-up", "fleischner", "lung-rads"):
        assert word not in text


def test_json_says_nothing_that_is_no_json() -> None:
    odd = replace(FINDING, diameter_mm=float("nan"), verdict=None)
    values = report_to_dict(replace(REPORT, findings=(odd,), deadline_s=float("inf")))
    assert values["findings"][0]["diameter_mm"] is None
    assert values["findings"][0]["verdict"] is None
    assert values["deadline_s"] is None
    json.dumps(values, allow_nan=False)


def test_files_are_written_and_named_by_finding(tmp_path: Path) -> None:
    report = replace(REPORT, findings=(FINDING, FINDING))
    paths = write(report, tmp_path / "out")
    names = ["finding_01.webp", "finding_02.webp", "overview.webp", "report.html", "report.json"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert [path.name for path in paths.pictures] == ["overview.webp", *names[:2]]
    assert json.loads(paths.json.read_text()) == report_to_dict(report)
    assert all(path.read_bytes().startswith(b"RIFF") for path in paths.pictures)


def test_report_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def watched(path: Path, data: bytes) -> None:
        written.append(path.name)
        write_atomically(path, data)

    for module in ("pictures", "write"):
        monkeypatch.setattr(f"edge.report.{module}.write_atomically", watched)
    write(REPORT, tmp_path)
    assert written == ["overview.webp", "finding_01.webp", "report.html", "report.json"]


def test_one_patient_s_pictures_never_lie_beside_another_s_report(tmp_path: Path) -> None:
    """A report with fewer findings, and one of a refusal, leave no picture of the one before."""
    write(replace(REPORT, findings=(FINDING,) * 3), tmp_path)
    (tmp_path / "finding_notes.webp").touch()
    paths = write(REPORT, tmp_path)
    others = ["finding_notes.webp", "report.html", "report.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(["overview.webp", "finding_01.webp", *others])
    assert all(path.is_file() for path in paths.pictures)
    write_report(REPORT, {}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == others


def test_an_older_report_goes_before_the_pictures_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(REPORT, tmp_path)

    def dies(path: Path, _data: bytes) -> None:
        assert path.name == "overview.webp"
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.report.pictures.write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        write(REPORT, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_new_folder_outlasts_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry in the folder above is on the disk before a report lies in it."""
    synced: list[tuple[Path, bool]] = []
    json_file = tmp_path / "new" / "report.json"
    monkeypatch.setattr(
        "edge.report.pictures.sync_folder",
        lambda folder: synced.append((folder, json_file.exists())),
    )
    write_report(REPORT, {}, json_file.parent)
    assert (tmp_path, False) in synced


def test_a_disk_that_fills_up_leaves_no_half_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part of the new files nor one of the old ones beside them."""
    write(REPORT, tmp_path)

    def full(path: Path, data: bytes) -> None:
        if path.name == "report.json":
            monkeypatch.setattr(os, "fsync", _no_space)
        write_atomically(path, data)

    monkeypatch.setattr("edge.report.write.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        write_report(replace(REPORT, version=2), {}, tmp_path)
    assert os.listdir(tmp_path) == ["report.html"]


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "'; alert(1); //",
        "</title></style><svg onload=alert(1)>",
        "{{ 7 * 7 }}",
        "${7*7} & < > \x00",
    ],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    """Whatever a header, path or reason says, the page shows it and runs none of it."""
    header = StudyHeader(*[hostile] * len(fields(StudyHeader)))
    finding = replace(FINDING, reason=hostile)
    report = replace(
        REPORT,
        header=header,
        findings=(finding,),
        source=Path("/inbox") / hostile.replace("\x00", "").replace("/", "-"),
        second_reading_reason=hostile,
        models={hostile: hostile},
        other_series=(hostile,),
        ledger=(LedgerEntry(hostile, 1.0, 1.0),),
    )
    text = page(report)
    tags = set(re.findall(r"<([a-z]+)", text))
    assert tags <= set(re.findall(r"<([a-z]+)", page()))
    assert not re.search(r"<[^>]*\son[a-z]+\s*=\s*[^>\"]*>", text.replace("&#34;", ""))
    assert "49" not in text.replace("249", "")
    assert "default-src 'none'" in text


def test_a_name_that_is_no_utf8_does_not_stop_the_report(tmp_path: Path) -> None:
    paths = write_report(replace(REPORT, source=Path("/in/\udcff")), {}, tmp_path)
    assert json.loads(paths.json.read_text())["source"] == "/in/?"


def test_only_the_first_findings_get_pictures_of_their_own(tmp_path: Path) -> None:
    count = PICTURED_FINDINGS + 2
    paths = write(replace(REPORT, findings=(FINDING,) * count), tmp_path)
    assert len(paths.pictures) == PICTURED_FINDINGS + 1
    assert len(json.loads(paths.json.read_text())["findings"]) == count


def test_a_report_of_14_findings_takes_less_than_2_megabytes(tmp_path: Path) -> None:
    """Page and files together, in a chest with the noise of thin slices."""
    noise = np.random.default_rng(0).normal(-850, 40, (230, 225, 290))
    voxels = np.clip((noise + 1000) * 255 / 1400, 0, 255).astype(np.uint8)
    report = replace(REPORT, findings=(replace(FINDING, index_zyx=(115.0, 112.0, 145.0)),) * 14)
    write_report(
        report, draw_pictures(report.findings, Preprocessed(voxels, Geometry()), tmp_path), tmp_path
    )
    assert len(list(tmp_path.glob("*.webp"))) == 15
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_000_000


def test_an_outline_is_drawn(tmp_path: Path) -> None:
    outlined = replace(FINDING, outline=Outline(np.ones((4, 4, 4), bool), (18, 28, 38)))
    plain, drawn = (draw_pictures((one,), box(), tmp_path) for one in (FINDING, outlined))
    assert plain["finding_01.webp"] != drawn["finding_01.webp"]


def test_page_holds_its_own_pictures_and_points_nowhere(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path)
    text = paths.html.read_text()
    inside = re.findall(r'href="data:image/webp;base64,([^"]+)"', text)
    assert [base64.b64decode(data) for data in inside] == [p.read_bytes() for p in paths.pictures]
    assert len(re.findall(r"role=\"img\" aria-label=\"[^\"]{40,}\"", text)) == len(inside) == 2
    assert len(re.findall(r'<use href="#[a-z0-9_.]+"/>', text)) == (2 - 1) + (8 - 1)
    assert not re.search(r"<script|<link|https?:|@import|url\(|javascript:", text)


UNCERTAIN = Decision(
    Candidate((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 5.0, 0.5), Route.ESCALATE, "between"
)


def test_a_report_by_the_edge_alone_is_no_warning() -> None:
    """Nor is a second reading that was not needed; and nothing says that it is complete."""
    off = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        second_reading=SecondReading.OFF,
        second_reading_reason="no second reader is configured",
    )
    assert banners(off) == (Banner("note", "Edge only", "no second reader is configured"),)
    assert banners(REPORT)[0].title == "Second reading not needed"
    for report in (off, REPORT):
        text = page(report)
        assert '<div class="banner note" role="status">' in text
        assert 'class="banner warn"' not in text
        assert 'class="banner good"' not in text
        assert "complete" not in text.split("<main>")[1]


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
def test_banner_states_how_complete_the_second_reading_is(
    status: Status, second: SecondReading, expected: list[tuple[str, str]]
) -> None:
    report = replace(
        REPORT,
        decisions=(UNCERTAIN,),
        status=status,
        second_reading=second,
        second_reading_reason="the link is down",
    )
    assert [(banner.level, banner.title) for banner in banners(report)] == expected
    assert banners(report)[-1].text == "the link is down"
    assert all(banner.title in page(report) for banner in banners(report))


def test_a_rejected_study_has_a_page_that_says_why(tmp_path: Path) -> None:
    """The banner has kind, reason and file; nothing is said about findings."""
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
        REPORT.guarantee.text,
        "1.2.4: 2 slices, localizer",
        "Dismissed: 1, highest score 0.041",
        NOT_A_DEVICE,
    ):
        assert words in text


def test_the_disclaimer_stands_under_the_header_and_on_every_printed_page() -> None:
    """Before anything that could be believed; chromium repeats the margin box on each page."""
    text = page()
    body = text.split("</header>")[1]
    assert body.index(NOT_A_DEVICE) < 100
    assert re.search(r"@bottom-left \{ content: \"" + re.escape(NOT_A_DEVICE), text)


@pytest.mark.parametrize("count", [1, 2])
def test_limitations_stand_in_one_box_under_the_disclaimer(count: int) -> None:
    texts = ("the scan ends inside the lungs at the base", "the patient is 9 years old")[:count]
    limitations = tuple(Limitation(LimitationKind.PATIENT, text) for text in texts)
    text = page(replace(REPORT, limitations=limitations))
    body = text.split("</header>")[1].split("<dl")[0]
    box = body.split('<div class="banner bad"')
    assert len(box) == 2
    assert [one in box[1].split("</div>")[0] for one in texts] == [True] * count
    assert body.index(NOT_A_DEVICE) < body.index(texts[0]) < body.index("Second reading")


CHANGE = Change(2, ChangeKind.ADDED, "finding 4 is new", 4, (1.0, 2.0, 3.0), 0.3, 0.9, 0.8, "m 1")
SECOND = replace(
    REPORT, version=2, findings=(FINDING, FINDING), finding_numbers=(4, 1), changes=(CHANGE,)
)
PICTURES = {"overview.webp": b"RIFF o", "finding_01.webp": b"RIFF 1", "finding_04.webp": b"4"}
FILES = ["finding_04.webp", "report.v1.html", "report.v1.json", "report.html", "report.json"]


def first(out: Path) -> dict[str, bytes]:
    """Version 1 in ``out``; returns its files."""
    write_report(REPORT, draw_pictures(REPORT.findings, box(), out), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_new_version_takes_the_place_and_the_old_one_lies_beside_it(tmp_path: Path) -> None:
    """Page and data of version 1 are what they were, byte for byte."""
    before = first(tmp_path)
    paths = write_version(SECOND, PICTURES, tmp_path)
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    words = json.loads(paths.json.read_text())
    assert [finding["number"] for finding in words["findings"]] == [4, 1]
    assert words["changes"][0]["verdict"] == {"probability": 0.8, "model": "m 1"}
    assert [path.name for path in paths.pictures] == list(PICTURES)


def test_pictures_that_are_not_of_the_new_version_go(tmp_path: Path) -> None:
    first(tmp_path)
    (tmp_path / "finding_notes.webp").touch()
    write_version(SECOND, {}, tmp_path)
    names = ["finding_notes.webp", "report.html", "report.json", "report.v1.html", "report.v1.json"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("file", FILES)
def test_killed_at_any_file_the_old_version_is_complete_and_the_next_attempt_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, after: bool
) -> None:
    """``report.json`` is one version or the other, never none, and version 1 is never changed."""
    before = first(tmp_path)

    def dies(path: Path, data: bytes) -> None:
        if path.name != file or after:
            write_atomically(path, data)
        if path.name == file:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge.report.write.write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == (2 if after and file == "report.json" else 1)
    write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == 2
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    assert sorted(os.listdir(tmp_path)) == sorted({*before, *FILES})


def test_the_version_of_another_study_is_none(tmp_path: Path) -> None:
    assert version_in(tmp_path, "k1") == 0
    first(tmp_path)
    assert (version_in(tmp_path, "k1"), version_in(tmp_path, "k2")) == (1, 0)
    (tmp_path / "report.json").write_text("{")
    assert version_in(tmp_path, "k1") == 0


def test_a_new_study_s_report_leaves_no_version_of_an_older_one(tmp_path: Path) -> None:
    first(tmp_path)
    write_version(SECOND, PICTURES, tmp_path)
    before = first(tmp_path)
    assert not [name for name in before if name.startswith("report.v")]
