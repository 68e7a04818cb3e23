from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.training import pruning
from evaluation.training.commands import pruning as command
from evaluation.training.pruning import CELLS, Cell, compare, compared
from models.pruning import channels
from models.runtime.errors import BadTable, UnfitArtifact
from models.training.data import Cubes
from models.training.runs import Run
from tests.models.pruning.test_channels import small_task


@pytest.mark.long
def test_every_way_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task()
    material = Cubes(tuple(task.cubes), ("a", "b"), np.zeros(0), np.zeros(0))
    monkeypatch.setattr(pruning, "trained_task", lambda _: task)
    for module in (pruning, channels):
        monkeypatch.setattr(module, "BATCHES", 1)
    monkeypatch.setattr(pruning, "load_cubes", lambda *_: material)
    monkeypatch.setattr(pruning, "BOX", (32, 32, 32))
    start = tmp_path / "start.pt"
    torch.save(task.network.state_dict(), start)
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
