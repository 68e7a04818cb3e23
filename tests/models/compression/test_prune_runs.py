"""The comparison of the ways to prune: what is finished is not done again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.__main__ import app
from models.compression import prune_runs
from models.compression.prune_channels import cut
from models.compression.prune_cost import files, times_in_turn
from models.compression.prune_figures import section
from models.compression.prune_runs import Cell, run_compare
from models.compression.prune_ways import USUAL, pruned
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.training.compose import Composer
from models.training.material import Cubes
from models.training.piece import NONE, Piece
from models.training.runs import Run, make_screening
from models.training.screening import ScreeningTask, summary
from tests.models.training.test_piece import ball

CELLS = [Cell("channels", 0.42), Cell("weights", 0.42)]


def leave(folder: Path, cell: Cell) -> None:
    """What a finished cell leaves."""
    folder.mkdir()
    found, alarms = [2.0, -9.0], [1.0]
    result = {
        "way": cell.way, "share": cell.share, "whole": 100, "parameters": 100 * (1 - cell.share),
        "multiply_adds": 10, "scans": 1, "found": found, "alarms": alarms,
        "after": summary(np.array(found), np.array(alarms), 1),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "time.json").write_text(json.dumps({"int8_ms": 1.0, "int8_ratio": 0.5}))


def test_finished_cells_are_only_read(tmp_path: Path) -> None:
    """With all results there, neither data nor weights are opened."""
    for cell in (Cell("control", 0.0), *CELLS):
        leave(tmp_path / cell.name, cell)
    nowhere = tmp_path / "nowhere"
    run = Run(nowhere, tmp_path, 1.5, 1e-3, False, nowhere, nowhere, 0, 0)
    result = run_compare(run, CELLS)
    assert [row["way"] for row in result["runs"]] == ["control", "channels", "weights"]
    assert result["runs"][1]["gone"] == pytest.approx(0.42)
    assert result["runs"][1]["cpm_lost"]["value"] == 0
    assert "found" not in result["runs"][1]


def test_every_way_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, fine-tuned, judged and timed; weights that are gone stay gone; no second time."""
    torch.manual_seed(0)
    network = ScreeningNetwork(ScreeningSpec((8, 32, 32, 32), (1, 1, 1)))
    cubes = [ball((48, 48, 48), (24.6, 25.2, 24.9), d) for d in (6.0, 10.0)]
    scan = Piece(*(np.full((64, 64, 64), v, np.uint8) for v in (40, 0)), NONE, NONE)
    task = ScreeningTask(Composer(cubes, [], side=48), cubes, [scan], network, batch=2, workers=0)
    monkeypatch.setattr(prune_runs, "prepared", lambda _: task)
    monkeypatch.setattr(prune_runs, "pruned", partial(pruned, count=1))
    monkeypatch.setattr(
        prune_runs, "load_cubes", lambda *_: Cubes(tuple(cubes), (), np.zeros(0), np.zeros(0))
    )
    monkeypatch.setattr(prune_runs, "times_in_turn", partial(times_in_turn, box=(32, 32, 32)))
    run = Run(tmp_path, tmp_path / "out", 0.005, 1e-3, False, tmp_path, tmp_path, 0, 0)
    cells = [Cell(way, 0.42) for way in USUAL]
    first = run_compare(run, cells, rounds=2)
    gone = {row["way"]: row["gone"] for row in first["runs"]}
    assert gone.pop("control") == 0
    assert gone.pop("channels") >= 0.42
    assert list(gone.values()) == pytest.approx([0.42] * 2, abs=0.001)
    assert all(row["int8_ms"] > 0 for row in first["runs"])
    assert "single weights" in section({"pruning": {"command": "prune", **first}})
    monkeypatch.setattr(prune_runs, "prepared", None)
    assert run_compare(run, cells, rounds=2) == first


def test_a_missing_cell_needs_the_data(tmp_path: Path) -> None:
    """A folder without a result is not taken for one that is finished."""
    (tmp_path / "control").mkdir()
    nowhere = tmp_path / "nowhere"
    run = Run(nowhere, tmp_path, 1.5, 1e-3, False, nowhere, nowhere, 0, 0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_compare(run, CELLS)


def test_a_pruned_network_is_trained_exported_and_timed(tmp_path: Path) -> None:
    """Its weights start a training run; both its files run in the engine, in turn with others."""
    torch.manual_seed(0)
    network = ScreeningNetwork(ScreeningSpec((8, 16, 16, 16), (1, 1, 1))).eval()
    smaller = cut(network, {"down8.1": torch.arange(8), "quarter": torch.arange(8)})
    torch.save(smaller.state_dict(), tmp_path / "averaged.pt")
    again = make_screening(tmp_path / "averaged.pt").eval()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), smaller(x))
    boxes = [np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 32), dtype=np.uint8)]
    paths = files(again, boxes, tmp_path)
    took = times_in_turn(list(paths.values()), "openvino", range(3), box=(32, 32, 32))
    assert took.shape == (3, 2)
    assert (took > 0).all()


@pytest.mark.parametrize("wrong", [["--way", "magic"], ["--share", "1.2"]])
def test_what_cannot_be_asked_for_is_refused(wrong: list[str], tmp_path: Path) -> None:
    """A way that there is not and a share beyond everything, by name."""
    asked = ["--start", "x", "--data", "y", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["prune", "compare", *asked, *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
