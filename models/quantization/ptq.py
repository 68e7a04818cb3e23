"""INT8 by post-training quantisation: QDQ, uint8 activations, int8 weights for each channel."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from models.export.onnx import INPUT, add_unrounded, give_float, take_uint8_quantized

OPERATORS = {
    "screening": ["Conv", "Add", "Relu", "Resize"],
    "hybrid": ["Conv", "MatMul", "Gemm", "Add", "Relu"],
}
"""What is quantised, less `_kept_float`."""

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
    def __init__(self, batches: Iterable[npt.NDArray[np.uint8]]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32) / np.float32(255)}


def quantize(
    model: onnx.ModelProto,
    kind: str,
    batches: Iterable[npt.NDArray[np.uint8]],
    *,
    method: str = "minmax",
) -> onnx.ModelProto:
    """The INT8 form of a float model (`export_float`), uint8 in and float32 out.

    ``batches`` are calibration inputs ``(n, 1, z, y, x)``, from training data only. The first
    tensor is uint8 as it comes; the last layer's output is not rounded, nor what is added at once.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, small = (Path(folder) / f"{n}.onnx" for n in ("float", "ready", "int8"))
        onnx.save(model, whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        with redirect_stdout(sys.stderr):  # it tells how far it is; stdout is for results
            quantize_static(
                str(prepared),
                str(small),
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS[kind],
                nodes_to_exclude=_kept_float(onnx.load(prepared)),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[method],
            )
        return give_float(add_unrounded(take_uint8_quantized(onnx.load(small))))


def _kept_float(model: onnx.ModelProto) -> list[str]:
    """Nodes of a Transformer that stay float: sums, products of two activations, the answers.

    What runs along its residual path and through its soft-max has no range that 256 levels
    serve; the products with weights, where the time goes, are quantised. The last block before
    the mask costs little, and rounded it let two engines differ by 6 % of the mask's spread.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "MatMul" and weights.isdisjoint(node.input))
        or (node.op_type == "Add" and "encoder" in node.name)
        or any(name in node.name for name in ("answer", "up2", "back2"))
    ]
