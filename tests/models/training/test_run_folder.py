from pathlib import Path

import pytest

from models.runtime.errors import DamagedArtifact, UnfitArtifact
from models.training.run_folder import check_plan, kept


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    """Other options, another file of weights or of data, or a folder that says nothing."""
    out, start, data = tmp_path / "out", tmp_path / "start.pt", tmp_path / "data"
    start.write_bytes(b"weights")
    (data / "nodules").mkdir(parents=True)
    (data / "nodules" / "index.csv").write_text("row")
    plan = {"start": start, "steps": 2}
    check_plan(out, {**plan, "steps": 1}, data)
    check_plan(out, plan, data)  # there was no result
    assert kept(out / "a" / "result.json", lambda: {"n": 1}) == {"n": 1}
    check_plan(out, plan, data)
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another steps; expected the"):
        check_plan(out, {**plan, "steps": 1}, data)
    start.write_bytes(b"other weights")
    (data / "nodules" / "index.csv").write_text("another row")
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another start, data"):
        check_plan(out, plan, data)
    (out / "plan.json").unlink()
    with pytest.raises(UnfitArtifact, match=r"out: has files and no plan\.json; expected a new"):
        check_plan(out, plan, data)


def test_a_result_is_made_once_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    made = iter([{"n": 1}])
    assert [kept(path, lambda: next(made)) for _ in range(2)] == [{"n": 1}] * 2
    path.write_text("{")
    with pytest.raises(DamagedArtifact, match=r"result\.json: no JSON .*; remove it"):
        kept(path, dict)
