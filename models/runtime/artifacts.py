"""The artifacts: model files and what the manifest says of each.

`models/weights/manifest.toml` is the only list. An artifact is used only if its content is what
the manifest says (SHA-256).

INT4 weights laid out as INT8 when a file is loaded: the small file at INT8's speed.

Engines unpack INT4 into a slower kernel. Each of its sixteen levels is a level of INT8 too, so
the same numbers stand in one byte each, and the INT8 kernels run. Outputs are equal up to the
order of sums.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.runtime.errors import DamagedArtifact, UnknownArtifact


def expanded(content: bytes) -> bytes:
    """An ONNX file without INT4 tensors that computes the same; the same bytes if it has none.

    Raises:
        DamagedArtifact: the content is no ONNX file.
    """
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's decode errors have no public base
        raise DamagedArtifact(f"no ONNX file: {error}") from error
    small = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4]
    if not small:
        return content
    for tensor in small:
        levels = numpy_helper.to_array(tensor).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(levels, tensor.name))
    return model.SerializeToString()


WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True, eq=False)
class Artifact:
    """One exported model.

    Attributes:
        name: what it is asked for by, such as ``screening-int8``.
        path: the ONNX file.
        sha256: of the file's content.
        version: changes with every retraining; what reports name.
        kind: ``screening`` or ``hybrid``.
        precision: ``fp32``, ``int8`` or ``int4``.
        parent: the artifact that it was made from, or empty; ``method``: how.
        settings: what its user needs to read its outputs (calibration, thresholds).
        metrics: figures as measured, each with the command that measured it in ``docs``.
        licence: of the weights; ``attribution``: of the data that they were trained on.
        expand: whether INT4 weights are laid out as INT8 for the engine.
    """

    name: str
    path: Path
    sha256: str
    version: str
    kind: str
    precision: str
    parent: str
    method: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    licence: str
    attribution: str
    expand: bool = True

    @property
    def half(self) -> bool:
        """Whether what is float in it may be computed in bfloat16.

        It may beside what is rounded to integers anyway. All that is float in a screening network
        is its answer, which stays exact.
        """
        return self.precision != "fp32" and self.kind != "screening"

    def content(self) -> bytes:
        """What an engine loads: the file's bytes, checked, INT4 laid out as INT8.

        Raises:
            DamagedArtifact: see `stored`.
        """
        stored = self.stored()
        return expanded(stored) if self.precision == "int4" and self.expand else stored

    def stored(self) -> bytes:
        """The file's bytes, checked.

        Raises:
            DamagedArtifact: the file is missing or another than the manifest describes.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DamagedArtifact(f"{self.name}: cannot read {self.path}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DamagedArtifact(
                f"{self.name}: {self.path} has SHA-256 {found[:12]}…, the manifest says "
                f"{self.sha256[:12]}…; restore the file or export the model again"
            )
        return content


def find(name: str, folder: Path = WEIGHTS) -> Artifact:
    """The artifact of that name.

    Raises:
        UnknownArtifact: it is not in the manifest.
    """
    known = every(folder)
    if name not in known:
        raise UnknownArtifact(f"no artifact {name!r} in {folder}; there are: {', '.join(known)}")
    return known[name]


@lru_cache(maxsize=8)
def every(folder: Path = WEIGHTS) -> dict[str, Artifact]:
    """All artifacts of a folder's manifest, by name, in its order.

    Raises:
        DamagedArtifact: the manifest cannot be read.
    """
    manifest = folder / "manifest.toml"
    try:
        entries = tomllib.loads(manifest.read_text())
        return {name: _artifact(name, entry, folder) for name, entry in entries.items()}
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise DamagedArtifact(f"cannot read the manifest {manifest}: {error!r}") from error


def _artifact(name: str, entry: dict[str, Any], folder: Path) -> Artifact:
    return Artifact(
        name=name,
        path=folder / entry["file"],
        sha256=entry["sha256"],
        version=entry["version"],
        kind=entry["kind"],
        precision=entry["precision"],
        parent=entry.get("parent", ""),
        method=entry.get("method", ""),
        settings=entry.get("settings", {}),
        metrics=entry.get("metrics", {}),
        licence=entry.get("licence", ""),
        attribution=entry.get("attribution", ""),
    )
