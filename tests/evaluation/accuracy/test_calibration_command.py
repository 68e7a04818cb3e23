import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.accuracy.calibration_command import as_dict, draw_choice, tables
from evaluation.accuracy.nodules import save_chart
from models.calibration.cases import Cases
from models.markdown import Rows
from tests.evaluation.accuracy.test_calibration import fitted
from tests.models.calibration.made_cases import made


def parts(cases: Cases, *roles: str) -> dict[str, Cases]:
    """The nodules of some cases, and their false candidates as scans of these roles."""

    def of(chosen: Any, missed: tuple[str, ...], scans: int) -> Cases:
        names = ("edge", "cloud", "diameter_mm", "nodule", "owner")
        return Cases(*(getattr(cases, name)[chosen] for name in names), missed, scans)

    false = np.flatnonzero(~cases.nodule)
    split = np.array_split(false, len(roles))
    return {
        "nodules": of(cases.nodule, cases.missed, 0),
        **{role: of(some, (), 4) for role, some in zip(roles, split, strict=True)},
    }


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    cases = replace(made(), scans=8)
    read = {
        "val": parts(cases, "val", "train"),
        "calibration": parts(made(seed=1), "val"),
        "test": parts(made(seed=2), "test"),
    }
    return {"command": "overread-eval calibration", **as_dict(read, fitted(cases))}


def test_the_result_is_json_and_has_both_splits(result: dict[str, Any]) -> None:
    found = json.loads(json.dumps(result, allow_nan=False))
    assert set(found["splits"]) == {"fitted on", "test"}
    assert set(found["false_findings"]) == {
        f"{role}, {reader}"
        for role in ("val", "train", "test")
        for reader in ("edge", "edge and cloud")
    }
    assert found["guarantee"]["test"]["patients"] == 200


def test_tables_show_probabilities_thresholds_rates_and_misses(result: dict[str, Any]) -> None:
    shown = tables(result)
    titles = [one.title for one in shown if isinstance(one, Rows)]
    assert [one for one in titles if one] == [
        "Probabilities, fitted on", "Thresholds, fitted on",
        "Probabilities, test", "Thresholds, test",
    ]  # fmt: skip
    words = [one for one in shown if isinstance(one, str)]
    assert any("nodules added" in one for one in words)


def test_the_choice_is_drawn_as_one_picture(result: dict[str, Any], tmp_path: Path) -> None:
    save_chart(draw_choice(result), tmp_path / "choice.png")
    picture = cv2.imread(str(tmp_path / "choice.png"))
    assert picture is not None
    assert picture.std() > 10
