"""The hybrid network in stages, each with its own session, engine and threads.

The ONNX graph is cut into consecutive parts of about equal time that together compute the same. A
part takes tensors of earlier parts by name and gives those that later parts or the outputs need, so
a skip connection goes around the parts between.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Examples = tuple[Tensors, Tensors]
"""Inputs of two batch sizes, which tell the batch axis of a tensor from its other axes."""


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
    one, two = (
        {INPUT: np.random.default_rng(n).integers(0, 256, (n, 1, *shape), dtype=np.uint8)}
        for n in (1, 2)
    )
    return cut(model, even_cuts(model, count, (one, two)), (one, two))


def _names(values: Sequence[ValueInfoProto]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def even_cuts(model: ModelProto, count: int, examples: Examples) -> list[int]:
    """Return the positions for `cut` that make ``count`` parts of about equal time.

    Of the positions near an even share of the measured time the one with the fewest crossing bytes
    is taken.

    Raises:
        ValueError: there is no position to cut.
    """
    took_s, graph = node_times(model, examples[0]), _Graph(model)
    shares = [before_s / sum(took_s) for before_s in accumulate(took_s, initial=0.0)]
    # the positions within the slack of each even share, and the nearest ones even beyond it
    near = set[int]()
    for share in (i / count for i in range(1, count)):
        nearest = sorted(range(1, len(graph.nodes)), key=lambda i: abs(shares[i] - share))
        near.update(i for i in nearest if abs(shares[i] - share) <= SLACK / 2)
        near.update(nearest[:20])
    # the tensors that pass from the nodes before each position to those from it on
    crossings = {}
    for position in sorted(near):
        later = [i for i in range(position, len(graph.nodes)) if i not in graph.cheap]
        crossings[position] = [name for name in graph.taken(later) if name in graph.makers]
    # a position serves if all that crosses there has a batch axis
    names = sorted({name for crossing in crossings.values() for name in crossing})
    batched = _batched(model, names, examples)
    sizes = {
        position: sum(batched[name][0].nbytes for name in crossing)
        for position, crossing in crossings.items()
        if crossing and batched.keys() >= set(crossing)
    }
    chosen = [0]
    for i in range(1, count):
        chosen.append(_best(sizes, shares, i / count, after=chosen[-1]))
    return chosen[1:]


def _best(sizes: dict[int, int], shares: Sequence[float], share: float, after: int) -> int:
    """Return the position of fewest bytes near ``share``; if none is near, the nearest."""
    left = [position for position in sizes if position > after]
    if not left:
        raise ValueError("there are too few positions where only tensors with a batch axis cross")
    near = [position for position in left if abs(shares[position] - share) <= SLACK / 2]
    if near:
        return min(near, key=lambda position: (sizes[position], abs(shares[position] - share)))
    return min(left, key=lambda position: abs(shares[position] - share))


def node_times(model: ModelProto, example: Tensors) -> list[float]:
    """Return the seconds of each node in their order, the least of several runs."""
    named = copy.deepcopy(model)
    for number, node in enumerate(named.graph.node):
        node.name = f"node{number}"
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = _open_plain(named, options)
        for _ in range(_RUNS):
            session.run(None, dict(example))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, float] = {}
    for event in events:
        name, _, what = event["name"].partition("_")
        if event.get("cat") == "Node" and what == "kernel_time":
            times[name] = min(times.get(name, float("inf")), event["dur"] * 1e-6)
    return [times.get(node.name, 0.0) for node in named.graph.node]


def cut(model: ModelProto, positions: Sequence[int], examples: Examples) -> list[ModelProto]:
    """Return the parts of ``model``, one more than there are ``positions``.

    Each position is the number of the first node of a part, in rising order.

    Raises:
        ValueError: a part would be empty, or a tensor without a batch axis crosses.
    """
    graph = _Graph(model)
    bounds = pairwise([0, *positions, len(graph.nodes)])
    parts = [[i for i in range(first, end) if i not in graph.cheap] for first, end in bounds]
    if not all(parts):
        raise ValueError(f"cuts before the nodes {list(positions)} leave a part without nodes")
    crossing = sorted({name for part in parts for name in graph.taken(part)})
    declared = copy.deepcopy(model)
    declared.graph.value_info.extend(_types(model, crossing, examples))
    extract = Extractor(declared).extract_model
    made = [extract(graph.taken(part), graph.given(part, crossing)) for part in parts]
    for part in made:
        onnx.checker.check_model(part)
    return made


class _Graph:
    """The nodes of a network by number, who makes each tensor, and which nodes are cheap.

    Cheap nodes (constants, shapes, `DequantizeLinear`) are repeated in each part that uses them, so
    that the tensors of an INT8 network cross as bytes.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model, self.nodes = model, model.graph.node
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self.held = {tensor.name for tensor in model.graph.initializer}
        self.cheap = set[int]()
        constant = {*self.held, ""}  # what is computed from constants alone is one too
        for number, node in enumerate(self.nodes):
            fixed = set(node.input) <= constant or node.op_type == "Shape"
            if fixed or node.op_type == "DequantizeLinear":
                self.cheap.add(number)
            if fixed:
                constant |= set(node.output)

    def taken(self, part: Sequence[int]) -> list[str]:
        """Return the tensors that a part uses and neither makes nor holds as a constant."""
        numbers = set(part)
        wanted = [name for number in part for name in self.nodes[number].input]
        while wanted:  # the cheap nodes that it needs are its own
            number = self.makers.get(wanted.pop())
            if number in self.cheap and number not in numbers:
                numbers.add(number)
                wanted += self.nodes[number].input
        known = {name for i in numbers for name in self.nodes[i].output} | {*self.held, ""}
        used = [name for number in sorted(numbers) for name in self.nodes[number].input]
        return [name for name in dict.fromkeys(used) if name not in known]

    def given(self, part: Sequence[int], crossing: Sequence[str]) -> list[str]:
        """Return the tensors that a part makes for others: crossing ones and outputs."""
        wanted = [*crossing, *(output.name for output in self.model.graph.output)]
        return [name for name in dict.fromkeys(wanted) if self._origin(name) in set(part)]

    def _origin(self, name: str) -> int | None:
        """Return the node that a tensor comes from: of a dequantised one, that of its bytes."""
        number = self.makers.get(name)
        while number in self.cheap:
            number = self.makers.get(self.nodes[number].input[0])
        return number


def _types(
    model: ModelProto, crossing: Sequence[str], examples: Examples
) -> Iterator[ValueInfoProto]:
    """Yield type and shape of each tensor that crosses and is no input or output of the whole."""
    known = {*_names(model.graph.input), *_names(model.graph.output)}
    names = [name for name in crossing if name not in known]
    batched = _batched(model, names, examples)
    for name in names:
        if name not in batched:
            raise ValueError(f"{name} crosses a cut and has no batch axis")
        one, two = batched[name]
        # an axis that differs between the examples is free, as the batch axis is
        axes = enumerate(zip(one.shape[1:], two.shape[1:], strict=True), 1)
        shape = ["n", *(a if a == b else f"n{i}" for i, (a, b) in axes)]
        kind = helper.np_dtype_to_tensor_dtype(one.dtype)
        yield helper.make_tensor_value_info(name, kind, shape)


def _batched(
    model: ModelProto, names: Sequence[str], examples: Examples
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return those of the named tensors that have a batch axis, as computed for both examples."""
    shown = copy.deepcopy(model)
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in known)
    session = _open_plain(shown, onnxruntime.SessionOptions())
    values = (session.run(list(names), dict(example)) for example in examples)
    pairs = zip(names, zip(*values, strict=True), strict=True)
    return {name: (a, b) for name, (a, b) in pairs if a.ndim and a.shape[0] != b.shape[0]}


def _open_plain(model: ModelProto, options: Any) -> Any:
    """Open the network without fusion, so that every tensor is available."""
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
