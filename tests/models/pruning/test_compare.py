from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.__main__ import app
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning import compare
from models.pruning.compare import (
    CONTROL,
    METHODS,
    Cell,
    compared,
    prune_table,
    run_compare,
    run_structured,
)
from models.runtime.errors import BadTable, UnfitArtifact
from models.training.compose import Composer
from models.training.data import NONE, Cubes, Noise, Piece
from models.training.runs import Run
from models.training.screening import ScreeningTask
from tests.models.training.test_data import ball


def scores(found: list[float], false_positives: list[float]) -> dict[str, list[float]]:
    return {"found": found, "false_positives": false_positives}


def finished(
    way: str, share: float, before: dict[str, list[float]], after: dict[str, list[float]]
) -> dict[str, Any]:
    """What one run leaves: 1000 parameters of which the share is gone."""
    return {
        "way": way, "share": share, "whole": 1000, "parameters": round(1000 * (1 - share)),
        "multiply_adds": 2e9, "scans": 1, "before": before, "after": after,
    }  # fmt: skip


@pytest.mark.long
def test_every_way_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork(ScreeningSpec((8, 32, 32, 32), (1, 1, 1)))
    cubes = [ball((48, 48, 48), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0)]
    scan = Piece(*(np.full((64, 64, 64), v, np.uint8) for v in (40, 0)), NONE, NONE)
    composer = Composer(cubes, [scan], side=48, noise=Noise(48, 0))
    task = ScreeningTask(composer, cubes, [scan], network, batch=2, workers=0)
    monkeypatch.setattr(compare, "_task", lambda _: task)
    monkeypatch.setattr(compare, "BATCHES", 1)
    monkeypatch.setattr(
        compare, "load_cubes", lambda *_: Cubes(tuple(cubes), ("a", "b"), np.zeros(0), np.zeros(0))
    )
    monkeypatch.setattr(compare, "BOX", (32, 32, 32))
    start = tmp_path / "start.pt"
    torch.save(network.state_dict(), start)
    run = Run(tmp_path, tmp_path / "out", 1e-3, (start,))
    cells = [Cell(way, 0.42) for way in METHODS if way != CONTROL]
    first = run_compare(run, cells, steps=2, seeds=1, rounds=2)
    gone = {row["way"]: row["gone"] for row in first["runs"]}
    assert gone.pop("control") == 0
    assert gone.pop("channels") >= 0.42
    assert list(gone.values()) == pytest.approx([0.42] * 2, abs=0.001)
    assert all(row["int8_ms"] > 0 for row in first["runs"])
    assert "found" not in str(first)
    assert "single weights" in prune_table(first)
    for name in ("_task", "timed"):
        monkeypatch.setattr(compare, name, None)
    assert run_compare(run, cells, steps=2, seeds=1, rounds=2) == first
    # results of other options or of another start are not taken for those that are asked for
    with pytest.raises(
        UnfitArtifact, match=r"plan\.json: begun with another steps; expected the same"
    ):
        run_compare(run, cells, steps=3, seeds=1, rounds=2)
    start.write_bytes(b"other weights")
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another start"):
        run_compare(run, cells, steps=2, seeds=1, rounds=2)
    (run.out / "plan.json").unlink()
    with pytest.raises(UnfitArtifact, match=r"out: has files and no plan\.json; expected a new"):
        run_compare(run, cells, steps=2, seeds=1, rounds=2)
    start.unlink()
    with pytest.raises(FileNotFoundError, match=r"start\.pt"):
        run_compare(run, cells, steps=2, seeds=1, rounds=2)


def test_pruning_takes_no_folder_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "averaged.pt").write_bytes(b"mine")
    with pytest.raises(UnfitArtifact, match="it holds a run; expected a new folder"):
        run_structured(Run(tmp_path, tmp_path, 1e-3, (tmp_path / "start.pt",)), 0.4, 1)
    assert (tmp_path / "averaged.pt").read_bytes() == b"mine"


def test_a_missing_cell_needs_the_data(tmp_path: Path) -> None:
    """It ends with its error, and the folder can be taken with the right data."""
    nowhere, start = tmp_path / "nowhere", tmp_path / "start.pt"
    start.write_bytes(b"weights")
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text('{"start": "of a comparison that ended at once"}')
    run = Run(nowhere, out, 1e-3, (start,))
    with pytest.raises(BadTable, match="nowhere"):
        run_compare(run, [Cell("channels", 0.42)], steps=2)


@pytest.mark.parametrize("wrong", [["--way", "magic"], ["--share", "1.2"]])
def test_invalid_options_are_refused(wrong: list[str], tmp_path: Path) -> None:
    asked = ["--start", "x", "--data", "y", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["prune", "compare", *asked, *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.stderr


def test_a_loss_is_against_the_start_and_not_against_a_control_that_fine_tuning_ruined() -> None:
    """The start finds nine of ten nodules; fine-tuning loses four; channels lose one of the nine.

    One of ten is a tenth at three rates and two at a fourth, where the start finds all.
    """
    start = scores([3.0] * 9 + [-9.0], [1.0])
    less = scores([3.0] * 8 + [-9.0] * 2, [1.0, -2.0])
    ruined = scores([3.0] * 5 + [-9.0] * 5, [1.0])
    runs = [
        [finished("control", 0.0, start, ruined)] * 2,
        [finished("channels", 0.42, less, less)] * 2,
    ]
    time = {"int8_ms": 60.0, "int8_ratio": 1.0, "fp32_ms": 200.0, "fp32_ratio": 1.0}
    times = [time, time | {"int8_ms": 45.0, "int8_ratio": 0.75}]
    result = compared(runs, times, [str(n) for n in range(10)])
    control, channels = result["runs"]
    assert control["before"]["cpm_lost"]["value"] == 0
    assert control["after"]["cpm_lost"]["value"] > 10
    assert channels["after"]["cpm_lost"]["value"] == pytest.approx(100 * (3 * 0.1 + 0.2) / 7)
    assert channels["after"]["at_8_lost"]["value"] == 0
    assert channels["gone"] == pytest.approx(0.42)
    assert channels["before"] == channels["after"]
    row = next(r for r in prune_table(result).splitlines() if r.startswith("| whole channels"))
    assert "| 42.0 % |" in row
    assert "| nothing | 0.0 % | 0.957 | - |" in prune_table(result)
    assert "| 45 | 0.75 |" in row
