"""What a pruned network costs: parameters, multiply-adds, and time through the served engine."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from models.compression.export import export_float, export_fp32
from models.compression.quantize import quantize
from models.runtime.artifacts import Artifact
from models.runtime.session import open_session

BOX = (256, 224, 320)
"""The lung box that costs are told for, in voxels of 1 mm."""

Box = npt.NDArray[np.uint8]


def parameters_left(network: nn.Module) -> int:
    """Parameters that are not exactly zero in convolutions, and all others."""
    return sum(
        int(torch.count_nonzero(p)) if p.ndim > 1 else p.numel() for p in network.parameters()
    )


def multiply_adds(network: nn.Module, box: tuple[int, int, int] = BOX) -> int:
    """Multiply-adds of one pass with weights that are not zero; bias and norms left out."""
    left = {n: int(torch.count_nonzero(p)) for n, p in network.named_parameters() if p.ndim > 1}
    total = 0

    def count(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def add(_: nn.Module, __: object, out: torch.Tensor) -> None:
            nonlocal total
            total += left[f"{name}.weight"] * out[0, 0].numel()

        return add

    shapes = copy.deepcopy(network).eval().to("meta")
    for name, module in shapes.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(count(name))
    shapes(torch.empty(1, 1, *box, device="meta"))
    return total


def files(network: nn.Module, boxes: Iterable[Box], folder: Path) -> dict[str, Path]:
    """The network as it would be served, by precision, written to ``folder``.

    ``boxes`` calibrate INT8, ``(n, 1, z, y, x)``, from training data only.
    """
    models = {
        "fp32": export_fp32(network, "screening"),
        "int8": quantize(export_float(network, "screening"), "screening", boxes),
    }
    paths = {precision: folder / f"{precision}.onnx" for precision in models}
    for precision, model in models.items():
        onnx.save(model, paths[precision])
    return paths


def times_in_turn(
    paths: Sequence[Path],
    engine: str,
    rounds: Iterable[int],
    *,
    box: tuple[int, int, int] = BOX,
    clock: Callable[[], float] = time.perf_counter,
) -> npt.NDArray[np.float64]:
    """Seconds of each pass, ``(rounds, files)``: A B A B, after two passes that do not count."""
    sessions = [open_session(_artifact(path), engine=engine) for path in paths]
    voxels = np.random.default_rng(0).integers(0, 256, (1, 1, *box), dtype=np.uint8)
    for session in sessions:
        for _ in range(2):
            session.run(voxels)
    took = []
    for _ in rounds:
        row = []
        for session in sessions:
            began = clock()
            session.run(voxels)
            row.append(clock() - began)
        took.append(row)
    return np.array(took)


def _artifact(path: Path) -> Artifact:
    """A file that no manifest knows, for the engine."""
    return Artifact(
        name=path.stem, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        version="", kind="screening", precision=path.stem, parent="", method="", settings={},
        metrics={}, licence="", attribution="",
    )  # fmt: skip
