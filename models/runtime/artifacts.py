"""The artifacts: model files and their entries in the manifest.

`models/weights/manifest.toml` is the only list. An artifact is used only if its content has the
SHA-256 of the manifest. Where public keys are given, one of them must have signed the manifest.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.runtime import MANIFEST
from models.runtime.errors import DamagedArtifact, UnknownArtifact

REQUIRED = ("sha256", "version", "kind", "precision")
_PRECISIONS = ("fp32", "int8", "int4")
OPTIONAL = ("parent", "method", "training", "settings", "metrics", "licence", "attribution")
"""The keys of a manifest entry besides ``file``."""

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True, eq=False)
class Artifact:
    """One exported model.

    Attributes:
        name: such as ``screening-int8``.
        path: the ONNX file.
        sha256: of the file's content.
        version: changes with every retraining; reports name it.
        kind: ``screening`` or ``hybrid``.
        precision: ``fp32``, ``int8`` or ``int4``.
        parent: the artifact that it was made from, or empty; ``method``: how it was made.
        training: steps, seconds and seeds of that, and the commit; what is missing is not recorded.
        settings: calibration, thresholds and others that its outputs are read with.
        metrics: measured figures; ``docs/models.md`` has the commands.
        licence: of the weights; ``attribution``: of the data that they were trained on.
        expand: whether INT4 weights are stored as INT8 for the engine.
        signed_by: the trusted key that signed the manifest; empty where no key was required.
    """

    name: str
    path: Path
    sha256: str
    version: str
    kind: str
    precision: str
    parent: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    attribution: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    expand: bool = True
    signed_by: str = ""

    @property
    def half(self) -> bool:
        """Whether its float layers may run in bfloat16: not in FP32, nor the screening output."""
        return self.precision != "fp32" and self.kind != "screening"

    def content(self) -> bytes:
        """Return the bytes that an engine loads: checked, INT4 stored as INT8.

        Raises:
            DamagedArtifact: see `stored`.
        """
        stored = self.stored()
        return expanded(stored) if self.precision == "int4" and self.expand else stored

    def stored(self) -> bytes:
        """Return the file's bytes, checked.

        Raises:
            DamagedArtifact: the file is missing, or its hash is not the manifest's.
        """
        try:
            content = self.path.read_bytes()
        except (OSError, ValueError) as error:  # a name may hold what no path can
            raise DamagedArtifact(f"{self.name}: cannot read {self.path}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise DamagedArtifact(
                f"{self.name}: {self.path} has SHA-256 {found[:12]}…, the manifest says "
                f"{self.sha256[:12]}…; restore the file or export the model again"
            )
        return content


def find(name: str, folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> Artifact:
    """Return the artifact of that name; other errors as `every`.

    Raises:
        UnknownArtifact: the manifest lacks it.
    """
    known = every(folder, keys)
    if name not in known:
        raise UnknownArtifact(f"no artifact {name!r} in {folder}; there are: {', '.join(known)}")
    return known[name]


@lru_cache(maxsize=8)
def every(folder: Path = WEIGHTS, keys: tuple[Path, ...] = ()) -> dict[str, Artifact]:
    """Return all artifacts of a folder's manifest by name, in its order.

    With files of public ``keys``, one of them must have signed the manifest.

    Raises:
        DamagedArtifact: the manifest cannot be read.
        UntrustedManifest: no key of ``keys`` signed it.
        InvalidKey: the file of a key cannot be read.
    """
    manifest = folder / MANIFEST
    try:
        content = manifest.read_bytes()
        signed_by = ""
        if keys:
            from models.runtime.signatures import signer_of  # here: it loads cryptography

            signed_by = signer_of(content, folder, keys)  # of the same bytes that are used below
        entries = tomllib.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedArtifact(f"cannot read the manifest {manifest}: {error!r}") from error
    return {name: _artifact(name, entry, manifest, signed_by) for name, entry in entries.items()}


def _artifact(name: str, entry: Any, manifest: Path, signed_by: str) -> Artifact:
    given: dict[str, Any] = entry if isinstance(entry, dict) else {}
    expected = {key: "a text" for key in ("file", *REQUIRED) if not isinstance(given.get(key), str)}
    if given.get("precision") not in _PRECISIONS:
        expected["precision"] = " or ".join(_PRECISIONS)
    if not isinstance(given.get("settings", {}), dict):
        expected["settings"] = "a table"
    for key, wanted in expected.items():
        raise DamagedArtifact(f"{manifest}: {name}: {key} = {given.get(key)!r}, expected {wanted}")
    values = {key: given[key] for key in (*REQUIRED, *OPTIONAL) if key in given}
    return Artifact(name, manifest.parent / given["file"], **values, signed_by=signed_by)


def expanded(content: bytes) -> bytes:
    """Store INT4 weights as INT8, so that engines use their fast INT8 kernels.

    The levels stay the same; outputs are equal up to the order of sums. A file without INT4 is
    returned as it is.

    Raises:
        DamagedArtifact: the content is not an ONNX file.
    """
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's decode errors have no public base
        raise DamagedArtifact(f"not an ONNX file: {error}") from error
    small = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4]
    if not small:
        return content
    for tensor in small:
        levels = numpy_helper.to_array(tensor).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(levels, tensor.name))
    return model.SerializeToString()
