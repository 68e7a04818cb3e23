"""The hybrid network in stages, each with its own session, engine and threads.

The ONNX graph is cut into consecutive parts of about equal time that together compute the same. A
part takes tensors of earlier parts by name and gives those that later parts or the outputs need, so
a skip connection goes around the parts between.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto, ValueInfoProto, helper
from onnx.utils import Extractor

from imaging.volume import UInt8Array
from models.runtime import hardware
from models.runtime.artifacts import WEIGHTS, Artifact, find
from models.runtime.choice import AUTO, choose
from models.runtime.contract import INPUT, OUTPUTS, require_fit
from models.runtime.engines import Outputs, start
from models.runtime.errors import UnfitArtifact
from models.runtime.rewrites import matrix_resize
from models.runtime.second_reader import Readings, SecondReader
from models.runtime.session import Opening, Session

SLACK = 0.1
"""The range of positions for each cut, as a share of the whole time."""
_RUNS = 5
"""Runs of which the least time of a node counts."""

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a network: its session, and the names of the tensors that it takes and gives."""

    session: Session
    takes: tuple[str, ...]
    gives: tuple[str, ...]

    def run(self, tensors: Tensors) -> Tensors:
        """Return the tensors with those that this part makes."""
        made = self.session.run(*(tensors[name] for name in self.takes))
        return {**tensors, **dict(zip(self.gives, made, strict=True))}


@dataclass(frozen=True, eq=False)
class StagedReader(SecondReader):
    """Reads ROIs with the ``parts`` of one hybrid artifact, one after another.

    Its ``session`` runs all of them in turn.
    """

    parts: tuple[Part, ...]

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """One function for each part: ROIs uint8 ``(n, z, y, x)`` to tensors to `Readings`."""
        first, *middle, last = self.parts

        def begin(batch: UInt8Array) -> Tensors:
            return first.run({INPUT: self.given(batch)})

        def finish(tensors: Tensors) -> Readings:
            return self.conclude(_answers(last.run(tensors)), tensors[INPUT][:, 0])

        return (begin, *(part.run for part in middle), finish)


def open_staged(
    name: str, count: int, *, engines: Sequence[str] = (), **opening: Unpack[Opening]
) -> StagedReader:
    """Cut a hybrid artifact into ``count`` >= 2 parts and open them; errors as `open_session`.

    ``engines`` has one for each part; if empty, all run on the ``engine`` and ``device`` of
    ``opening``, where ``auto`` is the fastest for the whole. Its ``threads`` are divided among the
    parts; 0 means every core.

    Raises:
        UnfitArtifact: it is no hybrid, or cannot be cut into this number of parts.
        UntrustedManifest, InvalidKey: see `models.runtime.artifacts.every`.
    """
    whole = find(name, opening.get("folder", WEIGHTS), opening.get("keys", ()))
    require_fit(whole, "hybrid")
    try:
        networks = _cut_evenly(whole, count)
    except ValueError as error:
        raise UnfitArtifact(f"{name} cannot be cut into {count} parts: {error}") from error
    threads = opening.get("threads", 0)
    way = choose(whole, opening.get("engine", AUTO), threads, device=opening.get("device", ""))
    each = max(1, (threads or hardware.cores()) // count)
    parts = []
    for network, own in zip(networks, engines or [AUTO] * count, strict=True):
        chosen = way.engine if own == AUTO else own
        run = start(chosen, network.SerializeToString(), each, half=way.half)
        session = Session(whole, chosen, each, run)
        parts.append(Part(session, _names(network.graph.input), _names(network.graph.output)))

    def run_all(voxels: UInt8Array) -> Outputs:
        tensors: Tensors = {INPUT: voxels}
        for part in parts:
            tensors = part.run(tensors)
        return _answers(tensors)

    named = " + ".join(dict.fromkeys(part.session.engine for part in parts))
    return StagedReader(Session(whole, named, each, run_all), tuple(parts))


def _answers(tensors: Tensors) -> Outputs:
    return tuple(tensors[name] for name in OUTPUTS["hybrid"])


@lru_cache(maxsize=1)  # several instances of a cloud are cut once
def _cut_evenly(whole: Artifact, count: int) -> list[ModelProto]:
    """Return the parts as networks."""
    model, shape = onnx.load_model_from_string(whole.content()), whole.settings["roi_shape"]
    matrix_resize(model)  # before nodes are timed
    voxels = np.random.default_rng(1).integers(0, 256, (1, 1, *shape), dtype=np.uint8)
    return cut(model, even_cuts(model, node_times(model, {INPUT: voxels}), count))


def _names(values: Sequence[ValueInfoProto]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def even_cuts(model: ModelProto, took_s: Sequence[float], count: int) -> list[int]:
    """Return the positions for `cut` that make ``count`` parts of about equal time.

    ``took_s`` is the time of each node. Of the positions near an even share of the sum the one with
    the fewest crossing bytes is taken.

    Raises:
        ValueError: there is no position to cut.
    """
    graph = _Graph(model)
    shares = [before_s / sum(took_s) for before_s in accumulate(took_s, initial=0.0)]
    bytes_at = {
        at: [graph.roi_bytes(name) for name in graph.crossing(at)]
        for at in range(1, len(graph.nodes))
    }
    sizes = {at: sum(sizes) for at, sizes in bytes_at.items() if sizes and all(sizes)}
    chosen = [0]
    for share in (i / count for i in range(1, count)):
        off = {at: abs(shares[at] - share) for at in sizes if at > chosen[-1]}
        if not off:
            raise ValueError("there are too few positions where only tensors of each ROI cross")
        near = {at: (sizes[at], away) for at, away in off.items() if away <= SLACK / 2}
        chosen.append(min(near, key=near.__getitem__) if near else min(off, key=off.__getitem__))
    return chosen[1:]


def node_times(model: ModelProto, example: Tensors) -> list[float]:
    """Return the seconds of each node, the least of several runs; the nodes get numbers as names.

    They run without fusion, so that each has a time.
    """
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 3, True
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, dict(example))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, float] = {}
    for event in events:
        name, _, what = event["name"].partition("_")
        if event.get("cat") == "Node" and what == "kernel_time":
            times[name] = min(times.get(name, float("inf")), event["dur"] * 1e-6)
    return [times.get(node.name, 0.0) for node in model.graph.node]


def cut(model: ModelProto, positions: Sequence[int]) -> list[ModelProto]:
    """Return the parts of ``model``, one more than there are ``positions``.

    Each position is the number of the first node of a part, in rising order.

    Raises:
        ValueError: a part would be empty, or a tensor without a batch axis crosses.
    """
    graph = _Graph(model)
    for name in (name for position in positions for name in graph.crossing(position)):
        if not graph.roi_bytes(name):
            raise ValueError(f"{name} crosses a cut, and its first axis alone is not the batch's")
    parts = [graph.part(*ends) for ends in pairwise([0, *positions, len(graph.nodes)])]
    for part in parts:
        onnx.checker.check_model(part)
    return parts


class _Graph:
    """The nodes of a network by number, and which tensors pass between them.

    Cheap nodes (constants, shapes, `DequantizeLinear`) are repeated in each part that uses them, so
    that the tensors of an INT8 network cross as bytes.
    """

    def __init__(self, model: ModelProto) -> None:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph, self._extract = typed.graph, Extractor(typed).extract_model
        self.nodes, self._outputs = graph.node, _names(graph.output)
        values = (*graph.value_info, *graph.input, *graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}
        # of each tensor those that it comes from by cheap nodes alone; none of a constant
        self._origins: dict[str, tuple[str, ...]] = {name: (name,) for name in _names(graph.input)}
        self._origins |= dict.fromkeys(("", *(tensor.name for tensor in graph.initializer)), ())
        self._makers = dict.fromkeys(_names(graph.input), -1)
        self._used: list[set[str]] = []  # by each node; by a cheap one nothing
        for number, node in enumerate(self.nodes):
            origins = {one for name in node.input for one in self._origins[name]}
            is_cheap = not origins or node.op_type in ("Shape", "DequantizeLinear")
            self._used.append(set() if is_cheap else origins)
            for name in node.output:
                self._origins[name] = tuple(origins) if is_cheap else (name,)
                self._makers[name] = number
        self._last = {name: i for i, names in enumerate(self._used) for name in sorted(names)}

    def crossing(self, position: int) -> list[str]:
        """Return the tensors that pass from the nodes before a position to those from it on."""
        return [name for name, i in self._last.items() if 0 <= self._makers[name] < position <= i]

    def roi_bytes(self, name: str) -> int:
        """Return the size of a tensor for one ROI; 0 unless its first axis alone is free."""
        kind = self._types.get(name)
        if kind is None or not kind.shape.dim:
            return 0
        first, *sides = kind.shape.dim
        if first.dim_value or not all(side.dim_value for side in sides):
            return 0
        size = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        return math.prod((size, *(side.dim_value for side in sides)))

    def part(self, first: int, end: int) -> ModelProto:
        """Return the nodes from one position to another as a network; ValueError for none."""
        used = set().union(*self._used[first:end])
        if not used:
            raise ValueError(f"the part of the nodes {first} to {end - 1} would be empty")
        gives = [name for name in self._makers if self._is_given(name, first, end)]
        used |= {one for name in gives for one in self._origins[name]}
        return self._extract(
            [n for n in self._makers if n in used and self._makers[n] < first], gives
        )

    def _is_given(self, name: str, first: int, end: int) -> bool:
        """Return whether a part makes a tensor for others, or an output of the whole."""
        if name in self._outputs:
            return first <= max(self._makers[one] for one in self._origins[name]) < end
        return first <= self._makers[name] < end <= self._last.get(name, -1)
