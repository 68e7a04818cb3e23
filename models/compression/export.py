"""From a trained torch network to the FP32 ONNX file that everything after it starts from."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from models.compression.graph import INPUT, take_uint8
from models.networks.hybrid import Answers

OPSET = 17

OUTPUTS = {"screening": ["maps"], "hybrid": list(Answers._fields)}
"""What each kind of network gives, in this order."""

_EXAMPLE_SIDE = {"screening": 64, "hybrid": 48}
_FREE_AXES = {
    "screening": {
        INPUT: {0: "n", 2: "z", 3: "y", 4: "x"},
        "maps": {0: "n", 2: "z4", 3: "y4", 4: "x4"},
    },
    "hybrid": {name: {0: "n"} for name in (INPUT, *OUTPUTS["hybrid"])},
}


def export_float(network: nn.Module, kind: str) -> onnx.ModelProto:
    """The network in ONNX with float input in [0, 1]: the form that quantisation reads.

    ``kind`` is ``screening`` or ``hybrid``. Batch norms are folded into the convolutions.
    """
    network = copy.deepcopy(network).eval().cpu()
    for weight in network.parameters():
        weight.data = weight.data.contiguous()
    example = torch.rand(1, 1, *(_EXAMPLE_SIDE[kind],) * 3)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # the tracing exporter is deprecated, and the only one that folds batch norm by itself
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=OUTPUTS[kind],
            dynamic_axes=_FREE_AXES[kind],
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(path)


def export_fp32(network: nn.Module, kind: str) -> onnx.ModelProto:
    """The network in ONNX as it is served: uint8 of the HU window in, float32 inside."""
    return take_uint8(export_float(network, kind))
