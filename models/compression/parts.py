"""The artifacts that the cloud runs as a pipeline: a hybrid artifact cut into even parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from models.compression.balance import even_cuts
from models.compression.manifest import register
from models.compression.split import Example, split
from models.runtime.artifacts import WEIGHTS, Artifact, find
from models.runtime.errors import UnfitArtifact
from models.runtime.staged import part_name


def export_parts(name: str, count: int, folder: Path = WEIGHTS) -> list[str]:
    """Registers the ``count`` parts of a hybrid artifact; their names.

    Raises:
        UnknownArtifact: it is not in the manifest.
        UnfitArtifact: it is no hybrid, or cannot be cut.
    """
    whole = find(name, folder)
    if whole.kind != "hybrid":
        raise UnfitArtifact(f"{name} is of kind {whole.kind!r}, 'hybrid' is needed")
    model = onnx.load_model_from_string(whole.content())
    examples = (_example(whole, model, 1), _example(whole, model, 2))
    try:
        parts = split(model, even_cuts(model, count, examples), examples)
    except ValueError as error:
        raise UnfitArtifact(f"{name} cannot be cut into {count} parts: {error}") from error
    names = [part_name(name, number, count) for number in range(1, count + 1)]
    for part, part_of in zip(parts, names, strict=True):
        settings = {
            "whole": whole.sha256,
            "takes": [given.name for given in part.graph.input],
            "gives": [given.name for given in part.graph.output],
            "input": model.graph.input[0].name,
            "outputs": [output.name for output in model.graph.output],
        }
        register(
            part_of, part, kind="part", precision=whole.precision, parent=name,
            settings=settings, folder=folder,
        )  # fmt: skip
    return names


def _example(whole: Artifact, model: onnx.ModelProto, count: int) -> Example:
    shape = [int(side) for side in whole.settings["roi_shape"]]
    rng = np.random.default_rng(count)
    voxels = rng.integers(0, 256, (count, 1, *shape), dtype=np.uint8)
    return {model.graph.input[0].name: voxels}
