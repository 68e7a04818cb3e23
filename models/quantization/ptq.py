"""INT8 by post-training quantisation: QDQ, uint8 activations, int8 weights for each channel."""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from imaging.roi import ROI_SHAPE, cut_roi
from imaging.volume import UInt8Array
from models.export.manifest import method_of, register
from models.export.onnx import as_served, export_float, export_fp32
from models.runtime.contract import INPUT
from models.training.data import load_cubes, scans_of_role
from models.training.runs import make_network

OPERATORS = {
    "screening": ["Conv", "Add", "Relu", "Resize"],
    "hybrid": ["Conv", "MatMul", "Gemm", "Add", "Relu"],
}
"""The operators that are quantised, except for the nodes of `_float_nodes`."""

METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}

CALIBRATION_CUBES = 96
"""Training cubes that a hybrid's ranges are found on, beside whole training scans; the screening
network's are found on a third."""


def run_export(kind: str, data: Path, weights: Sequence[Path], method: str, name: str) -> None:
    """Register `NAME-fp32` and `NAME-int8` of trained ``weights``; a hybrid joins its members."""
    network = make_network(kind, weights)
    runs = [path.parent for path in weights]
    exact = export_float(network, kind)
    small = quantize(exact, kind, calibration(kind, data), method=method)
    # both are made before one is registered: they are a pair
    whole = export_fp32(network, kind)
    register(f"{name}-fp32", whole, parent="", method=method_of(runs), runs=runs)
    method = f"post-training quantisation, {method}"
    register(f"{name}-int8", small, parent=f"{name}-fp32", method=method)


def quantize(
    model: onnx.ModelProto, kind: str, batches: Iterable[UInt8Array], *, method: str = "minmax"
) -> onnx.ModelProto:
    """Return the INT8 form of a float model (`export_float`), uint8 in and float32 out.

    ``batches`` are calibration inputs ``(n, 1, z, y, x)``, from training data only.
    """
    with tempfile.TemporaryDirectory() as folder:
        # onnxruntime works on files: fold and infer shapes, then calibrate and insert QDQ pairs
        whole, prepared, small = (Path(folder) / f"{n}.onnx" for n in ("float", "ready", "int8"))
        onnx.save(model, whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        with redirect_stdout(sys.stderr):  # it prints its progress; stdout is for results
            quantize_static(
                str(prepared),
                str(small),
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS[kind],
                nodes_to_exclude=_float_nodes(onnx.load(prepared)),
                per_channel=True,
                reduce_range=True,  # of weights: see `models.quantization.simulation.LEVELS`
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[method],
            )
        return as_served(onnx.load(small))


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
    def __init__(self, batches: Iterable[UInt8Array]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32) / np.float32(255)}


def _float_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the Transformer nodes that stay float: sums, products of two activations, answers.

    The residual path and the soft-max have no range that 256 levels serve; the products with
    weights, which take the time, are quantised. The last block before the mask costs little, and
    rounding it let two engines differ by 6 % of the mask's spread.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "MatMul" and weights.isdisjoint(node.input))
        or (node.op_type == "Add" and "encoder" in node.name)
        or any(name in node.name for name in ("answer", "up2", "back2"))
    ]


def calibration(kind: str, data: Path, split: str = "train") -> Iterator[np.ndarray]:
    """Yield inputs ``(1, 1, z, y, x)`` of that kind of network from a split's material."""
    cubes = load_cubes(data / "nodules", split).pieces
    scans = scans_of_role(data, split)
    if kind == "screening":
        # boxes of one size, which histograms need: cubes are mirrored at their faces
        shape, a_scan = (96, 96, 96), CALIBRATION_CUBES // 24
        for cube in cubes[: CALIBRATION_CUBES // 3]:
            pad = [(0, side - n) for side, n in zip(shape, cube.voxels.shape, strict=True)]
            yield np.pad(cube.voxels, pad, mode="symmetric")[None, None]
    else:
        shape, a_scan = ROI_SHAPE, CALIBRATION_CUBES // 4
        for cube in cubes[:CALIBRATION_CUBES]:
            yield cut_roi(cube.voxels, cube.nodules[0, :3])[None, None]
    # whole lungs hold what cubes of nodules lack: wall, mediastinum, diaphragm
    rng = np.random.default_rng(0)
    for scan in scans:
        for _ in range(a_scan):
            centre = rng.uniform(0.2, 0.8, 3) * scan.voxels.shape
            yield cut_roi(scan.voxels, centre, shape)[None, None]
