from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import typer

from evaluation.accuracy.clinical import (
    BOTH,
    BROCK,
    IMAGE,
    as_dict,
    brock_scores,
    clinical_command,
    clinical_table,
    fit_both,
)
from tests.evaluation.accuracy.test_characterization import characterization

READ = replace(
    characterization([0.1, 0.9, 0.6, 0.7]),
    predicted_texture=np.array([2, 2, 1, 0]),
    reported_mm=np.array([12.0, 8.6, 9.7, 21.2]),
)
"""Of the benign nodule and two malignant ones, the first is larger than the second."""


def test_the_brock_model_gets_diameter_and_type() -> None:
    solid, _, part_solid, large = brock_scores(READ)
    assert solid < large
    same_size = replace(READ, reported_mm=np.full(4, 9.7))
    scores = brock_scores(same_size)
    assert scores[2] > scores[0] > scores[3]  # part-solid, solid, ground glass
    assert part_solid == scores[2]


def test_only_what_the_readers_are_sure_of_counts() -> None:
    result = as_dict(READ, fit_both(READ), resamples=50)
    assert (result["nodules"], result["rated"], result["malignant"]) == (4, 3, 2)
    assert result["patients"] == 3
    assert result["auc"][IMAGE]["value"] == 1
    assert result["auc"][BROCK]["value"] == 0.5
    assert result["minus_image"][BROCK]["value"] == -0.5
    assert result["auc"][BROCK]["low"] <= 0.5 <= result["auc"][BROCK]["high"]
    assert "not pathology" in result["truth"]
    assert "92.3 %" in result["fusion"]
    assert len(clinical_table(result).cells) == 3


def test_a_score_that_tells_nothing_gets_little_weight() -> None:
    """The combination is fitted on one set, and measured on another."""
    weights = fit_both(READ)
    assert weights[1] > 0
    assert weights.shape == (3,)
    assert as_dict(READ, weights, resamples=5)["auc"][BOTH]["value"] == 1


def test_what_is_measured_is_not_fitted_on(tmp_path: object) -> None:
    with pytest.raises(typer.BadParameter, match="test is measured"):
        clinical_command(tmp_path, "val,test", "test")  # type: ignore[arg-type]
