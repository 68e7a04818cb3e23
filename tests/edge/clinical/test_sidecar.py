"""``clinical.json``: what it may say, and that a bad one costs no reading."""

import json
import os
from pathlib import Path

import pytest

from edge.clinical.sidecar import Clinical, clinical_of
from edge.escalation.client import NoSecondReader
from edge.job import Job
from edge.pipeline import read_and_report
from tests.edge.builders import pipeline_of

FULL = {
    "smoking": "former",
    "family_history_of_lung_cancer": True,
    "emphysema": False,
    "spiculation": None,
    "prior_chest_ct": False,
}


def put(folder: Path, text: str) -> Path:
    (folder / "clinical.json").write_text(text)
    return folder


def test_every_field_is_read_and_may_be_missing(tmp_path: Path) -> None:
    assert clinical_of(tmp_path) == Clinical()
    assert clinical_of(tmp_path / "file.nii") == Clinical()
    assert clinical_of(put(tmp_path, json.dumps(FULL))) == Clinical(
        "former", True, False, None, False, "clinical.json"
    )
    assert clinical_of(put(tmp_path, "{}")) == Clinical(source="clinical.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no JSON", "is no JSON, expected a JSON object"),
        ("[]", "is no JSON object"),
        ("[" * 50_000, "is no JSON"),
        ('{"emphysem": true}', "emphysem: there is no such field; did you mean emphysema?"),
        ('{"emphysema": "yes"}', 'emphysema = "yes": expected true or false'),
        ('{"emphysema": 1}', "emphysema = 1: expected true or false"),
        ('{"smoking": "heavily"}', 'smoking = "heavily": expected one of "never"'),
        ('{"smoking": ["never"]}', "smoking = "),
        (" " * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_bad_file_is_refused_by_its_field(text: str, said: str, tmp_path: Path) -> None:
    found = clinical_of(put(tmp_path, text))
    assert said in found.problem
    assert found == Clinical(source="clinical.json", problem=found.problem)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    os.symlink(put(tmp_path, "{}") / "clinical.json", tmp_path / "study" / "clinical.json")
    assert "is a link" in clinical_of(tmp_path / "study").problem


def test_a_study_with_a_bad_file_is_read_and_its_report_says_why(tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "out"
    study.mkdir()
    put(study, '{"emphysema": "yes"}')
    read_and_report(pipeline_of(NoSecondReader()), Job(study, out))
    written = json.loads((out / "report.json").read_text())
    assert written["status"] == "final"
    assert written["clinical"]["problem"] == 'emphysema = "yes": expected true or false'
    assert "emphysema" in written["brock"]["unknown"]
    assert "clinical.json was not used" in (out / "report.html").read_text()
