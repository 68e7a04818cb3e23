"""The export and fit commands: from a run's weights to artifacts that edge and cloud can use.

The commands of learnt rounding: material, simulation and plan put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.calibration.fit import Cases, gather, logistic, sigmoid, thresholds
from models.calibration.promise import Asked, Read, nodules_of, promise, widest_slices_mm
from models.export.manifest import amend, register
from models.export.onnx import export_float, export_fp32
from models.networks.screening import ScreeningNetwork
from models.quantization.ptq import METHODS, quantize
from models.quantization.qat import choose, fine_tune, lower_step_by_step, simulate, simulate_file
from models.quantization.sensitivity import Layer, distance, sensitivity
from models.quantization.simulation import Simulation, exact_weights, parameter_name, written
from models.runtime.artifacts import WEIGHTS, Artifact, every, find
from models.runtime.errors import NoWeights, UnfitArtifact
from models.runtime.screener import Screener, read_by
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session
from models.training.data import Piece, load_cubes
from models.training.runs import (
    Run,
    boxes_of_role,
    load_weights,
    make_hybrid,
    make_screening,
    scans_of_role,
    task_of,
)

MAKERS: dict[str, Callable[[Path], nn.Module]] = {
    "screening": make_screening,
    "hybrid": make_hybrid,
}
UNFITTED: dict[str, dict[str, Any]] = {
    "screening": {"calibration": [1.0, 0.0]},
    "hybrid": {"calibration": [1.0, 0.0], "roi_shape": [48, 48, 48]},
}
CALIBRATION_CUBES = 96
"""How many training cubes quantisation is calibrated on; whole training scans come on top."""

BOX_SIDE = 96

HEARD = 0.99
"""The share of validation's false alarms within which the cloud's logit counts: the few beyond it
are too few to tell how much more certain a higher one is."""


def run_export(kind: str, data: Path, weights: Path, method: str) -> None:
    """Registers `KIND-fp32` and `KIND-int8`; settings fitted before are kept."""
    network = MAKERS[kind](weights)
    enter(f"{kind}-fp32", export_fp32(network, kind), parent="", method="training")
    exact = export_float(network, kind)
    enter(
        f"{kind}-int8", quantize(exact, kind, calibration(kind, data), method=method),
        parent=f"{kind}-fp32", method=f"post-training quantisation, {method}",
    )  # fmt: skip


def calibration(kind: str, data: Path, split: str = "train") -> Iterator[np.ndarray]:
    """Batches ``(1, 1, z, y, x)`` of a split's material that such a network reads."""
    cubes = load_cubes(data / "nodules", split).pieces
    scans = scans_of_role(data / "ct", split)
    return {"screening": _boxes, "hybrid": _regions}[kind](cubes, scans)


def enter(
    name: str, model: onnx.ModelProto, *, parent: str, method: str, folder: Path = WEIGHTS
) -> None:
    """Registers an artifact named for its kind and precision; settings fitted before are kept."""
    kind, _, precision = name.partition("-")
    before = every(folder) if (folder / "manifest.toml").exists() else {}
    register(
        name, model, kind=kind, precision=precision, parent=parent, method=method,
        settings=_settings(before.get(name), kind), folder=folder,
    )  # fmt: skip


def _settings(artifact: Artifact | None, kind: str) -> dict[str, Any]:
    return dict(artifact.settings) if artifact else UNFITTED[kind]


def _boxes(cubes: tuple[Piece, ...], scans: tuple[Piece, ...]) -> Iterator[np.ndarray]:
    """Boxes of one size, as histograms need them: cubes mirrored at their faces, and scans."""
    for cube in cubes[: CALIBRATION_CUBES // 3]:
        pad = [(0, BOX_SIDE - n) for n in cube.voxels.shape]
        yield np.pad(cube.voxels, pad, mode="symmetric")[None, None]
    for place, scan in _places(scans, CALIBRATION_CUBES // 24):
        yield cut_roi(scan.voxels, place, (BOX_SIDE,) * 3)[None, None]


def _regions(cubes: tuple[Piece, ...], scans: tuple[Piece, ...]) -> Iterator[np.ndarray]:
    for cube in cubes[:CALIBRATION_CUBES]:
        yield cut_roi(cube.voxels, cube.nodules[0, :3])[None, None]
    for place, scan in _places(scans, CALIBRATION_CUBES // 4):
        yield cut_roi(scan.voxels, place)[None, None]


def _places(scans: tuple[Piece, ...], count: int) -> Iterator[tuple[FloatArray, Piece]]:
    """So many places in the middle parts of each scan."""
    rng = np.random.default_rng(0)
    for scan in scans:
        for _ in range(count):
            yield rng.uniform(0.2, 0.8, 3) * scan.voxels.shape, scan


def run_fit(data: Path, screening: str, hybrid: str, asked: Asked) -> None:
    """Fits the settings of both artifacts on validation, and enters them with their promise."""
    console = Console(stderr=True)
    screener = Screener(open_session(neutral(find(screening))))
    reader = SecondReader(open_session(neutral(find(hybrid))))
    cubes, scans = load_cubes(data / "nodules", "val"), boxes_of_role(data / "ct", "val")
    with console.status("reading validation cases"):
        cases = gather(screener, reader, cubes.pieces, scans, cubes.patients)
    settings, cloud = fit_settings(cases)
    slice_mm = widest_slices_mm(data / "nodules" / "index.csv", "val")
    side = reader.roi_shape[0]
    read = Read(read_by(find(screening).version), find(hybrid).version, slice_mm, side)
    nodules = nodules_of(cases, settings, cloud)
    settings |= promise(nodules, settings["thresholds"], asked, settings["merge"])
    settings["guarantee"] |= asdict(read)
    amend(screening, "settings", settings)
    amend(hybrid, "settings", cloud)
    console.print(settings, cloud)


def neutral(artifact: Artifact) -> Artifact:
    """The artifact with its outputs as they are; in memory, so that what is served stays fitted."""
    return replace(artifact, settings={**artifact.settings, "calibration": [1.0, 0.0]})


def fit_settings(cases: Cases) -> tuple[dict[str, Any], dict[str, Any]]:
    """The edge's settings (calibration, merge, thresholds) and the cloud's (calibration)."""
    edge_bias, edge_slope = logistic(cases.edge[:, None], cases.nodule)
    cloud_bias, cloud_slope = logistic(cases.cloud[:, None], cases.nodule)
    edge, cloud = edge_bias + edge_slope * cases.edge, cloud_bias + cloud_slope * cases.cloud
    most = float(np.quantile(cloud[~cases.nodule], HEARD))
    heard = np.minimum(cloud, most)  # see `edge.merge.MergeWeights`
    bias, edge_weight, cloud_weight = logistic(np.stack([edge, heard], 1), cases.nodule)
    merged = sigmoid(bias + edge_weight * edge + cloud_weight * heard)
    settings = {
        "calibration": _rounded(edge_slope, edge_bias),
        "merge": _rounded(bias, edge_weight, cloud_weight, most),
        "thresholds": thresholds(sigmoid(edge), merged, cases),
    }
    return settings, {"calibration": _rounded(cloud_slope, cloud_bias)}


def _rounded(*values: float) -> list[float]:
    return [round(float(v), 6) for v in values]


ANOTHER = 0.5
"""Weights that are further apart, as a part of their norm, are another network's."""

LOOKED_AT = 24
"""Of the calibration's batches every so manieth is looked at, so that at least these are left."""


def run_qat(run: Run, kind: str, screening: Sequence[Path], method: str) -> None:
    """Registers `KIND-int8` anew, trained to answer as the float network that ``run`` starts from.

    ``screening`` is for a hybrid: the networks whose candidates it reads, the last one's its own.
    """
    screeners, network = _screeners(kind, screening), _network(run, kind)
    exact = export_float(network, kind)
    small = quantize(exact, kind, calibration(kind, run.data), method=method)
    task = task_of(network, run.material(), screeners)
    simulation = simulate(small, exact, kind)
    learnt = fine_tune(simulation, network, task, run.plan(decay=0.0), resume=run.resume)
    enter(
        f"{kind}-int8", written(learnt), parent=f"{kind}-fp32",
        method=f"quantisation-aware training, {run.minutes:g} minutes, ranges from {method}",
    )  # fmt: skip


def run_int4(
    run: Run, kind: str, qat: Path | None, screening: Sequence[Path], share: float
) -> None:
    """Registers `KIND-int4`, a file of at most ``share`` of FP32's.

    It is made from the INT8 run ``qat`` or, if None, from the registered INT8 file. With
    every layer in INT4 it is as small as it gets. ``screening`` is as for `run_qat`.
    """
    screeners, network = _screeners(kind, screening), _network(run, kind)
    simulation = _learnt(network, kind, qat)
    wanted = int(find(f"{kind}-fp32").path.stat().st_size * share)
    layers, chosen = choose(simulation, network, _looked_at(run.data, kind), wanted)
    task = task_of(network, run.material(), screeners)
    plan = run.plan(decay=0.0)
    small = lower_step_by_step(simulation, network, task, plan, chosen, resume=run.resume)
    lowered = sum(one.parameters for one in layers if one.name in chosen)
    part = lowered / sum(one.parameters for one in layers)
    enter(
        f"{kind}-int4", small, parent=f"{kind}-int8",
        method=f"{len(chosen)} of {len(layers)} layers ({part:.0%} of the weights) in INT4, "
        f"{run.minutes:g} minutes",
    )  # fmt: skip


def run_sensitivity(kind: str, data: Path, start: Path, qat: Path | None) -> list[dict[str, Any]]:
    """Every layer's report, as JSON holds it."""
    network = MAKERS[kind](start).eval()
    simulation = _learnt(network, kind, qat)
    return [_row(layer) for layer in sensitivity(simulation, network, _looked_at(data, kind))]


def run_ranges(kind: str, data: Path, start: Path, qat: Path | None) -> list[dict[str, Any]]:
    """How far INT8 is from float on validation, for each way to find the first ranges.

    What training made of it stands last: from the run ``qat``, or from the registered file if None
    and if there is one.
    """
    network = MAKERS[kind](start).eval()
    exact = export_float(network, kind)
    learnt_from, batches = list(calibration(kind, data)), _looked_at(data, kind, "val")
    rows = []
    for method in METHODS:
        small = quantize(exact, kind, learnt_from, method=method)
        simulation = simulate(small, exact, kind).eval()
        rows.append({"ranges": method, **distance(simulation, network, batches)})
    if qat is not None or f"{kind}-int8" in every():
        learnt = _learnt(network, kind, qat)
        rows.append({"ranges": "learnt", **distance(learnt, network, batches)})
    return rows


def _row(layer: Layer) -> dict[str, Any]:
    return {key: value for key, value in asdict(layer).items() if key != "name"}


def _network(run: Run, kind: str) -> nn.Module:
    if run.start is None:
        raise NoWeights("--start: quantisation starts from trained weights")
    torch.manual_seed(run.seed)
    return MAKERS[kind](run.start).eval()


def _learnt(network: nn.Module, kind: str, qat: Path | None) -> Simulation:
    """The simulation that the INT8 run left; the registered file says what is rounded where.

    Without the run it begins with what the file holds: the weights as they were rounded.
    """
    model = onnx.load_model_from_string(find(f"{kind}-int8").content())
    if qat is None:
        return _of_network(simulate_file(model, kind).eval(), network, kind)
    simulation = simulate(model, export_float(network, kind), kind)
    try:
        simulation.load_state_dict(load_weights(qat))
    except RuntimeError as error:
        raise UnfitArtifact(f"{qat}: not of the run that made {kind}-int8: {error}") from error
    return simulation.eval()


def _of_network(simulation: Simulation, network: nn.Module, kind: str) -> Simulation:
    """The simulation, if its weights are the float network's up to rounding and training for it."""
    exact = exact_weights(export_float(network, kind))
    for name in simulation.weights():
        mine = simulation.exact[parameter_name(name)].detach().numpy()
        other = exact.get(name, np.zeros(0))
        same = other.shape == mine.shape
        if not same or np.linalg.norm(mine - other) > ANOTHER * np.linalg.norm(other):
            raise UnfitArtifact(f"{kind}-int8 is not of the network that --start gives: {name}")
    return simulation


def _looked_at(data: Path, kind: str, split: str = "train") -> list[torch.Tensor]:
    batches = list(calibration(kind, data, split))
    step = max(1, len(batches) // LOOKED_AT)
    return [torch.from_numpy(batch).float() / 255 for batch in batches[::step]]


def _screeners(kind: str, paths: Sequence[Path]) -> list[ScreeningNetwork]:
    if kind == "hybrid" and not paths:
        raise NoWeights("--screening: a hybrid learns from candidates of screening networks")
    return [make_screening(path).eval() for path in paths]
