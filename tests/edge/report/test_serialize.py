from __future__ import annotations

import json
from dataclasses import replace

from edge.report.model import NOT_A_DEVICE
from edge.report.serialize import SCHEMA, report_to_dict
from tests.edge.report.reports import FINDING, LOCATOR, POSSIBLE, REPORT, page


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


def test_possible_findings_are_a_list_of_their_own_and_numbered_on() -> None:
    """They have the keys of findings; a report without any has an empty list."""
    values = report_to_dict(replace(REPORT, findings=(FINDING,) * 2, possible=(POSSIBLE,)))
    assert [one["number"] for one in values["findings"]] == [1, 2]
    (possible,) = values["possible_findings"]
    assert possible.keys() == values["findings"][0].keys()
    assert (possible["number"], possible["probability"], possible["small"]) == (3, 0.21, True)
    assert values["schema"] == SCHEMA == "overread.report/2"
    assert report_to_dict(REPORT)["possible_findings"] == []


def test_numbers_of_an_amended_report_are_those_of_both_lists() -> None:
    report = replace(REPORT, possible=(POSSIBLE,), finding_numbers=(5, 2))
    assert [n for n, _ in report.numbered] == [5]
    assert [n for n, _ in report.numbered_possible] == [2]


def test_json_says_nothing_that_is_no_json() -> None:
    odd = replace(FINDING, diameter_mm=float("nan"), verdict=None)
    values = report_to_dict(replace(REPORT, findings=(odd,), deadline_s=float("inf")))
    assert values["findings"][0]["diameter_mm"] is None
    assert values["findings"][0]["verdict"] is None
    assert values["deadline_s"] is None
    json.dumps(values, allow_nan=False)
