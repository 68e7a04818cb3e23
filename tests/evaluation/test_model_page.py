"""The page of the models: it says what was measured, and with which command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.froc import RATES
from evaluation.model_page import read_figures, write_page
from models.runtime.artifacts import every


def interval(value: float) -> dict[str, float]:
    """A figure with its interval, as the evaluation prints it."""
    return {"value": value, "low": value - 0.05, "high": value + 0.04}


def nodules(cpm: float, command: str) -> dict[str, Any]:
    """What `overread-eval nodules --json` says, in small."""
    points = [
        {"false_positives_per_scan": rate, **interval(0.5 + 0.05 * number)}
        for number, rate in enumerate(RATES)
    ]
    scan = {
        "scan": "chest_7",
        "false_positives": {"1": 1, "2": 2, "4": 5, "8": 11},
        "lesion_score": 0.625,
    }
    return {
        "command": command,
        "nodules": 244,
        "patients": 118,
        "scans": [scan, scan | {"scan": "chest_8", "lesion_score": None}],
        "sensitivity": points,
        "cpm": interval(cpm),
        "without": [{"scan": "chest_7", "sensitivity": dict.fromkeys("abcdefg", 0.5), "cpm": 0.5}],
        "fp_at": {
            "80": {"value": 2.5, "low": 1.25, "high": 4.4},
            "90": {"value": 7.5, "low": 3.0, "high": None},
        },
    }


PASS = {
    "artifact": "screening-int8",
    "engine": "openvino",
    "median_ms": 81.4,
    "p95_ms": 97.2,
    "ratio_to_first": 1.0,
}
NETWORK = {
    "command": "overread-eval network --repeat 5",
    "shape": [256, 224, 320],
    "batch": 1,
    "threads": 2,
    "cpu": "a small machine",
    "rounds": 5,
    "passes": [PASS],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with three measurements."""
    folder = tmp_path / "results"
    folder.mkdir()
    measured = {
        "nodules_edge_int8": nodules(0.711, "overread-eval nodules --stage edge"),
        "nodules_both_int8": nodules(0.822, "overread-eval nodules --stage both"),
        "network": NETWORK,
    }
    for name, result in measured.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    elsewhere = folder / "machines" / "large"
    elsewhere.mkdir(parents=True)
    (elsewhere / "pass.json").write_text(json.dumps(NETWORK | {"cpu": "a large machine"}))
    return folder


@pytest.fixture
def page(results: Path, tmp_path: Path) -> str:
    """The page that is written from them."""
    write_page(results, tmp_path / "models.md")
    return (tmp_path / "models.md").read_text()


def test_every_figure_stands_beside_its_command(page: str) -> None:
    """Sensitivity, CPM, false positives and times, each with its interval, and the commands."""
    for figure in (
        "| edge, INT8 | 50.0 (45-54) |",
        "0.711 (0.661-0.751)",
        "0.822 (0.772-0.862)",
        "2.5 (1.2-4.4)",
        "| `screening-int8` | openvino | 81 | 97 | 1.00 |",
        "1 x 256x224x320 voxels, 2 threads of a small machine; 5 rounds",
        "244 nodules of 118 patients",
        "| edge, INT8 | chest_7 | " + "50.0 | " * 7 + "0.500 |",
        "| a large machine | alone | `screening-int8` | openvino | 81 | 97 |",
    ):
        assert figure in page
    for command in ("nodules --stage edge", "nodules --stage both", "network --repeat 5"):
        assert f"\n    overread-eval {command}\n" in page


def test_what_was_not_reached_is_said(page: str) -> None:
    """An open interval and a lesion that was not proposed are words, not numbers."""
    assert "7.5 (3.0--)" in page
    assert "| chest_7 | 1 | 2 | 5 | 11 | 0.62 |" in page
    assert "| chest_8 | 1 | 2 | 5 | 11 | not proposed |" in page


def test_what_is_served_and_whose_data_it_was(page: str) -> None:
    """Every artifact with its version, its licence and attribution, and the warning."""
    for artifact in every().values():
        assert f"| `{artifact.name}` | {artifact.version} |" in page
        assert f"{artifact.licence}. {artifact.attribution}" in page
    assert "Not a medical device" in page


def test_without_measurements_there_are_no_figures(tmp_path: Path) -> None:
    """The page names the artifacts and adds no number of its own."""
    write_page(tmp_path, tmp_path / "models.md")
    page = (tmp_path / "models.md").read_text()
    assert "none measured yet" in page
    assert "overread-eval" not in page
    assert "CPM" not in page


def test_the_manifest_gets_the_figures_of_its_artifacts(results: Path) -> None:
    """The edge's figures go to the screening network, those of both to the hybrid."""
    figures = read_figures(results)
    assert set(figures) == {"screening-int8", "hybrid-int8"}
    assert figures["hybrid-int8"]["cpm"] == interval(0.822)
    assert figures["screening-int8"]["sensitivity_at_2"] == pytest.approx(interval(0.7))
    assert figures["screening-int8"]["sensitivity_at_8"] == pytest.approx(interval(0.8))
