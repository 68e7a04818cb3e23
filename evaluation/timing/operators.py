"""Where the time of a network goes: its layers as openvino runs them, beside what the CPU can do.

An operation is a multiplication or an addition of a convolution or a matrix product. The rate of
the CPU is that of a large convolution on the same engine.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from models.runtime import hardware
from models.runtime.artifacts import Artifact
from models.runtime.rewrites import rewritten

with suppress(ImportError):  # without it, nothing is profiled
    import openvino

_CHANNELS, _SIDE, _LAYERS, _WARM_UP = 128, 16, 4, 2


@dataclass(frozen=True)
class Layer:
    """A layer as it runs: ``kind`` is its type, ``took_s`` its time in the fastest passes.

    ``int8`` says whether it multiplies 8-bit values.
    """

    name: str
    kind: str
    int8: bool
    took_s: float
    operations: int

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / max(self.took_s, 1e-6)


def layers_of(
    artifact: Artifact, box: tuple[int, ...], threads: int, rounds: int = 20
) -> list[Layer]:
    """Return the layers that take time, in their order; a hybrid reads one ROI and no ``box``."""
    model = openvino.Core().read_model(rewritten(artifact.content()))
    sides = artifact.settings["roi_shape"] if artifact.kind == "hybrid" else box
    shape = (1, 1, *map(int, sides))
    if artifact.kind == "hybrid":  # boxes come in all sizes: a fixed one has other layers
        model.reshape({0: list(shape)})
    voxels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    layers, totals_s = _passes(model, voxels, threads, rounds, half=artifact.half)
    # the least of four parts of the passes: others use the machine too
    each = max(1, rounds // 4)
    took_s = np.diff(totals_s[_WARM_UP - 1 :: each], axis=0).min(axis=0) / each
    return [replace(one, took_s=max(0.0, s)) for one, s in zip(layers, took_s, strict=True)]


def peak(threads: int, *, int8: bool, rounds: int = 10) -> float:
    """Return the operations a second of the fastest pass of a large convolution."""
    from openvino import opset13 as op  # here, since a start does without

    given = op.parameter([1, _CHANNELS, *[_SIDE] * 3], np.float32)
    out: Any = given
    for number in range(_LAYERS):
        rng = np.random.default_rng(number)
        weights = rng.integers(-127, 128, (_CHANNELS, _CHANNELS, 3, 3, 3), dtype=np.int8)
        kernel = op.convert(op.constant(weights), "f32")
        if int8:
            out = op.fake_quantize(out, 0.0, 25.5, 0.0, 25.5, 256)
        else:
            kernel = op.constant(weights.astype(np.float32))
        scaled = op.multiply(kernel, op.constant(np.float32(1e-4)))
        out = op.relu(op.convolution(out, scaled, [1] * 3, [1] * 3, [1] * 3, [1] * 3))
    model = openvino.Model([out], [given], "peak")
    values = np.random.default_rng(0).random(tuple(given.shape), np.float32)
    layers, totals_s = _passes(model, values, threads, rounds)
    fastest_s = np.diff(totals_s[_WARM_UP - 1 :], axis=0).min(axis=0)
    return max(replace(one, took_s=s).rate for one, s in zip(layers, fastest_s, strict=True))


def _passes(
    model: Any, values: Any, threads: int, rounds: int, *, half: bool = False
) -> tuple[list[Layer], npt.NDArray[np.float64]]:
    """Run passes, `_WARM_UP` more than ``rounds``.

    Returns the layers, and their time up to each pass in seconds, ``(passes, layers)``.
    """
    options = {
        "PERF_COUNT": "YES",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "bf16" if half and hardware.fast_bf16() else "f32",
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    request, sums_s, ran = compiled.create_infer_request(), list[dict[str, float]](), []
    for number in range(1, _WARM_UP + rounds + 1):
        request.infer({0: values})
        ran = compiled.get_runtime_model().get_ordered_ops()
        means_us = {one.get_friendly_name(): _info(one, "execTimeMcs") for one in ran}
        # the engine gives the mean of all passes so far, and no number for what did not run
        sums_s.append({k: 1e-6 * number * int(us) for k, us in means_us.items() if us.isdigit()})
    layers = [_layer(one) for one in ran if one.get_friendly_name() in sums_s[-1]]
    return layers, np.array([[sums.get(one.name, 0.0) for one in layers] for sums in sums_s])


def _layer(one: Any) -> Layer:
    kind, operations = _info(one, "layerType"), 0
    made = one.output(0).get_shape()
    if kind == "Convolution":
        weights = one.input(1).get_shape()  # after the outputs, and any groups: one filter
        operations = 2 * prod(made) * prod(weights[len(weights) - len(made) + 1 :])
    elif kind in ("FullyConnected", "MatMul"):
        operations = 2 * prod(made) * one.input(0).get_shape()[-1]
    int8 = _info(one, "primitiveType").endswith("I8")
    return Layer(one.get_friendly_name(), kind, int8, 0.0, operations)


def _info(one: Any, key: str) -> str:
    return str(one.rt_info[key].astype(str))


def shares(layers: Sequence[Layer]) -> dict[str, float]:
    """Return the share of time of each type of operator, the largest first."""
    took = defaultdict[str, float](float)
    for layer in layers:
        took[layer.kind] += layer.took_s
    whole_s = sum(took.values())
    return {kind: took[kind] / whole_s for kind in sorted(took, key=lambda one: -took[one])}


def achieved(layers: Sequence[Layer]) -> float:
    """Return the operations a second of a whole pass."""
    return sum(one.operations for one in layers) / sum(one.took_s for one in layers)
