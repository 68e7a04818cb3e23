"""The export and fit commands: from a run's weights to artifacts that edge and cloud can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.compression.export import export_float, export_fp32
from models.compression.fit import Cases, gather, logistic, sigmoid, thresholds
from models.compression.manifest import amend, register
from models.compression.promise import Asked, Read, nodules_of, promise, widest_slices_mm
from models.compression.quantize import quantize
from models.runtime.artifacts import WEIGHTS, Artifact, every, find
from models.runtime.screener import Screener, read_by
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session
from models.training.material import load_cubes
from models.training.piece import Piece
from models.training.recipe import boxes_of_role, scans_of_role
from models.training.runs import make_hybrid, make_screening

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
