import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.merge import MergeWeights
from evaluation.accuracy.calibration_cases import Candidates
from evaluation.accuracy.calibration_command import (
    READERS,
    after,
    as_dict,
    before,
    draw_reliability,
    tables,
)
from evaluation.accuracy.nodules import save_chart
from evaluation.accuracy.scores import Fitted
from models.markdown import Rows

FITTED = Fitted((0.5, 0.0), (1.0, 0.0), MergeWeights(0.0, 0.5, 0.5))


def made(seed: int, n: int = 600) -> Candidates:
    """The cloud's logit is true at a prior of a half, the edge's twice too steep."""
    rng = np.random.default_rng(seed)
    nodule = rng.uniform(size=n) < 0.2
    logit = rng.normal(np.where(nodule, 1.0, -1.0), np.sqrt(2.0))
    return Candidates(2 * logit, logit, nodule, np.array([f"p{i % 40}" for i in range(n)]))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    splits = {"val": made(0), "test": made(1)}
    found = as_dict(splits, FITTED, "val", resamples=20, seed=0)
    return {"command": "overread-eval calibration --seed 0", **found}


def test_scores_before_and_after() -> None:
    """Before, the networks' own; after, slopes and merger of the manifest."""
    of = Candidates(np.array([2.0]), np.array([1.0]), np.array([True]), np.array(["p"]))
    assert before(of)["edge"][0] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert before(of)["merged"][0] == pytest.approx(1 / (1 + np.exp(-1.5)))
    assert all(
        after(of, FITTED)[name][0] == pytest.approx(1 / (1 + np.exp(-1.0))) for name in READERS
    )


def test_fit_mends_the_edge(result: dict[str, Any]) -> None:
    """The edge's error falls with the fit, at the even prior and as found; the cloud's stays."""
    for split in ("val", "test"):
        edge = result["splits"][split]["readers"]["edge"]
        assert edge["after"]["ece"]["value"] < edge["before"]["ece"]["value"]
        assert edge["after_as_found"]["ece"]["value"] < 0.06
        cloud = result["splits"][split]["readers"]["cloud"]
        assert cloud["after"]["ece"] == cloud["before"]["ece"]


def test_result_states_what_it_is_taken_from(result: dict[str, Any]) -> None:
    said = json.loads(json.dumps(result, allow_nan=False))
    assert "Class prior 0.5" in said["prior"]
    assert said["prior_as_found"] == pytest.approx(float(made(0).nodule.mean()))
    assert said["splits"]["val"]["candidates"] == 600
    assert said["splits"]["val"]["groups"] == 40
    for reader in READERS:
        assert list(said["methods"][reader]) == ["temperature", "platt", "isotonic"]
        assert list(said["methods"][reader]["platt"]) == ["val", "test"]
    assert len(said["splits"]["val"]["readers"]["edge"]["after"]["bins"]["score"]) == 10


def test_tables_have_every_reader_and_method(result: dict[str, Any]) -> None:
    first, second, *_ = tables(result)
    assert [len(one.cells) for one in (first, second) if isinstance(one, Rows)] == [6, 24]


def test_picture_has_a_panel_for_each(result: dict[str, Any], tmp_path: Path) -> None:
    panels = draw_reliability(result).axes
    assert [axes.get_title().partition("\n")[0] for axes in panels] == [
        f"{reader}, {split}" for split in ("val", "test") for reader in READERS
    ]
    save_chart(draw_reliability(result), tmp_path / "r.png")
    picture = cv2.imread(str(tmp_path / "r.png"))
    assert picture is not None
    assert picture.shape == (820, 1140, 3)
