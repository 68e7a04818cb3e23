"""The contract of a network: its input and outputs, which docs/own-network.md explains."""

import sys
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from models.runtime.artifacts import Artifact
from models.runtime.engines import Runner
from models.runtime.errors import UnfitArtifact

INPUT = "voxels"
"""The name of the input, uint8 ``(n, 1, z, y, x)`` of the HU window."""

OUTPUTS = {
    "screening": {"maps": "n, 5, z/4, y/4, x/4"},
    "hybrid": {"logit": "n, 1", "log_diameter": "n, 1", "malignancy": "n, 1", "texture": "n, 3",
               "mask": "n, 1, z, y, x"},
}  # fmt: skip
"""The outputs of each kind of network in this order, float32, and their shapes."""

SETTINGS = {
    "screening": {"calibration": 2},
    "hybrid": {"calibration": 2, "roi_shape": 3, "outline": 1},
}
"""The settings that each kind of network needs, and the count of numbers of each."""

_SAMPLE = (16, 32, 48)
"""A grid ``(z, y, x)`` of three sides that differ, as a screening network must take it."""


def require_fit(artifact: Artifact, kind: str) -> None:
    """Raise `UnfitArtifact` if it is of another kind, or a setting or a tensor is wrong.

    Of tensors these are names, order, types and free axes.
    """
    if artifact.kind != kind:
        raise UnfitArtifact(f"{artifact.name} is of kind {artifact.kind!r}, expected {kind!r}")
    for setting, count in SETTINGS[kind].items():
        numbers = artifact.settings.get(setting)
        if not (isinstance(numbers, Sequence) and len(numbers) == count and _are_finite(numbers)):
            wrong = f"{setting} = {numbers!r}, expected {count} numbers"
            raise UnfitArtifact(f"{artifact.name}: {wrong}")
    if artifact.settings["calibration"][0] <= 0:
        wrong = f"calibration = {artifact.settings['calibration']!r}, expected a slope above 0"
        raise UnfitArtifact(f"{artifact.name}: {wrong}")
    content, screens = artifact.stored(), kind == "screening"
    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # protobuf's decode errors have no public base
        raise _unfit(artifact, f"is not an ONNX file: {error}") from error
    sides = artifact.settings.get("roi_shape", ())
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise _unfit(artifact, f"has roi_shape = {sides}, expected numbers of voxels")
    stored = {one.name for one in graph.initializer}  # old files have weights among the inputs
    given = [one for one in graph.input if one.name not in stored]
    expected = {INPUT: "UINT8"} | dict.fromkeys(OUTPUTS[artifact.kind], "FLOAT")
    types = [(v.name, v.type.tensor_type.elem_type) for v in (*given, *graph.output)]
    found = [(name, TensorProto.DataType.Name(kind)) for name, kind in types]
    if found != [*expected.items()]:
        has, wanted = (", ".join(map(" ".join, one)) for one in (found, expected.items()))
        raise _unfit(artifact, f"has the tensors {has}; expected {wanted}")
    axes = [dim.dim_value for dim in given[0].type.tensor_type.shape.dim]
    if len(axes) not in (0, 5) or any(axes[:1] + axes[2:] * screens):
        stated = ", ".join(str(axis or "free") for axis in axes)
        wanted = f"(n, 1, z, y, x) with free {'n, z, y and x' if screens else 'n'}"
        raise _unfit(artifact, f"has {INPUT} of ({stated}), expected {wanted}")


def _are_finite(values: Sequence[object]) -> bool:
    """Return whether all are numbers that fit into a float64."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and all(abs(v) <= sys.float_info.max for v in numbers)


def require_shapes(artifact: Artifact, run: Runner) -> None:
    """Raise `UnfitArtifact` if the shapes for a small input are wrong; files may not state them."""
    grid = _SAMPLE if artifact.kind == "screening" else tuple(artifact.settings["roi_shape"])
    given, sides = (1, 1, *grid), dict(zip("nzyx", (1, *grid), strict=True))
    try:
        outputs = run(np.zeros(given, np.uint8))
    except Exception as error:  # an engine's own errors have no common class
        raise _unfit(artifact, f"cannot read {INPUT} of {given}: {error}") from error
    for (name, shape), found in zip(OUTPUTS[artifact.kind].items(), outputs, strict=True):
        axes = (axis.partition("/") for axis in shape.split(", "))
        if found.shape != tuple(int(sides.get(a, a)) // int(by or 1) for a, _, by in axes):
            gives = f"gives {name} of {found.shape} for {INPUT} of {given}"
            raise _unfit(artifact, f"{gives}, expected ({shape})")


def _unfit(artifact: Artifact, what: str) -> UnfitArtifact:
    return UnfitArtifact(f"{artifact.name}: {artifact.path} {what}")
