"""Cuts a hybrid artifact into parts of about equal time, which the cloud runs as a pipeline."""

import json
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from models.export.manifest import register
from models.export.split import Example, crossing_at, open_plain, split, values
from models.runtime.artifacts import WEIGHTS, find
from models.runtime.errors import UnfitArtifact
from models.runtime.staged import part_name

SLACK = 0.1
"""The range of positions for each cut, as a share of the whole time."""


def export_parts(name: str, count: int, folder: Path = WEIGHTS) -> list[str]:
    """Register the ``count`` parts of a hybrid artifact and return their names.

    Raises:
        UnknownArtifact: the manifest lacks it.
        UnfitArtifact: it is not a hybrid, or cannot be cut.
    """
    whole = find(name, folder)
    if whole.kind != "hybrid":
        raise UnfitArtifact(f"{name} is of kind {whole.kind!r}, expected 'hybrid'")
    model = onnx.load_model_from_string(whole.content())
    source, shape = model.graph.input[0].name, whole.settings["roi_shape"]
    one, two = (
        {source: np.random.default_rng(n).integers(0, 256, (n, 1, *shape), dtype=np.uint8)}
        for n in (1, 2)
    )
    try:
        parts = split(model, even_cuts(model, count, (one, two)), (one, two))
    except ValueError as error:
        raise UnfitArtifact(f"{name} cannot be cut into {count} parts: {error}") from error
    names = [part_name(name, number, count) for number in range(1, count + 1)]
    for part, part_of in zip(parts, names, strict=True):
        settings = {
            "whole": whole.sha256,
            "takes": [given.name for given in part.graph.input],
            "gives": [given.name for given in part.graph.output],
            "input": source,
            "outputs": [output.name for output in model.graph.output],
        }
        register(
            part_of, part, kind="part", precision=whole.precision, parent=name,
            settings=settings, folder=folder,
        )  # fmt: skip
    return names


def even_cuts(model: ModelProto, count: int, examples: tuple[Example, Example]) -> list[int]:
    """Return the positions for `models.export.split.split` that make ``count`` parts.

    Of the positions near an even share of the measured time the one with the fewest crossing bytes
    is taken. ``examples`` are as for `split`.

    Raises:
        ValueError: there is no position to cut.
    """
    took_s = node_times(model, examples[0])
    total_s = sum(took_s)
    shares = [before_s / total_s for before_s in accumulate(took_s, initial=0.0)]
    crossings = _crossings(model, shares, count)
    names = sorted({name for crossing in crossings.values() for name in crossing})
    one, two = (values(model, names, example) for example in examples)
    batched = {n for n in names if one[n].ndim > 0 and one[n].shape[0] != two[n].shape[0]}
    sizes = {
        position: sum(one[name].nbytes for name in crossing)
        for position, crossing in crossings.items()
        if crossing and batched.issuperset(crossing)
    }
    chosen = [0]
    for i in range(1, count):
        chosen.append(_best(sizes, shares, i / count, after=chosen[-1]))
    return chosen[1:]


def node_times(model: ModelProto, example: Example) -> list[float]:
    """Return the seconds of each node in their order, the least of ten runs."""
    named = ModelProto()
    named.CopyFrom(model)
    for number, node in enumerate(named.graph.node):
        node.name = f"node{number}"
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = open_plain(named, options)
        for _ in range(10):
            session.run(None, dict(example))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, float] = {}
    for event in events:
        name, _, what = event["name"].partition("_")
        if event.get("cat") == "Node" and what == "kernel_time":
            times[name] = min(times.get(name, float("inf")), event["dur"] * 1e-6)
    return [times.get(node.name, 0.0) for node in named.graph.node]


def _crossings(model: ModelProto, shares: Sequence[float], count: int) -> dict[int, list[str]]:
    """Return the positions near an even share, with the tensors that cross at each."""
    near: set[int] = set()
    for share in (i / count for i in range(1, count)):
        nearest = sorted(range(1, len(model.graph.node)), key=lambda i: abs(shares[i] - share))
        within = [i for i in nearest if abs(shares[i] - share) <= SLACK / 2]
        near.update(within, nearest[:20])  # the nearest are considered even beyond `SLACK`
    return {position: crossing_at(model.graph, position) for position in sorted(near)}


def _best(sizes: dict[int, int], shares: Sequence[float], share: float, after: int) -> int:
    """Return the position of fewest bytes near ``share``; if none is near, the nearest."""
    left = [position for position in sizes if position > after]
    if not left:
        raise ValueError("there are too few positions where only tensors with a batch axis cross")
    near = [position for position in left if abs(shares[position] - share) <= SLACK / 2]
    if near:
        return min(near, key=lambda position: (sizes[position], abs(shares[position] - share)))
    return min(left, key=lambda position: abs(shares[position] - share))
