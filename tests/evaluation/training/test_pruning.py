from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.training import pruning
from evaluation.training.commands import pruning as command
from evaluation.training.pruning import CELLS, Cell, compare, compared
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning import channels
from models.pruning.channels import run_pruned
from models.runtime.errors import BadTable, UnfitArtifact
from models.training.compose import Composer
from models.training.data import NONE, Cubes, Noise, Piece
from models.training.runs import Run, load_weights
from models.training.screening import ScreeningTask
from tests.models.training.test_data import ball


@pytest.mark.long
def test_every_way_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = ScreeningNetwork(ScreeningSpec((8, 32, 32, 32), (1, 1, 1)))
    cubes = [ball((48, 48, 48), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0)]
    scan = Piece(*(np.full((64, 64, 64), v, np.uint8) for v in (40, 0)), NONE, NONE)
    composer = Composer(cubes, [scan], side=48, noise=Noise(48, 0))
    task = ScreeningTask(composer, cubes, [scan], network, batch=2, workers=0)
    material = Cubes(tuple(cubes), ("a", "b"), np.zeros(0), np.zeros(0))
    for module in (pruning, channels):
        monkeypatch.setattr(module, "trained_task", lambda _: task)
        monkeypatch.setattr(module, "BATCHES", 1)
    monkeypatch.setattr(pruning, "load_cubes", lambda *_: material)
    monkeypatch.setattr(pruning, "BOX", (32, 32, 32))
    start = tmp_path / "start.pt"
    torch.save(network.state_dict(), start)
    run = Run(tmp_path, tmp_path / "out", 1e-3, (start,), steps=2)
    cells = [cell for cell in CELLS if cell.share < 0.5]
    first = compare(run, cells=cells, seeds=1, rounds=2)
    gone = {row["way"]: row["gone"] for row in first["runs"]}
    assert gone.pop("control") == 0
    assert gone.pop("channels") >= 0.42
    assert list(gone.values()) == pytest.approx([0.42], abs=0.001)
    assert all(row["int8_ms"] > 0 for row in first["runs"])
    assert "single weights" in command.table("runs").of(first).markdown()
    # what is finished is not made again, and is not taken for a result of other options
    monkeypatch.setattr(pruning, "trained_task", None)
    monkeypatch.setattr(pruning, "timed", lambda *_: [{}] * len(cells))
    again = compare(run, cells=cells, seeds=1, rounds=2)
    assert [row["after"] for row in again["runs"]] == [row["after"] for row in first["runs"]]
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another steps; expected the"):
        compare(replace(run, steps=3), cells=cells)
    alone = replace(run, out=tmp_path / "alone")
    found = run_pruned(alone, 0.42)
    assert load_weights(alone.out / "averaged.pt")["stem.0.weight"].shape[0] == 8
    assert found["spec"]["inner"]
    start.write_bytes(b"other weights")
    with pytest.raises(UnfitArtifact, match=r"plan\.json: begun with another start"):
        compare(run, cells=cells)
    (run.out / "plan.json").unlink()
    with pytest.raises(UnfitArtifact, match=r"out: has files and no plan\.json; expected a new"):
        compare(run, cells=cells)


def test_pruning_takes_no_folder_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "averaged.pt").write_bytes(b"mine")
    with pytest.raises(UnfitArtifact, match="it holds a run; expected a new folder"):
        run_pruned(Run(tmp_path, tmp_path, 1e-3, (tmp_path / "start.pt",)), 0.4)
    assert (tmp_path / "averaged.pt").read_bytes() == b"mine"


def test_a_missing_cell_needs_the_data(tmp_path: Path) -> None:
    """It ends with its error, and the folder can be taken with the right data."""
    start, out = tmp_path / "start.pt", tmp_path / "out"
    start.write_bytes(b"weights")
    out.mkdir()
    (out / "plan.json").write_text('{"start": "of a comparison that ended at once"}')
    run = Run(tmp_path / "nowhere", out, 1e-3, (start,), steps=2)
    with pytest.raises(BadTable, match="nowhere"):
        compare(run, cells=[Cell("channels", 0.42)])


def test_a_loss_is_against_the_start_and_not_against_a_control_that_fine_tuning_ruined() -> None:
    """Fine-tuning loses five of ten nodules at all rates; channels lose two at a few of them."""

    def cell(way: str, share: float, before: list[int], after: list[int]) -> dict[str, Any]:
        return {
            "way": way, "share": share, "whole": 1000, "parameters": round(1000 * (1 - share)),
            "gmac": 2.0, "scans": 1, "before": before, "after": after,
        }  # fmt: skip

    start, less, ruined = [7] * 9 + [4], [7] * 8 + [4, 2], [7] * 5 + [0] * 5
    runs = [[cell("control", 0.0, start, ruined)] * 2, [cell("channels", 0.42, less, less)] * 2]
    time = {"int8_ms": 60.0, "int8_ratio": 1.0, "fp32_ms": 200.0, "fp32_ratio": 1.0}
    times = [time, time | {"int8_ms": 45.0, "int8_ratio": 0.75}]
    result = compared(runs, times, [str(n) for n in range(10)])
    control, smaller = result["runs"]
    assert control["before"]["cpm_lost"]["value"] == 0
    assert control["after"]["at_8_lost"]["value"] == pytest.approx(50)
    assert smaller["after"]["cpm_lost"]["value"] == pytest.approx(100 * (3 * 0.1 + 0.2) / 7)
    assert smaller["after"]["at_8_lost"]["value"] == 0
    assert smaller["gone"] == pytest.approx(0.42)
    first, second = command.table("runs").of(result).markdown().splitlines()[2:]
    assert first.startswith("| nothing | 0.0 % | 0.957 | +0.0 (")
    assert second.startswith("| whole channels | 42.0 % |")
    assert "| 45 | 0.75 |" in second
