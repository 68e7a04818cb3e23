"""``overread-eval network`` and ``cost``: what one pass of a network takes.

``network`` measures the time of artifacts on engines in turn, A B A B. ``cost`` counts the
multiply-adds of one ROI, node by node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class Contestant:
    """One artifact on one engine, and the seconds of its passes, ``took_s`` (rounds,)."""

    session: Session
    took_s: list[float]

    @property
    def label(self) -> str:
        """Return artifact and engine as text."""
        return f"{self.session.artifact.name} on {self.session.engine}"


def enter(names: Sequence[str], engines: Sequence[str], threads: int) -> list[Contestant]:
    """Open every artifact on every engine.

    ``NAME:stored`` runs the artifact as it is stored, with INT4 not laid out as INT8.

    Raises:
        ModelError: as `find` and `open_session`.
    """
    return [
        Contestant(open_session(_named(name), engine=engine, threads=threads), [])
        for name in names
        for engine in engines
    ]


def _named(name: str) -> Artifact:
    plain, _, form = name.partition(":")
    artifact = find(plain)
    return replace(artifact, name=name, expand=False) if form == "stored" else artifact


def run_in_turn(
    contestants: Sequence[Contestant],
    shape: tuple[int, int, int],
    rounds: Iterable[int],
    *,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time one pass of each in every round, after two that do not count."""
    inputs = {c.label: _input(c.session.artifact, shape, batch) for c in contestants}
    for contestant in contestants:
        for _ in range(2):
            contestant.session.run(inputs[contestant.label])
    for _ in rounds:
        for contestant in contestants:
            began = clock()
            contestant.session.run(inputs[contestant.label])
            contestant.took_s.append(clock() - began)


def as_dict(
    contestants: Sequence[Contestant], shape: tuple[int, int, int], batch: int
) -> dict[str, Any]:
    """Return the times of each in ms, and its ratio to the first: the median over the rounds."""
    first = np.array(contestants[0].took_s)
    return {
        "cpu": hardware.cpu_name(),
        "threads": contestants[0].session.threads,
        "shape": list(shape),
        "batch": batch,
        "rounds": len(first),
        "passes": [
            {
                "artifact": c.session.artifact.name,
                "engine": c.session.engine,
                "median_ms": float(np.median(c.took_s)) * 1e3,
                "p95_ms": float(np.quantile(c.took_s, 0.95)) * 1e3,
                "ratio_to_first": float(np.median(np.array(c.took_s) / first)),
            }
            for c in contestants
        ],
    }


def _input(artifact: Artifact, shape: tuple[int, int, int], batch: int) -> np.ndarray:
    if artifact.kind == "hybrid":
        z, y, x = artifact.settings["roi_shape"]
        shape = (int(z), int(y), int(x))
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, 1, *shape), dtype=np.uint8)


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
    entered = enter(model or ["screening-int8"], engine or ["auto"], threads)
    run_in_turn(entered, box, each(range(repeat), "rounds"), batch=batch)
    result = as_dict(entered, box, batch)
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
    nodes = [n for n in model.graph.node if n.op_type in _COUNTED]
    shapes = weights | _shapes(model, nodes, side)
    return sum(_COUNTED[node.op_type](node, shapes) for node in nodes)


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


def _convolution(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """An output value is a sum over the kernel and the input channels of its group."""
    return int(np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[1]][1:]))


def _transposed(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """An input value adds to one kernel of output values in every channel."""
    return int(np.prod(shapes[node.input[0]]) * np.prod(shapes[node.input[1]][1:]))


def _product(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    return int(np.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1])


_COUNTED = {"Conv": _convolution, "ConvTranspose": _transposed,
            "MatMul": _product, "Gemm": _product}  # fmt: skip


def cost_command(
    small: Annotated[str, typer.Option(help="The edge's artifact.")] = "screening-fp32",
    large: Annotated[str, typer.Option(help="The cloud's artifact.")] = "hybrid-fp32",
    as_json: Json = False,
) -> None:
    """Multiply-adds of both networks for one ROI, and the saving of the edge's."""
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
