import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.accuracy import detect as module
from evaluation.accuracy.detect import as_dict, read_one, read_phantom, stage_times, study_folders
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.world import Cloud
from imaging.phantom.phantom import PhantomSpec, make_phantom
from models.runtime.errors import MissingData
from tests.evaluation.scripted_screen import scripted_pipeline


def result(hits: list[bool] | None, false: int, refused: str | None = None) -> dict[str, Any]:
    """A study with these lesions hit or missed, and that number of false findings."""
    counts = (len(hits), sum(hits), false) if hits is not None else (None,) * 3
    return {
        **dict(zip(COUNTS, counts, strict=True)),
        "stages_s": {} if refused else {"read": 1.0 if hits is not None else 3.0, "screen": 0.5},
        "refused": refused,
    }


COUNTS = ("lesions", "found", "false_positives")
UNKNOWN = result(None, 4)


def counts_of(row: dict[str, Any]) -> list[int | None]:
    return [row[name] for name in COUNTS]


def test_operating_point_counts_studies_with_truth() -> None:
    """Three of four lesions, three false findings in two studies; the unknown study is left out."""
    said = as_dict([result([True, False], 1), result([True, True], 2), UNKNOWN])
    assert [said["with_truth"], *counts_of(said)] == [2, 4, 3, 3]
    assert said["sensitivity"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert said["false_positives_per_scan"] == {"value": 1.5, "low": 1.0, "high": 2.0}


def test_without_lesions_there_is_no_sensitivity() -> None:
    """Without truth there is no operating point at all."""
    said = as_dict([result([], 2), result([], 0)])
    assert said["sensitivity"] is None
    assert said["false_positives_per_scan"]["value"] == 1.0
    unknown = as_dict([UNKNOWN])
    assert unknown["sensitivity"] is unknown["false_positives_per_scan"] is None
    assert unknown["with_truth"] == 0


def test_stage_times_are_median_and_p95() -> None:
    """Per stage and in all, in the order of the pipeline; a stage may be absent from a ledger."""
    times = stage_times([{"read": 1.0, "screen": 0.5}, {"read": 3.0, "screen": 0.5}, {"read": 2.0}])
    assert [one["stage"] for one in times] == ["read", "screen", "total"]
    assert times[0]["median_ms"] == 2000
    assert times[0]["p95_ms"] == pytest.approx(2900)
    assert times[2]["median_ms"] == 2000
    assert stage_times([]) == []


STAGES = ["read", "preprocess", "screen", "decide", "escalate", "merge", "draw", "report"]


def test_real_slab_from_files_to_result(shared_data: Path, tmp_path: Path) -> None:
    """A finding on the lesion is a hit, one elsewhere is false, a doubtful one is no finding."""
    slab = shared_data / "ct" / "lidc_slabs" / "LIDC-IDRI-0001"
    centre = (57.24, 84.94, -115.62)
    findings = [(centre, 0.95), ((-60.0, 80.0, -115.0), 0.92), ((-50.0, 20.0, -115.0), 0.3)]
    pipeline = scripted_pipeline(findings)
    row = read_one(pipeline, slab, tmp_path, Truth((Lesion(centre, 32.0),)))
    assert [*counts_of(row), row["findings"]] == [1, 1, 1, 2]
    assert list(row["stages_s"]) == STAGES
    assert row["second_reading"] == "off"
    assert (tmp_path / slab.name / "report.json").is_file()


def test_study_that_is_refused_misses_its_lesion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is not known nothing is missed."""
    for name in ("bad", "unknown"):
        (tmp_path / "studies" / name).mkdir(parents=True)
        (tmp_path / "studies" / name / "note.txt").write_text("no CT")
    (tmp_path / "marks.csv").write_text("scan,kind,x,y,z,diameter_mm\nbad,nodule,0,0,0,10\n")
    monkeypatch.setattr(
        module, "running_cloud", lambda: nullcontext(Cloud(tmp_path, address="off"))
    )
    given = ["--studies", str(tmp_path / "studies"), "--truth", str(tmp_path / "marks.csv")]
    done = CliRunner().invoke(app, ["detect", *given, "--json"])
    assert done.exit_code == 0, done.output
    # here the log is not turned off, as the program does
    bad, unknown = json.loads(done.stdout[done.stdout.index("{\n") :])["studies"]
    assert [*counts_of(bad), bool(bad["refused"])] == [1, 0, 0, True]
    assert counts_of(unknown) == [None] * 3


def test_folder_without_studies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="not a folder"):
        study_folders(tmp_path / "nowhere")
    with pytest.raises(MissingData, match="no sub-folder"):
        study_folders(tmp_path)


def test_phantom_is_read_from_its_files(tmp_path: Path) -> None:
    spec = PhantomSpec(seed=11, spacing_mm=(3.0, 2.0, 2.0), nodule_count=2, diameter_mm=(8.0, 20.0))
    first, second = make_phantom(spec).nodules
    x, y, z = second.centre_mm
    beside = (x, y + second.diameter_mm / 2 + 1, z)
    row = read_phantom(scripted_pipeline([(first.centre_mm, 0.95), (beside, 0.95)]), spec, tmp_path)
    assert [*counts_of(row), row["refused"]] == [2, 1, 1, None]
