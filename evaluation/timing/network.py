"""``overread-eval network`` and ``cost``: what one pass of a network takes.

``network`` measures the time of artifacts on engines in turn, A B A B. ``cost`` counts the
multiply-adds of one ROI, node by node.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer

from evaluation.common.cli import Json, each, show
from evaluation.common.tables import columns_table
from models.markdown import Rows
from models.runtime import hardware
from models.runtime.artifacts import Artifact, find
from models.runtime.session import Session, open_session

_COLUMNS = {
    "artifact": ("artifact", "{}"),
    "engine": ("engine", "{}"),
    "median_ms": ("median ms", "{:.1f}"),
    "p95_ms": ("p95 ms", "{:.1f}"),
    "ratio_to_first": ("ratio", "{:.2f}"),
}


def measure(
    sessions: Sequence[Session],
    shape: tuple[int, int, int],
    rounds: Iterable[int],
    *,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time one pass of each in every round, in turn, after two that do not count.

    Returns times in ms, and the ratio to the first: the median over the rounds.
    """
    inputs = [_input(session.artifact, shape, batch) for session in sessions]
    for session, voxels in zip(sessions, inputs, strict=True):
        for _ in range(2):
            session.run(voxels)
    times_s: list[list[float]] = [[] for _ in sessions]
    for _ in rounds:
        for session, voxels, took_s in zip(sessions, inputs, times_s, strict=True):
            began = clock()
            session.run(voxels)
            took_s.append(clock() - began)
    return {
        "cpu": hardware.cpu_name(),
        "threads": sessions[0].threads,
        "shape": list(shape),
        "batch": batch,
        "rounds": len(times_s[0]),
        "passes": [
            {
                "artifact": session.artifact.name,
                "engine": session.engine,
                "median_ms": float(np.median(took_s)) * 1e3,
                "p95_ms": float(np.quantile(took_s, 0.95)) * 1e3,
                "ratio_to_first": float(np.median(np.divide(took_s, times_s[0]))),
            }
            for session, took_s in zip(sessions, times_s, strict=True)
        ],
    }


def _named(name: str) -> Artifact:
    """Return an artifact; ``NAME:stored`` as it is stored, with INT4 not laid out as INT8."""
    plain, _, form = name.partition(":")
    artifact = find(plain)
    return replace(artifact, name=name, expand=False) if form == "stored" else artifact


def _input(artifact: Artifact, shape: tuple[int, int, int], batch: int) -> np.ndarray:
    roi_or_box = artifact.settings["roi_shape"] if artifact.kind == "hybrid" else shape
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, 1, *map(int, roi_or_box)), dtype=np.uint8)


def network_command(
    model: Annotated[
        list[str] | None, typer.Option(help="Artifact, or ARTIFACT:stored; may be repeated.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine; may be repeated.")] = None,
    shape: Annotated[str, typer.Option(help="Voxels z,y,x of the lung box.")] = "256,224,320",
    batch: Annotated[int, typer.Option(min=1, help="Lung boxes or ROIs of a pass.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: one for each core.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 20,
    as_json: Json = False,
) -> None:
    """Time of one pass of artifacts on engines, in turn, on this machine."""
    box = _box_shape(shape)
    sessions = [
        open_session(_named(name), engine=on, threads=threads)
        for name in model or ["screening-int8"]
        for on in engine or ["auto"]
    ]
    result = measure(sessions, box, each(range(repeat), "rounds"), batch=batch)
    title = f"{batch} x {shape} voxels, {result['threads']} threads of {result['cpu']}"
    show(result, as_json, columns_table(_COLUMNS, result["passes"], title))


def _box_shape(text: str) -> tuple[int, int, int]:
    sides = [side.strip() for side in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"invalid --shape {text!r}, expected z,y,x such as 256,224,320")
    z, y, x = map(int, sides)
    return z, y, x


SIDE = 48
"""Voxels along each side of the ROI for which multiply-adds are counted."""


def multiply_adds(artifact: Artifact, side: int = SIDE) -> int:
    """Count the multiply-adds of convolutions and matrix products for one ROI of ``side``^3."""
    model = onnx.load_model_from_string(artifact.stored())
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    counted = ("Conv", "ConvTranspose", "MatMul", "Gemm")
    nodes = [n for n in model.graph.node if n.op_type in counted]
    shapes = weights | _shapes(model, nodes, side)
    total = 0
    for node in nodes:
        given, weight, made = (shapes[name] for name in (*node.input[:2], node.output[0]))
        # an output value of a convolution is a sum over the kernel and the input channels of its
        # group; an input value of a transposed one adds to one kernel of values in every channel
        outer, inner = {"Conv": (made, weight[1:]), "ConvTranspose": (given, weight[1:])}.get(
            node.op_type, (made, given[-1:])
        )
        total += int(np.prod(outer) * np.prod(inner))
    return total


def _shapes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], side: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the nodes' inputs and outputs, by running the model once."""
    given = {tensor.name for tensor in model.graph.initializer}
    names = {name for n in nodes for name in (*n.input, *n.output) if name not in given}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    voxels = np.zeros((1, 1, side, side, side), np.uint8)
    found = session.run(None, {session.get_inputs()[0].name: voxels})
    return {name: out.shape for name, out in zip(sorted(names), found, strict=True)}


def cost_command(
    small: Annotated[str, typer.Option(help="The edge's artifact.")] = "screening-fp32",
    large: Annotated[str, typer.Option(help="The cloud's artifact.")] = "hybrid-fp32",
    as_json: Json = False,
) -> None:
    """Multiply-adds of two networks for one ROI, and the saving of the smaller one."""
    counts = {name: multiply_adds(find(name)) for name in (small, large)}
    result = {
        "region": [SIDE] * 3,
        "small": {"artifact": small, "multiply_adds": counts[small]},
        "large": {"artifact": large, "multiply_adds": counts[large]},
        "saved": 1 - counts[small] / counts[large],
    }
    cells = [[name, f"{count / 1e9:.3f} G"] for name, count in counts.items()]
    table = Rows(["artifact", "multiply-adds"], cells, f"one ROI of {SIDE}^3 voxels")
    show(result, as_json, table, f"saved: {result['saved']:.1%}")
