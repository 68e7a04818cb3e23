"""The pruning commands: prune, fine-tune for a short while, evaluate on validation, time it.

The methods (`METHODS`), each from the same start:

- ``control``: nothing is pruned.
- ``weights``: the least important single weights of the whole network, once.
- ``channels``: whole channels, once; the network becomes smaller.
- ``dynamic``: a random part of each layer (Erdős–Rényi), which moves during training (RigL).
- ``dynamic-trained``: the same, starting from each layer's largest weights.
"""

import copy
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from rich.progress import track
from torch import nn

from models.export.onnx import export_float, export_fp32
from models.markdown import Rows, percent, points
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.pruning.channels import channel_scores, choose, cut
from models.pruning.masks import (
    Regrow,
    SparseTask,
    importance_masks,
    layerwise_masks,
    random_scores,
    weight_scores,
)
from models.quantization.ptq import quantize
from models.runtime.artifacts import Artifact
from models.runtime.hardware import cpu_name
from models.runtime.session import open_session
from models.training.data import load_cubes
from models.training.loop import Task, train
from models.training.runs import Run, load_weights, make_screening, make_screening_task, only
from models.training.screening import RATES, ScreeningTask, summary

CONTROL = "control"
METHODS = {
    CONTROL: "none, fine-tuned as long",
    "weights": "single weights by importance",
    "channels": "whole channels",
    "dynamic": "dynamic sparse, from random masks",
    "dynamic-trained": "dynamic sparse, from the largest weights",
}
"""The methods and their titles in tables."""

USUAL = ("weights", "channels", "dynamic")

BATCHES = 32
"""Batches that importance is averaged over."""

BOX = (256, 224, 320)
"""The lung box that time and multiply-adds are measured on, in voxels of 1 mm."""

CLAIM = {"share": 0.42, "points_lost": 1.2}
"""The published system: 42 % fewer parameters at no more than 1.2 points lost."""

Box = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """One run of the table: a method and the share of parameters that goes."""

    method: str
    share: float

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.method if self.method == CONTROL else f"{self.method}-{self.share:g}"


def run_compare(
    run: Run, cells: Sequence[Cell], *, engine: str = "openvino", rounds: int = 10
) -> dict[str, Any]:
    """Prune, fine-tune, evaluate and time every cell and the control; return the comparison.

    A cell with a result is not run again; one that was interrupted starts over.
    """
    cells = [Cell(CONTROL, 0.0), *cells]

    def lacking(name: str) -> list[Cell]:
        return [cell for cell in cells if not (run.out / cell.name / name).exists()]

    if missing := lacking("result.json"):
        task = make_screening_task(run)
        for cell in missing:
            _run_cell(run, task, cell, run.out / cell.name)
    if missing := lacking("time.json"):
        _time(run, missing, engine, rounds)
    found, times = (
        [json.loads((run.out / cell.name / name).read_text()) for cell in cells]
        for name in ("result.json", "time.json")
    )
    head = {
        "start": str(only(run.start)),
        "minutes": run.minutes,
        "box": list(BOX),
        "engine": engine,
    }
    return {**head, "rounds": rounds, "cpu": cpu_name(), **compared(found, times)}


def run_structured(run: Run, share: float) -> dict[str, Any]:
    """Prune channels and fine-tune; `averaged.pt` in `run.out` starts runs as any other."""
    found = _run_cell(run, make_screening_task(run), Cell("channels", share), run.out)
    shown = {key: value for key, value in found.items() if key not in ("found", "false_positives")}
    weights = run.out / "averaged.pt"
    spec = ScreeningSpec.of(load_weights(weights))
    return {**shown, "weights": str(weights), "spec": asdict(spec)}


def _run_cell(run: Run, task: ScreeningTask, cell: Cell, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    own = pruned(task, cell, run)
    before = task.evaluate(own.network.eval())
    # the average of a short run is that of its last fifty steps or so
    network = train(own, replace(run.plan(decay=0.02), out=folder, average=0.98))
    found, false_positives = task.scores(network.eval())
    result = {
        "way": cell.method,
        "share": cell.share,
        "whole": sum(p.numel() for p in task.network.parameters()),
        "parameters": parameters_left(network),
        "multiply_adds": multiply_adds(network),
        "steps": json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["steps"],
        "scans": len(task.scans),
        "before": before,
        "after": summary(found, false_positives, len(task.scans)),
        "found": _finite(found),
        "false_positives": _finite(false_positives),
    }
    _write(folder / "result.json", result)
    return result


def pruned(task: ScreeningTask, cell: Cell, run: Run, *, count: int = BATCHES) -> Task:
    """Return a task on a copy of the network without the cell's share of its parameters.

    Raises:
        CannotPrune: that share of channels cannot go.
        KeyError: the method is unknown.
    """
    network = copy.deepcopy(task.network)
    assert isinstance(network, ScreeningNetwork)
    own = replace(task, network=network)
    if cell.method == CONTROL:
        return own
    if cell.method == "channels":
        keep = choose(network.state_dict(), channel_scores(own, count), cell.share)
        return replace(own, network=cut(network, keep))
    if cell.method == "weights":
        return SparseTask(own, importance_masks(network, weight_scores(own, count), cell.share))
    scores = {"dynamic": random_scores(run.seed), "dynamic-trained": torch.abs}[cell.method]
    return SparseTask(
        own, layerwise_masks(network, cell.share, scores), Regrow(seconds=60 * run.minutes)
    )


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
        left = torch.count_nonzero(whole[conv].get_parameter("weight"))
        work.append(int(left) * out[0, 0].numel())

    for module in shapes.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(count)
    shapes(torch.empty(1, 1, *box, device="meta"))
    return sum(work)


def _time(run: Run, cells: Sequence[Cell], engine: str, rounds: int) -> None:
    """Time each cell in turn with the control, and the control against itself."""
    # eight cubes are enough for ranges, on which time does not depend; `export` takes more
    pieces = load_cubes(run.data / "nodules", "train").pieces[:8]
    boxes = [piece.voxels[None, None, :48, :48, :48] for piece in pieces]
    control = export_files(run.out / CONTROL, boxes)
    for cell in track(cells, "timing pruned networks"):
        own = export_files(run.out / cell.name, boxes)
        times = {}
        for precision in control:
            took = times_in_turn([control[precision], own[precision]], engine, rounds)
            times[f"{precision}_ms"] = float(np.median(took[:, 1])) * 1e3
            times[f"{precision}_ratio"] = float(np.median(took[:, 1] / took[:, 0]))
            times[f"{precision}_bytes"] = own[precision].stat().st_size
        _write(run.out / cell.name / "time.json", times)


def export_files(folder: Path, boxes: Iterable[Box]) -> dict[str, Path]:
    """Export `averaged.pt` of ``folder`` into it; return the files by precision.

    ``boxes`` calibrate INT8, ``(n, 1, z, y, x)``, from training data only.
    """
    network = make_screening(folder / "averaged.pt").eval()
    models = {
        "fp32": export_fp32(network, "screening"),
        "int8": quantize(export_float(network, "screening"), "screening", boxes),
    }
    paths = {precision: folder / f"{precision}.onnx" for precision in models}
    for precision, model in models.items():
        onnx.save(model, paths[precision])
    return paths


def times_in_turn(
    paths: Sequence[Path], engine: str, rounds: int, *, box: tuple[int, int, int] = BOX
) -> npt.NDArray[np.float64]:
    """Return the seconds of each pass, ``(rounds, files)``: A B A B, after two warm-up passes."""
    # artifacts that are in no manifest
    sessions = [
        open_session(
            Artifact(
                path.stem, path, sha256(path.read_bytes()).hexdigest(), "", "screening", path.stem
            ),
            engine=engine,
        )
        for path in paths
    ]
    voxels = np.random.default_rng(0).integers(0, 256, (1, 1, *box), dtype=np.uint8)
    took = np.zeros((2 + rounds, len(sessions)))
    for row in took:
        for place, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(voxels)
            row[place] = time.perf_counter() - began
    return took[2:]


def compared(found: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs with what each lost against the first, which is the control."""
    control = hits(found[0])
    rows = []
    for run, timed in zip(found, times, strict=True):
        own = hits(run)
        gone = 1 - run["parameters"] / run["whole"]
        lost = {"cpm_lost": lost_points((control - own).mean(1)),
                "at_8_lost": lost_points((control - own)[:, -1])}  # fmt: skip
        shown = {
            key: value for key, value in run.items() if key not in ("found", "false_positives")
        }
        rows.append({**shown, "gone": gone, **lost, **timed})
    return {"nodules": len(control), "scans": found[0]["scans"], "claim": CLAIM, "runs": rows}


def hits(run: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return which nodules are above the threshold of each rate: 0 or 1, ``(nodules, rates)``."""
    ranked = np.sort(run["false_positives"])[::-1]
    counts = [int(rate * run["scans"]) for rate in RATES]
    least = [ranked[n] if n < len(ranked) else -1e8 for n in counts]
    return np.asarray(np.array(run["found"])[:, None] > np.array(least), dtype=np.float64)


def lost_points(lost: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the mean of ``lost`` (nodules,) in points of a hundred, with its 95 % interval."""
    rng = np.random.default_rng(0)
    means = [lost[rng.integers(0, len(lost), len(lost))].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": 100 * float(lost.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def prune_table(result: dict[str, Any]) -> str:
    """Return a row for each run, in Markdown."""
    heads = ["what goes", "parameters gone", "CPM", "CPM points lost", "at 8", "points lost at 8",
             "GMAC", "INT8 ms", "to control", "FP32 ms", "to control"]  # fmt: skip
    rows = [
        [
            METHODS[run["way"]], percent(run["gone"]), f"{run['after']['cpm']:.3f}",
            points(run["cpm_lost"]), f"{run['after']['at_8']:.3f}", points(run["at_8_lost"]),
            f"{run['multiply_adds'] / 1e9:.1f}", f"{run['int8_ms']:.0f}",
            f"{run['int8_ratio']:.2f}", f"{run['fp32_ms']:.0f}", f"{run['fp32_ratio']:.2f}",
        ]
        for run in result["runs"]
    ]  # fmt: skip
    return Rows(heads, rows).markdown()


def _finite(values: np.ndarray) -> list[float]:
    """Return logits for JSON; a nodule without a peak is below every threshold."""
    return [round(float(value), 4) if np.isfinite(value) else -1e9 for value in values]


def _write(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
