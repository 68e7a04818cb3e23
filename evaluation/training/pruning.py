"""Pruning compared: prune, measure on validation, fine-tune, measure again, time it.

What is lost is measured against the start itself, which is neither pruned nor fine-tuned. Single
weights are kept at zero by masks: the network becomes smaller on disk, and an engine that
multiplies dense tensors takes as long as before.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.run import each
from evaluation.timing.network import BOX, passes
from evaluation.training.comparison import cpm, gained, points, ranks
from models.export.manifest import register
from models.export.onnx import export_float, export_fp32
from models.pruning.channels import BATCHES, gradients, stride_of, without_channels
from models.quantization.ptq import quantize
from models.runtime.artifacts import find
from models.runtime.session import Session, open_session
from models.training.data import Batch, load_cubes
from models.training.loop import Task, fine_tune, save
from models.training.run_folder import WEIGHTS, check_plan, kept
from models.training.runs import Run, make_screening, only, trained_task
from models.training.screening import ScreeningTask

ENGINE, KIND, CONTROL = "openvino", "screening", "control"

Masks = Mapping[str, Tensor]
"""By the name of a parameter: bool of its shape, True where the weight stays."""

METHODS = {
    CONTROL: "nothing",
    "weights": "single weights by importance",
    "channels": "whole channels",
}
"""What goes, each once and from the start; without channels the network becomes smaller."""

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


CELLS = (
    Cell(CONTROL, 0.0),
    *(Cell(way, share) for way in ("weights", "channels") for share in (0.42, 0.8)),
)
"""What is compared; the control is the first."""


def compare(
    run: Run, *, cells: Sequence[Cell] = CELLS, seeds: int = 3, rounds: int = 10
) -> dict[str, Any]:
    """Prune, fine-tune and measure every cell with each seed; time the first.

    A cell with a result is not repeated; one that was interrupted starts over.

    Raises:
        UnfitArtifact: the folder has results of another start, data, or number of steps.
    """
    check_plan(run.out, {"start": only(run.start), "steps": run.steps, "rate": run.rate}, run.data)
    task = cache(lambda: trained_task(run))  # read only where a result is missing

    def result_of(cell: Cell) -> dict[str, Any]:
        return kept(run.out / cell.name / "result.json", lambda: measured(task(), cell, run))

    found = [[result_of(replace(cell, seed=seed)) for seed in range(seeds)] for cell in cells]
    patients = load_cubes(run.data / "nodules", "val").patients
    return {
        "start": str(only(run.start)), "steps": run.steps, "rate": run.rate, "seeds": seeds,
        "box": list(BOX), "engine": ENGINE, "rounds": rounds,
        **compared(found, timed(run, cells, rounds), patients),
    }  # fmt: skip


def measured(task: ScreeningTask, cell: Cell, run: Run) -> dict[str, Any]:
    """Prune, fine-tune and save one network; return what is left and found, before and after."""
    own, whole = pruned(task, cell), task.network.parameters()
    before = ranks(*task.scores(own.network.eval()), len(task.scans))
    batches = own.batches(cell.seed)
    network = fine_tune(own.network, batches, own.losses, steps=run.steps, rate=run.rate)
    if isinstance(own, SparseTask):
        apply_masks(network, own.masks)
    save(network.state_dict(), run.out / cell.name / WEIGHTS)
    return {
        "way": cell.method, "share": cell.share, "scans": len(task.scans),
        "whole": sum(p.numel() for p in whole),
        "parameters": parameters_left(network), "gmac": multiply_adds(network) / 1e9,
        "before": before, "after": ranks(*task.scores(network.eval()), len(task.scans)),
    }  # fmt: skip


def pruned(task: ScreeningTask, cell: Cell) -> "ScreeningTask | SparseTask":
    """Return a task on a copy of the network without the cell's share of its parameters.

    Raises:
        CannotPrune: that share of channels cannot go.
    """
    network = copy.deepcopy(task.network)
    own = replace(task, network=network)
    if cell.method == "channels":
        return without_channels(own, cell.share, cell.seed)
    if cell.method == "weights":
        importance = weight_scores(own, BATCHES, cell.seed)
        return SparseTask(own, importance_masks(network, importance, cell.share))
    return own


def parameters_left(network: nn.Module) -> int:
    """Count the weights of convolutions that are not exactly zero, and all other parameters."""
    return sum(
        int(torch.count_nonzero(p)) if p.ndim > 1 else p.numel() for p in network.parameters()
    )


def multiply_adds(network: nn.Module) -> int:
    """Count the multiply-adds of one pass over `BOX` with weights that are not zero."""
    return sum(
        int(torch.count_nonzero(weight)) * math.prod(BOX) // stride_of(name) ** 3
        for name, weight in network.named_parameters()
        if weight.ndim > 1 and not name.startswith("share")  # a map that only training has
    )


def timed(run: Run, cells: Sequence[Cell], rounds: int) -> list[dict[str, float]]:
    """Return the time of a pass of each network, run in turn with the control, the first one."""
    # eight cubes are enough for ranges, on which time does not depend; `export` takes more
    cubes = load_cubes(run.data / "nodules", "train").pieces[:8]
    boxes = [cube.voxels[None, None, :48, :48, :48] for cube in cubes]
    found = defaultdict[str, dict[str, float]](dict)

    def opened(cell: Cell, precision: str) -> Session:
        network = make_screening(run.out / cell.name / WEIGHTS).eval()
        whole, folder = export_fp32(network, KIND), run.out / "models"
        small = precision == "int8"
        model = quantize(export_float(network, KIND), KIND, boxes) if small else whole
        name = f"{KIND}-{cell.name}-{precision}"
        register(name, model, parent="", folder=folder)
        return open_session(find(name, folder), engine=ENGINE)

    for precision in ("fp32", "int8"):
        control = opened(cells[0], precision)
        for cell in each(cells, f"timing pruned networks, {precision}"):
            own = passes([control, opened(cell, precision)], BOX, range(rounds))[1]
            found[cell.name] |= {
                f"{precision}_ms": own["median_ms"], f"{precision}_ratio": own["ratio_to_first"]
            }  # fmt: skip
    return [found[cell.name] for cell in cells]


def compared(
    found: Sequence[Sequence[dict[str, Any]]], times: Sequence[dict[str, float]],
    patients: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return a row for each cell, with what it lost against the start before and after fine-tuning.

    ``found`` has the runs of each cell, one a seed; the first cell is the control, which is the
    start itself before fine-tuning. ``patients`` are those of the nodules.
    """
    start, rows = np.array(found[0][0]["before"]), []
    for runs, took in zip(found, times, strict=True):
        row = {name: runs[0][name] for name in ("way", "share", "whole", "gmac")}
        left = float(np.mean([run["parameters"] for run in runs]))
        row |= {"what": METHODS[row["way"]], "parameters": left, "gone": 1 - left / row["whole"]}
        for when in ("before", "after"):
            mine = np.array([run[when] for run in runs])
            # what is found at all is found at the highest rate, 8 false positives a scan
            at_8 = np.subtract(start > 0, mine > 0, dtype=float)
            lost = {"cpm_lost": gained(start, mine, patients), "at_8_lost": points(at_8, patients)}
            row[when] = {"cpm": cpm(mine), **lost}
        rows.append(row | took)
    counts = {"nodules": len(start), "patients": len(set(patients)), "scans": found[0][0]["scans"]}
    return {**counts, "claim": CLAIM, "runs": rows}


def prunable(network: nn.Module) -> dict[str, nn.Conv3d]:
    """Return the convolutions whose weights may be pruned, by the name of their weight.

    The last layers stay whole: they are small, and everything passes through them.
    """
    return {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and name not in ("head", "share")
    }


def weight_scores(task: Task, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the mean ``|w g|`` of every prunable weight over ``count`` batches.

    It is the change of the loss if the weight went, to first order (Molchanov et al.,
    arXiv:1906.10771).
    """
    sums: dict[str, Tensor] = {}
    for network in gradients(task, count, seed):
        for name, conv in prunable(network).items():
            assert conv.weight.grad is not None  # every convolution is used
            sums[name] = sums.get(name, 0) + (conv.weight * conv.weight.grad).detach().abs()
    return {name: total / count for name, total in sums.items()}


def importance_masks(
    network: nn.Module, scores: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return masks without the least important ``share`` of all the network's parameters.

    Importance is compared over all layers at once.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    wanted = round(share * sum(p.numel() for p in network.parameters()))
    stays = torch.ones_like(flat, dtype=torch.bool)
    stays[flat.topk(min(wanted, len(flat)), largest=False).indices] = False
    parts = stays.split([score.numel() for score in scores.values()])
    return {n: part.view_as(scores[n]) for n, part in zip(scores, parts, strict=True)}


class SparseTask:
    """A task whose network keeps the masked weights at zero."""

    def __init__(self, task: Task, masks: Masks) -> None:
        self.network, self.batches, self.masks = task.network, task.batches, masks
        self._task = task
        apply_masks(self.network, masks)
        for name, weight in self.network.named_parameters():
            if name in masks:
                weight.register_hook(partial(_masked, masks[name]))

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the task's losses under the masks."""
        apply_masks(network, self.masks)
        return self._task.losses(network, batch)


def _masked(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient * mask.to(gradient.device)


def apply_masks(network: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero, in place."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in masks:
                weight.mul_(masks[name].to(weight.device))
