"""Studies through the agent's line, with a screening network that answers as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.pipeline import Line
from evaluation.detect import detect, study_folders
from evaluation.errors import MissingData
from evaluation.truth import Lesion

STAGES = ["read", "preprocess", "screen", "decide", "escalate", "merge", "draw", "report"]


def test_real_slab_from_files_to_result(
    shared_data: Path, tmp_path: Path, scripted_line: Callable[..., Line]
) -> None:
    """A finding on the lesion is a hit, one elsewhere is false, a doubtful one is no finding."""
    slab = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0001"
    centre = (57.24, 84.94, -115.62)
    marks = [(centre, 0.95), ((-60.0, 80.0, -115.0), 0.92), ((-50.0, 20.0, -115.0), 0.3)]
    line = scripted_line(marks)
    truth = {slab.name: (Lesion(centre, 32.0),)}
    (result,) = detect(line, [slab], truth, tmp_path)
    assert (result.lesions, result.found, result.false, result.findings) == (1, 1, 1, 2)
    assert list(result.stages_s) == STAGES
    assert result.second_reading == "missing"
    assert (tmp_path / slab.name / "report.json").is_file()


def test_study_that_is_refused_misses_its_lesion(
    tmp_path: Path, scripted_line: Callable[..., Line]
) -> None:
    """A folder without a CT is a refusal with its reason, and what it held was not found."""
    (tmp_path / "studies" / "bad").mkdir(parents=True)
    (tmp_path / "studies" / "bad" / "note.txt").write_text("no CT")
    truth = {"bad": (Lesion((0.0, 0.0, 0.0), 10.0),)}
    folders = study_folders(tmp_path / "studies")
    (result,) = detect(scripted_line([]), folders, truth, tmp_path / "out")
    assert (result.lesions, result.found, result.false) == (1, 0, 0)
    assert result.refused != ""


def test_study_that_the_truth_does_not_name(
    tmp_path: Path, scripted_line: Callable[..., Line]
) -> None:
    """Of such a study nothing is claimed."""
    (tmp_path / "in" / "x").mkdir(parents=True)
    (result,) = detect(scripted_line([]), [tmp_path / "in" / "x"], {}, tmp_path / "out")
    assert result.scores is None


def test_folder_without_studies_is_refused(tmp_path: Path) -> None:
    """No folder, or none with a sub-folder, is a typed error."""
    with pytest.raises(MissingData, match="no folder"):
        study_folders(tmp_path / "nowhere")
    with pytest.raises(MissingData, match="no sub-folder"):
        study_folders(tmp_path)
