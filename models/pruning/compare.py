"""The pruning commands: prune, evaluate on validation, fine-tune, evaluate again, time it.

What is lost is measured against the start itself, which is neither pruned nor fine-tuned. The
methods (`METHODS`), each from that start:

- ``control``: nothing is pruned.
- ``weights``: the least important single weights of the whole network, once.
- ``channels``: whole channels, once; the network becomes smaller.
- ``dynamic``: a random part of each layer (Erdős–Rényi), which moves during training (RigL).
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.progress import track
from torch import nn

from models.comparison import as_scores, check_plan, figures, gained, kept
from models.export.onnx import export_float, export_fp32
from models.markdown import Rows, percent, points
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning.channels import channel_scores, choose, cut
from models.pruning.masks import (
    SparseTask,
    apply_masks,
    importance_masks,
    random_masks,
    weight_scores,
)
from models.quantization.ptq import quantize
from models.runtime.engines import start
from models.runtime.errors import UnfitArtifact
from models.runtime.hardware import cores, cpu_name
from models.training.data import Piece, load_cubes
from models.training.loop import fine_tune, save
from models.training.run_folder import LOG, WEIGHTS
from models.training.runs import Run, load_weights, make_screening, only, ready, screening_task
from models.training.screening import ScreeningTask

CONTROL = "control"
METHODS = {
    CONTROL: "nothing",
    "weights": "single weights by importance",
    "channels": "whole channels",
    "dynamic": "dynamic sparse, from random masks",
}
"""The methods and their titles in tables."""

BATCHES = 32
"""Batches that importance is averaged over."""

BOX = (256, 224, 320)
"""The lung box that time and multiply-adds are measured on, in voxels of 1 mm."""

CLAIM = {"share": 0.42, "points_lost": 1.2}
"""The published system: 42 % fewer parameters at no more than 1.2 points lost."""


@dataclass(frozen=True)
class Cell:
    """One run: a method, the share of parameters that goes, and the seed."""

    method: str
    share: float
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.share:g}-{self.seed}"


def run_compare(
    run: Run, cells: Sequence[Cell], *, steps: int, seeds: int = 3, engine: str = "openvino",
    rounds: int = 10,
) -> dict[str, Any]:  # fmt: skip
    """Prune, fine-tune and evaluate every cell and the control with each seed; time the first.

    A run with a result is not repeated; one that was interrupted starts over.

    Raises:
        UnfitArtifact: the folder has results of another start, data or options.
    """
    check_plan(run.out, {"start": only(run.start), "steps": steps, "rate": run.rate}, run.data)
    cells = [Cell(CONTROL, 0.0), *cells]
    # read only where a result is missing
    task = cache(lambda: _task(run))
    # eight cubes are enough for ranges, on which time does not depend; `export` takes more
    cubes = cache(lambda: load_cubes(run.data / "nodules", "train").pieces[:8])
    files = cache(lambda folder: export_files(folder, cubes()))

    def result_of(cell: Cell) -> dict[str, Any]:
        folder = run.out / cell.name
        return kept(
            folder / "result.json", lambda: _run_cell(task(), cell, folder, steps, run.rate)
        )

    def times_of(cell: Cell) -> dict[str, Any]:
        control, folder = (run.out / one.name for one in (cells[0], cell))
        return kept(
            folder / f"time-{engine}-{rounds}.json",
            lambda: timed(files(control), files(folder), engine, rounds),
        )

    found = [[result_of(replace(cell, seed=seed)) for seed in range(seeds)] for cell in cells]
    times = [times_of(cell) for cell in track(cells, "timing pruned networks")]
    patients = load_cubes(run.data / "nodules", "val").patients
    return {
        "start": str(only(run.start)), "steps": steps, "rate": run.rate, "seeds": seeds,
        "box": list(BOX), "engine": engine, "rounds": rounds, "cpu": cpu_name(),
        **compared(found, times, patients),
    }  # fmt: skip


def run_structured(run: Run, share: float, steps: int) -> dict[str, Any]:
    """Prune channels and fine-tune; `averaged.pt` in `run.out` starts runs as any other."""
    if any((run.out / name).exists() for name in (WEIGHTS, LOG)):
        raise UnfitArtifact(f"{run.out}: it holds a run; expected a new folder")
    cell = Cell("channels", share, run.seed)
    found = _run_cell(_task(run), cell, run.out, steps, run.rate)
    weights = run.out / "averaged.pt"
    spec = ScreeningSpec.of(load_weights(weights))
    shown = found | {when: figures(found[when], found["scans"]) for when in ("before", "after")}
    return {**shown, "weights": str(weights), "spec": asdict(spec)}


def _task(run: Run) -> ScreeningTask:
    """Return the task on the run's data and start."""
    material = run.material()
    network = ready(make_screening(only(run.start)), run.start, material)
    return screening_task(material, network)


def _run_cell(
    task: ScreeningTask, cell: Cell, folder: Path, steps: int, rate: float
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    own = pruned(task, cell, steps)
    before = as_scores(*task.scores(own.network.eval()))
    network = fine_tune(own.network, own.batches(cell.seed), own.losses, steps=steps, rate=rate)
    if isinstance(own, SparseTask):
        apply_masks(network, own.masks)  # an average is not zero where a mask has moved
    save(network.state_dict(), folder / "averaged.pt")
    return {
        "way": cell.method, "share": cell.share, "steps": steps, "scans": len(task.scans),
        "whole": sum(p.numel() for p in task.network.parameters()),
        "parameters": parameters_left(network), "multiply_adds": multiply_adds(network),
        "before": before, "after": as_scores(*task.scores(network.eval())),
    }  # fmt: skip


def pruned(task: ScreeningTask, cell: Cell, steps: int) -> ScreeningTask | SparseTask:
    """Return a task on a copy of the network without the cell's share of its parameters.

    Raises:
        CannotPrune: that share of channels cannot go.
    """
    network = copy.deepcopy(task.network)
    assert isinstance(network, ScreeningNetwork)
    own = replace(task, network=network)
    if cell.method == CONTROL:
        return own
    if cell.method == "channels":
        scores = channel_scores(own, BATCHES, cell.seed)
        keep = choose(network.state_dict(), scores, cell.share)
        return replace(own, network=cut(network, keep))
    if cell.method == "weights":
        importance = weight_scores(own, BATCHES, cell.seed)
        return SparseTask(own, importance_masks(network, importance, cell.share))
    assert cell.method == "dynamic"
    return SparseTask(own, random_masks(network, cell.share, cell.seed), steps)


def parameters_left(network: nn.Module) -> int:
    """Count the weights of convolutions that are not exactly zero, and all other parameters."""
    return sum(
        int(torch.count_nonzero(p)) if p.ndim > 1 else p.numel() for p in network.parameters()
    )


def multiply_adds(network: nn.Module, box: tuple[int, int, int] = BOX) -> int:
    """Count the multiply-adds of one pass with weights that are not zero, without bias and norm."""
    shapes = copy.deepcopy(network).eval().to("meta")  # a pass that computes shapes only
    whole = dict(zip(shapes.modules(), network.modules(), strict=True))
    work: list[int] = []

    def count(conv: nn.Module, _: object, out: torch.Tensor) -> None:
        # each output voxel takes one multiply-add for every weight that is not zero
        left = torch.count_nonzero(whole[conv].get_parameter("weight"))
        work.append(int(left) * out[0, 0].numel())

    for module in shapes.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(count)
    shapes(torch.empty(1, 1, *box, device="meta"))
    return sum(work)


def timed(
    control: dict[str, Path], own: dict[str, Path], engine: str, rounds: int
) -> dict[str, float]:
    """Return times and sizes of a network's files, run in turn with those of the control."""
    voxels = np.random.default_rng(0).integers(0, 256, (1, 1, *BOX), dtype=np.uint8)
    times = {}
    for precision, file in own.items():
        # A B A B; the first two passes of each are warm-up
        pair = (path.read_bytes() for path in (control[precision], file))
        runs = [start(engine, content, cores()) for content in pair]
        took = np.zeros((2 + rounds, 2))
        for row, place in product(took, (0, 1)):
            began = time.perf_counter()
            runs[place](voxels)
            row[place] = time.perf_counter() - began
        base, mine = took[2:].T
        times[f"{precision}_ms"] = float(np.median(mine)) * 1e3
        times[f"{precision}_ratio"] = float(np.median(mine / base))
        times[f"{precision}_bytes"] = file.stat().st_size
    return times


def export_files(folder: Path, cubes: Sequence[Piece]) -> dict[str, Path]:
    """Export `averaged.pt` of ``folder`` into it; return the files by precision.

    Training ``cubes`` calibrate INT8.
    """
    network = make_screening(folder / "averaged.pt").eval()
    boxes = (cube.voxels[None, None, :48, :48, :48] for cube in cubes)
    models = {
        "fp32": export_fp32(network, "screening"),
        "int8": quantize(export_float(network, "screening"), "screening", boxes),
    }
    paths = {precision: folder / f"{precision}.onnx" for precision in models}
    for precision, model in models.items():
        onnx.save(model, paths[precision])
    return paths


def compared(
    found: Sequence[Sequence[dict[str, Any]]], times: Sequence[dict[str, Any]],
    patients: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return a row for each cell, with what it lost against the start before and after fine-tuning.

    ``found`` has the runs of each cell, one a seed; the first cell is the control, which is the
    start itself before fine-tuning. ``patients`` are those of the nodules.
    """
    start, scans = (found[0][0][name] for name in ("before", "scans"))
    rows = []
    for runs, timed in zip(found, times, strict=True):
        row = {name: runs[0][name] for name in ("way", "share", "whole", "multiply_adds")}
        left = float(np.mean([run["parameters"] for run in runs]))
        row |= {"parameters": left, "gone": 1 - left / row["whole"]}
        for when in ("before", "after"):
            scores = [run[when] for run in runs]
            each = [figures(one, scans) for one in scores]
            lost = gained([start] * len(runs), scores, patients, scans)
            row[when] = {
                **{name: float(np.mean([one[name] for one in each])) for name in each[0]},
                **{f"{name}_lost": lost[name] for name in ("cpm", "at_8")},
            }
        rows.append({**row, **timed})
    counts = {"nodules": len(start["found"]), "patients": len(set(patients)), "scans": scans}
    return {**counts, "claim": CLAIM, "runs": rows}


def prune_table(result: dict[str, Any]) -> str:
    """Return a row for each cell, in Markdown."""
    heads = ["what goes", "parameters gone", "CPM before fine-tuning", "points lost", "CPM after",
             "points lost", "GMAC", "INT8 ms", "to control", "FP32 ms", "to control"]  # fmt: skip
    rows = [
        [
            METHODS[run["way"]], percent(run["gone"]),
            # the control before fine-tuning is the start that losses are measured against
            f"{run['before']['cpm']:.3f}",
            "-" if run["way"] == CONTROL else points(run["before"]["cpm_lost"]),
            f"{run['after']['cpm']:.3f}", points(run["after"]["cpm_lost"]),
            f"{run['multiply_adds'] / 1e9:.1f}", f"{run['int8_ms']:.0f}",
            f"{run['int8_ratio']:.2f}", f"{run['fp32_ms']:.0f}", f"{run['fp32_ratio']:.2f}",
        ]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, rows).markdown()
